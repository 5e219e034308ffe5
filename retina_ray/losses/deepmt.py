"""DeepMT-DR's losses of super-resolution and of grading as pure functions of tensors.

What lives here: Eqs. 4 to 7 and 11, which train the super-resolution subnet, and Eq. 10, which trains the grading
subnet. What does not: Eqs. 8 and 9, those of the segmentation subnet (``losses/segmentation.py``); Eq. 1, a network
(``models/deepmt/segmentation.py``); Eqs. 2 and 3 with Algorithm 1, the map Vis (``explain/gmsv.py``).

Every term is returned per image, so that a caller can leave out padding and unlabelled images and average over
processes. Gradients reach every argument: a caller detaches what it means as a target. No function waits for the
device, and all compute in float32 or better.

Shapes: ``B`` batch, ``H W`` image at high resolution, ``C`` planes of a segmentation, ``K`` grades.
"""

from collections.abc import Mapping, Sequence
from typing import Literal

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn

from retina_ray.losses.precision import at_least_float32
from retina_ray.losses.steps import Step, step

PixelNorm = Literal["l1", "mse"]
GradeWeighting = Literal["printed", "plus_one", "weighted"]


def segmentation_aware(maps_sr: Float[Tensor, "B C H W"], maps_hr: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Compare the segmentations of a super-resolved and of an HR image (DeepMT-DR, Eq. 4).

    ``mean_chw (S_sr - S_hr)**2``.

    Differs from the paper: Eq. 4 prints a squared norm, which is a sum; its text says mean square error.

    Args:
        maps_sr: (B, C, H, W) of the super-resolved image, probabilities or logits.
        maps_hr: (B, C, H, W) of the HR image, the same kind.

    Returns:
        (B,) >= 0; at most 1 for probabilities.
    """
    return (at_least_float32(maps_sr) - at_least_float32(maps_hr)).square().mean(dim=(1, 2, 3))


def classification_aware(
    map_sr: Float[Tensor, "B H W"], map_hr: Float[Tensor, "B H W"], *, threshold: float, kind: Step, sharpness: float
) -> Float[Tensor, " B"]:
    """Compare the evidence maps of a super-resolved and of an HR image (DeepMT-DR, Eq. 5).

    ``mean_hw (step(Vis(Y_sr)) - step(Vis(Y_hr)))**2``.

    Differs from the paper: Eq. 5 prints a squared norm, which is a sum; the mean is that of Eq. 4. It prints the hard
    step, with which the loss is the share of pixels on which the maps differ and has no gradient at all.

    Args:
        map_sr: (B, H, W) in [0, 1], of the super-resolved image.
        map_hr: (B, H, W) in [0, 1], of the HR image.
        threshold: phi_vis, in (0, 1).
        kind: of `step`: ``hard`` as printed, ``soft`` to train, ``none`` as in the authors' code.
        sharpness: of the soft step, > 0.

    Returns:
        (B,) in [0, 1].

    Raises:
        ValueError: the step is soft and the sharpness is not positive.
    """
    shown_sr = step(map_sr, threshold, kind=kind, sharpness=sharpness)
    shown_hr = step(map_hr, threshold, kind=kind, sharpness=sharpness)
    return (shown_sr - shown_hr).square().mean(dim=(1, 2))


def classification_aware_scores(score_sr: Float[Tensor, " B"], score_hr: Float[Tensor, " B"]) -> Float[Tensor, " B"]:
    """Compare the positive DR scores themselves instead of their maps (DeepMT-DR, Table V, "W/O vis").

    ``(y_DR(Y_sr) - y_DR(Y_hr))**2``.

    Differs from the paper: it says that the scores are used directly as the loss and gives no formula.

    Args:
        score_sr: (B,) of the super-resolved image.
        score_hr: (B,) of the HR image.

    Returns:
        (B,) >= 0.
    """
    return (at_least_float32(score_sr) - at_least_float32(score_hr)).square()


def pixel_loss(
    restored: Float[Tensor, "B 3 H W"], high: Float[Tensor, "B 3 H W"], *, norm: PixelNorm
) -> Float[Tensor, " B"]:
    """Compare a super-resolved image with the HR image, pixel by pixel (DeepMT-DR, Eq. 6).

    ``mean |Y_sr - Y_hr|`` for ``l1``, ``mean (Y_sr - Y_hr)**2`` for ``mse``.

    Differs from the paper: Eq. 6 prints a norm, which is a sum; the mean does not depend on the image's size. ``mse``
    is what the authors' code has in place of the printed L1.

    Args:
        restored: (B, 3, H, W) in [0, 1].
        high: (B, 3, H, W) in [0, 1].
        norm: ``l1`` as printed or ``mse``.

    Returns:
        (B,) in [0, 1].
    """
    difference = at_least_float32(restored) - at_least_float32(high)
    return (difference.abs() if norm == "l1" else difference.square()).mean(dim=(1, 2, 3))


def total_variation(images: Float[Tensor, "B C H W"]) -> Float[Tensor, " B"]:
    """Sum the squared steps between neighbouring pixels (DeepMT-DR, Eq. 7).

    ``sum_hw (|Y[h, w + 1] - Y[h, w]|**2 + |Y[h + 1, w] - Y[h, w]|**2)``, each a sum over the channels. The last column
    and row have no neighbour beyond them; Eq. 7 does not say so.

    It is a sum, as printed, not a mean: its weight in Eq. 11 is accordingly small (1e-6 in the authors' code).

    Args:
        images: (B, C, H, W) in [0, 1].

    Returns:
        (B,) >= 0, growing with the number of pixels.
    """
    pixels = at_least_float32(images)
    along_width = pixels.diff(dim=3).square().sum(dim=(1, 2, 3))
    along_height = pixels.diff(dim=2).square().sum(dim=(1, 2, 3))
    return along_width + along_height


def grade_distance_cross_entropy(
    logits: Float[Tensor, "B K"],
    grades: Int[Tensor, " B"],
    *,
    mode: GradeWeighting,
    class_weights: Sequence[float] = (),
) -> Float[Tensor, " B"]:
    """Cross-entropy that counts more the further off the predicted grade is (DeepMT-DR, Eq. 10).

    ``-w * log softmax(z)[l]``, where with the predicted grade ``l~ = argmax z``, a constant to the gradient,

    * ``printed``: ``w = |l~ - l| / sum_i (|i - l| + 1)``,
    * ``plus_one``: ``w = (|l~ - l| + 1) / sum_i (|i - l| + 1)``,
    * ``weighted``: ``w = class_weights[l]``, as in the authors' code.

    Differs from the paper: as printed, an image that is graded right has no loss and hence no gradient, however unsure
    the network is of it. ``plus_one`` is the nearest form that trains: its denominator already carries the 1.

    Args:
        logits: (B, K).
        grades: (B,), 0..K-1, or -1 for none.
        mode: one of the three.
        class_weights: K weights >= 0, of ``weighted`` alone; none is 1 each, the plain cross-entropy.

    Returns:
        (B,) >= 0, 0 for an image without a grade.

    Raises:
        ValueError: ``weighted`` with another number of weights than grades.
    """
    exact = at_least_float32(logits)
    truth = grades.clamp(min=0).long()
    if mode == "weighted":
        weight = _class_weight(exact, truth, class_weights)
    else:
        weight = _distance_weight(exact, truth, offset=1 if mode == "plus_one" else 0)
    cross_entropy = nn.functional.cross_entropy(exact, truth, reduction="none")
    return torch.where(grades >= 0, weight * cross_entropy, 0.0)


def super_resolution_loss(
    terms: Mapping[str, Float[Tensor, "*B"]], weights: Mapping[str, float]
) -> Float[Tensor, "*B"]:
    """Add up the losses of the super-resolution subnet (DeepMT-DR, Eq. 11).

    ``L_isr = sum_t lambda_t * L_t``, with the terms img (Eq. 6), tv (7), seg-aware (4) and cls-aware (5).

    Args:
        terms: each term, per image (B,) or as a mean, all of one shape.
        weights: lambda of each term. A term that is not computed has none, or 0.

    Returns:
        The shape of the terms.

    Raises:
        ValueError: there is no term, a term has no weight, or a weight that is not 0 names no term.
    """
    wanted = {name for name, weight in weights.items() if weight != 0}
    if not terms or not terms.keys() <= weights.keys() or not wanted <= terms.keys():
        raise ValueError(f"loss weights for {sorted(weights)} do not match the terms {sorted(terms)}")
    return torch.stack([weights[name] * term for name, term in terms.items()]).sum(dim=0)


def _distance_weight(logits: Tensor, truth: Tensor, *, offset: int) -> Tensor:
    every_grade = torch.arange(logits.shape[1], device=logits.device)
    largest = ((every_grade - truth.unsqueeze(1)).abs() + 1).sum(dim=1)
    distance = (logits.argmax(dim=1) - truth).abs() + offset
    return distance.to(logits.dtype) / largest


def _class_weight(logits: Tensor, truth: Tensor, class_weights: Sequence[float]) -> Tensor:
    num_grades = logits.shape[1]
    if len(class_weights) not in (0, num_grades):
        raise ValueError(f"need {num_grades} class weights, one for each grade, or none; got {list(class_weights)}")
    weights = class_weights or [1.0] * num_grades
    # Not a tensor of the weights: copying it to a GPU would wait for its queue.
    return torch.stack([weight * (truth == grade).to(logits.dtype) for grade, weight in enumerate(weights)]).sum(dim=0)
