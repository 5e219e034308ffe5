"""How well lesions are found, pixel by pixel: average precision and ROC area (DeepMT-DR, Table III, Finding 3).

What lives here: histograms of scores, which are counts and so add up over images and processes, and the two areas of
their curves. Summed over the images first, a histogram gives the pooled metric of Table III; left as it is, one value
for each image. What does not: an interval of these, and super-resolution (``restoration``).

The areas depend on the order of the scores alone, so a bin may have any width. Here bins are equal in log-odds: lesions
are rare, most pixels have a probability close to 0, and of 256 equal bins of the probability itself they would share
the first, which can take 0.07 off a ROC area of 0.97.

The counts are ours because torchmetrics' binned curves know no images and compare every pixel with every threshold:
17 thousand million comparisons for the four lesions of one 1024 x 1024 image.

Shapes: ``B`` images, ``L`` lesions, ``H W`` image, ``bins`` of the score, ``2`` the pixels outside and inside a lesion.
"""

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

DEFAULT_BINS = 4096
"""Bins of a score's log-odds, 0.8 % of the odds wide: areas are then off by less than 0.001."""

LOG_ODDS = 16.0
"""The bins span this on both sides of even odds; beyond it float32 cannot tell a probability from 1."""


def score_histograms(
    probabilities: Float[Tensor, "B L H W"],
    masks: Bool[Tensor, "B L H W"],
    has_mask: Bool[Tensor, " B"],
    *,
    bins: int = DEFAULT_BINS,
) -> Int[Tensor, "B L 2 bins"]:
    """Count the pixels of each image by lesion, by truth and by score.

    Neither loops over images nor waits for the device.

    Args:
        probabilities: (B, L, H, W) in [0, 1].
        masks: (B, L, H, W), of any content where there is no mask.
        has_mask: (B,); an image without a mask counts for nothing.
        bins: of equal width in the log-odds from -`LOG_ODDS` to `LOG_ODDS`; the outer ones hold all beyond.

    Returns:
        (B, L, 2, bins) int64: the pixels outside and inside the lesion. Add them up over images and processes.

    Raises:
        ValueError: shapes that do not fit each other, or no bins.
    """
    if masks.shape != probabilities.shape or has_mask.shape != probabilities.shape[:1]:
        shapes = [tuple(tensor.shape) for tensor in (probabilities, masks, has_mask)]
        raise ValueError(f"need probabilities and masks of one shape and a flag for each image, got {shapes}")
    if bins < 1:
        raise ValueError(f"need at least 1 bin, got {bins}")
    num_images, num_lesions = probabilities.shape[:2]
    num_curves = num_images * num_lesions
    score_bin = _bin_of(probabilities.reshape(num_curves, -1), bins)
    inside = masks.reshape(num_curves, -1).long()
    counted = has_mask.repeat_interleave(num_lesions, output_size=num_curves).long().unsqueeze(1)
    counts = torch.zeros(num_curves, 2 * bins, dtype=torch.int64, device=score_bin.device)
    counts.scatter_add_(1, inside * bins + score_bin, counted.expand_as(score_bin))
    return counts.view(num_images, num_lesions, 2, bins)


def evidence_histograms(
    maps: Float[Tensor, "B H W"],
    masks: Bool[Tensor, "B L H W"],
    has_mask: Bool[Tensor, " B"],
    *,
    bins: int = DEFAULT_BINS,
) -> Int[Tensor, "B L+2 2 bins"]:
    """Count the pixels of evidence maps inside and outside lesions (DeepMT-DR, Finding 3, Fig. 4 (c)).

    `roc_auc` of these says how well the map that explains a grade points at each lesion, and at the background, whose
    area is 1 minus that of any lesion.

    Args:
        maps: (B, H, W) in [0, 1], what a grade is explained with.
        masks: (B, L, H, W).
        has_mask: (B,).
        bins: as for `score_histograms`.

    Returns:
        (B, L + 2, 2, bins) int64, as `score_histograms`, of the L lesions, of any lesion and of the background.

    Raises:
        ValueError: shapes that do not fit each other, or no bins.
    """
    any_lesion = masks.any(dim=1, keepdim=True)
    regions = torch.cat([masks, any_lesion, ~any_lesion], dim=1)
    scores = maps.unsqueeze(1).expand(-1, regions.shape[1], -1, -1)
    return score_histograms(scores, regions, has_mask, bins=bins)


def average_precision(histograms: Int[Tensor, "*curves 2 bins"]) -> Float[Tensor, "*curves"]:
    """Return the average precision of each curve, ``sum_n (R_n - R_{n-1}) P_n`` (DeepMT-DR, Table III, AP).

    Exact for scores of which no two share a bin; those that do are taken as equal.

    Args:
        histograms: (..., 2, bins) of `score_histograms`, as they are or summed over images.

    Returns:
        (...) float64 in [0, 1]; nan where no pixel is inside the lesion.
    """
    outside, inside = _from_the_highest_score(histograms)
    positives, negatives = inside.cumsum(-1), outside.cumsum(-1)
    precision = positives / (positives + negatives).clamp(min=1)
    return (inside * precision).sum(-1) / positives[..., -1]


def roc_auc(histograms: Int[Tensor, "*curves 2 bins"]) -> Float[Tensor, "*curves"]:
    """Return the area under the ROC curve of each curve (DeepMT-DR, Table III, AUC).

    The share of pairs of a pixel inside and one outside in which the one inside scores higher, where a pair that
    shares a bin counts a half. Off by at most half the share of such pairs.

    Args:
        histograms: (..., 2, bins) of `score_histograms`, as they are or summed over images.

    Returns:
        (...) float64 in [0, 1]; nan where no pixel is inside the lesion or none is outside.
    """
    outside, inside = _from_the_highest_score(histograms)
    positives = inside.cumsum(-1)
    ranked_higher = positives - inside / 2
    return (outside * ranked_higher).sum(-1) / (positives[..., -1] * outside.sum(-1))


def _bin_of(scores: Tensor, bins: int) -> Tensor:
    exact = scores.to(torch.promote_types(scores.dtype, torch.float32))  # a bfloat16 could not name 4096 bins
    share_of_span = (exact.clamp(0, 1).logit() + LOG_ODDS) / (2 * LOG_ODDS)
    return (share_of_span.clamp(0, 1) * bins).long().clamp(0, bins - 1)


def _from_the_highest_score(histograms: Tensor) -> tuple[Tensor, Tensor]:
    """Return the counts outside and inside, (..., bins) float64 each: products of pooled counts outgrow int64."""
    outside, inside = histograms.flip(-1).double().unbind(-2)
    return outside, inside
