"""DeepMT-DR's losses of lesion segmentation as pure functions of tensors.

What lives here: Eqs. 8 and 9, and the focal loss that the authors' code adds to Eq. 8. What does not: the other
equations (``losses/deepmt.py``).

Every loss is returned per image, so that a caller can leave out images without a mask and average over processes.
No function waits for the device, and all compute in float32 or better.

Shapes: ``B`` batch, ``H W`` image at high resolution. A segmentation has 5 planes, the softmax over which is Eq. 1:
the lesions MA, HM, HE and SE, then the background. A mask has the 4 lesions; its background is where none of them is.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from retina_ray.losses.precision import at_least_float32
from retina_ray.losses.steps import Step, step

LESIONS = 4
"""Planes that show a lesion; the one after them is the background."""

Against = Literal["union", "each"]


def dice_loss(
    probabilities: Float[Tensor, "B 5 H W"],
    masks: Bool[Tensor, "B 4 maskH maskW"],
    *,
    plane_weights: Sequence[float],
    per_lesion: bool,
    factor: float = 2.0,
) -> Float[Tensor, " B"]:
    """Measure how far a segmentation and its mask are from overlapping (DeepMT-DR, Eq. 8).

    ``1 - factor * sum(S~ * S) / (sum S~ + sum S)``, with the printed factor 2. As printed the sums run over the four
    lesion planes together. With ``per_lesion`` each of the five planes has its own ratio, and the result is their
    weighted mean, as in the authors' code: there a large lesion cannot hide that a small one is missed.

    A plane, or in the printed form a mask, without any lesion gives 1 whatever the segmentation says, and no gradient.

    Differs from the paper: nothing by default. The authors' code has the factor 1, so that its loss of a perfect
    overlap is 1/2.

    Args:
        probabilities: (B, 5, H, W) in [0, 1].
        masks: (B, 4, H, W); lesions may overlap.
        plane_weights: 5 numbers >= 0 with a sum > 0, of ``per_lesion`` alone (1, 1, 1, 1, 0.1 in the authors' code).
        per_lesion: whether every plane counts by itself.
        factor: of the overlap, in (0, 2].

    Returns:
        (B,) in [0, 1].

    Raises:
        ValueError: the mask has another size than the segmentation, or the weights are not five such numbers.
    """
    _require_same_size(probabilities, masks, "masks")
    segmented = at_least_float32(probabilities)
    truth = _with_background(masks).to(segmented.dtype)
    overlap = (segmented * truth).sum(dim=(2, 3))
    total = segmented.sum(dim=(2, 3)) + truth.sum(dim=(2, 3))
    if per_lesion:
        return _weighted_mean(_dice(overlap, total, factor), plane_weights)
    return _dice(overlap[:, :LESIONS].sum(dim=1), total[:, :LESIONS].sum(dim=1), factor)


def focal_loss(
    logits: Float[Tensor, "B 5 H W"], masks: Bool[Tensor, "B 4 maskH maskW"], *, alpha: float, gamma: float
) -> Float[Tensor, " B"]:
    """Cross-entropy of a segmentation in which a pixel that is clear already counts little (Lin et al. 2017).

    ``mean_hw sum_c S_c * -alpha * (1 - p_c)**gamma * log p_c`` over the five planes, with ``p = softmax(logits)`` and S
    the mask and its background; a pixel of two lesions counts for both.

    Differs from the paper: it has no such term. The authors' code adds it to Eq. 8, with alpha 0.25 and gamma 2.

    Args:
        logits: (B, 5, H, W), before the softmax of Eq. 1.
        masks: (B, 4, H, W); lesions may overlap.
        alpha: factor of the whole, >= 0.
        gamma: >= 0; 0 is the cross-entropy.

    Returns:
        (B,) >= 0.

    Raises:
        ValueError: the mask has another size than the segmentation.
    """
    _require_same_size(logits, masks, "masks")
    log_probabilities = at_least_float32(logits).log_softmax(dim=1)
    # 1 - p, exact for p close to 1; never 0, where a power below 1 has an infinite slope.
    unclear = (-log_probabilities.expm1()).clamp(min=torch.finfo(log_probabilities.dtype).tiny)
    pixel = torch.where(_with_background(masks), unclear**gamma * -log_probabilities, 0.0).sum(dim=1)
    return alpha * pixel.mean(dim=(1, 2))


def semi_supervised(
    probabilities: Float[Tensor, "B 5 H W"],
    map_hr: Float[Tensor, "B mapH mapW"],
    *,
    threshold: float,
    kind: Step,
    sharpness: float,
    against: Against,
) -> Float[Tensor, " B"]:
    """Compare a segmentation with the evidence map that stands for a mask (DeepMT-DR, Eq. 9).

    ``mean (S~ - step(Vis(Y)))**2``. Vis(Y) shows lesions of any type: ``union`` compares it with the probability of any
    lesion, 1 - background, pixel by pixel; ``each`` with every lesion plane.

    Differs from the paper: Eq. 9 subtracts one map from four planes, which as printed is ``each`` and asks every
    pathological pixel to be all four lesions at once, though Eq. 1's planes sum to at most 1. The authors' code, where
    it trains the map, has ``union``. The squared norm is a mean here, as in Eq. 4.

    Gradients reach the map too, if its step is soft; a caller detaches it to use it as a label.

    Args:
        probabilities: (B, 5, H, W) in [0, 1], of an image without a mask.
        map_hr: (B, H, W) in [0, 1], of its HR image.
        threshold: phi_vis, in (0, 1), the same as in Eq. 5.
        kind: of `step`: ``hard`` as printed, ``none`` as in the authors' code.
        sharpness: of the soft step, > 0.
        against: ``union`` or ``each``.

    Returns:
        (B,) in [0, 1].

    Raises:
        ValueError: the map has another size than the segmentation, or the step is soft and its sharpness not positive.
    """
    _require_same_size(probabilities, map_hr, "map_hr")
    pathological = step(map_hr, threshold, kind=kind, sharpness=sharpness).unsqueeze(1)
    planes = at_least_float32(probabilities)
    segmented = 1 - planes[:, LESIONS:] if against == "union" else planes[:, :LESIONS]
    return (segmented - pathological).square().mean(dim=(1, 2, 3))


def _require_same_size(segmentation: Tensor, other: Tensor, name: str) -> None:
    ours, theirs = tuple(segmentation.shape[-2:]), tuple(other.shape[-2:])
    if ours != theirs:
        raise ValueError(f"{name} must have the segmentation's size {ours}, not {theirs}")


def _with_background(masks: Bool[Tensor, "B 4 H W"]) -> Bool[Tensor, "B 5 H W"]:
    return torch.cat([masks, ~masks.any(dim=1, keepdim=True)], dim=1)


def _dice(overlap: Tensor, total: Tensor, factor: float) -> Tensor:
    # Where total is 0 so is overlap: the limit of an ever fainter segmentation of nothing is 1, not 0 / 0.
    return 1 - factor * overlap / total.clamp(min=torch.finfo(total.dtype).tiny)


def _weighted_mean(losses: Float[Tensor, "B 5"], weights: Sequence[float]) -> Float[Tensor, " B"]:
    if len(weights) != losses.shape[1] or min(weights) < 0 or not sum(weights) > 0:
        raise ValueError(f"need {losses.shape[1]} plane weights >= 0 with a sum > 0, got {list(weights)}")
    # Not a tensor of the weights: copying it to a GPU would wait for its queue.
    return torch.stack([weight * losses[:, plane] for plane, weight in enumerate(weights)]).sum(dim=0) / sum(weights)
