"""What validation and test report of DeepMT-DR: per image as tensors, per pass as figures (Tables III and IV)."""

import math
from collections.abc import Mapping

import numpy as np
import torch
from torch import Tensor

from retina_ray.data.batch import Batch
from retina_ray.data.schema import LESIONS, NO_GRADE
from retina_ray.losses.segmentation import dice_loss
from retina_ray.metrics.known_mean import known_mean
from retina_ray.metrics.restoration import psnr, ssim
from retina_ray.metrics.segmentation import average_precision, evidence_histograms, roc_auc, score_histograms
from retina_ray.models.deepmt.resampling import upsample

_LESION_COUNTS = "lesion_counts"
_EVIDENCE_COUNTS = "evidence_counts"

_BINS = 512
"""Of the curves: areas within a few thousandths, and 80 KB for each image of a pass."""


def grading(probabilities: Tensor, truth: Tensor, task: str) -> dict[str, Tensor]:
    """Return the negative log-likelihood (B,) of the true grade and whether it is predicted, NaN without a grade."""
    graded = truth != NO_GRADE
    likelihood = probabilities.gather(1, truth.clamp(min=0).unsqueeze(1)).squeeze(1)
    correct = (probabilities.argmax(dim=1) == truth).float()
    return {
        f"loss_{task}": (-likelihood.clamp(min=1e-12).log()).where(graded, math.nan),
        f"accuracy_{task}": correct.where(graded, math.nan),
    }


def restoration(restored: Tensor, high: Tensor, low: Tensor, *, scale: int, final: bool) -> dict[str, Tensor]:
    """Return PSNR (B,), and after training SSIM and both of bicubic interpolation; nothing where nothing is restored.

    Args:
        restored: (B, 3, H, W) in [0, 1], as the others.
        high: (B, 3, H, W).
        low: (B, 3, H / scale, W / scale).
        scale: between them; at 1 the images are what they are compared with.
        final: after training.
    """
    if scale == 1:
        return {}
    values = {"psnr": psnr(restored, high)}
    if final:
        bicubic = upsample(low, scale)
        values |= {
            "ssim": ssim(restored, high),
            "psnr_bicubic": psnr(bicubic, high),
            "ssim_bicubic": ssim(bicubic, high),
        }
    return values


def segmentation(probabilities: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Return Eq. 8 (B,), NaN without a mask, and the pixels (B, 4, 2, bins) by lesion, truth and score.

    Args:
        probabilities: (B, 5, H, W).
        batch: with masks.
    """
    assert batch.masks is not None  # the method reads them
    dice = dice_loss(probabilities, batch.masks, plane_weights=(1.0, 1.0, 1.0, 1.0, 0.0), per_lesion=True)
    return {
        "loss_segmentation": dice.where(batch.has_mask, math.nan),
        _LESION_COUNTS: score_histograms(probabilities[:, :-1], batch.masks, batch.has_mask, bins=_BINS),
    }


def evidence(maps: Tensor, batch: Batch) -> dict[str, Tensor]:
    """Return the map's pixels (B, 6, 2, bins): each lesion's, any lesion's and the background's (Finding 3)."""
    assert batch.masks is not None  # the method reads them
    return {_EVIDENCE_COUNTS: evidence_histograms(maps, batch.masks, batch.has_mask, bins=_BINS)}


def summarise(measures: Mapping[str, np.ndarray]) -> dict[str, float]:
    """Return the means over the images that have a value, and the areas of the curves over all pixels.

    Per lesion: ``ap_MA`` and ``auc_MA`` pooled over all pixels, ``image_ap_MA`` and ``image_auc_MA`` the means over the
    images that show it, ``chance_MA`` its share of the pixels, which is the average precision of a guess, and
    ``evidence_auc_MA``. Of these but the last the mean over lesions, as ``ap_mean`` (Table III, "Averaged Result");
    besides ``evidence_auc_lesions`` and ``evidence_auc_background``. NaN where no mask has any.
    """
    figures: dict[str, float] = {}
    for name, values in measures.items():
        if name == _LESION_COUNTS:
            figures |= _lesions(torch.from_numpy(values))
        elif name == _EVIDENCE_COUNTS:
            areas = roc_auc(torch.from_numpy(values).sum(dim=0))
            regions = (*LESIONS, "lesions", "background")
            figures |= {f"evidence_auc_{region}": float(area) for region, area in zip(regions, areas, strict=True)}
        else:
            figures[name] = known_mean(values)
    return figures


def _lesions(counts: Tensor) -> dict[str, float]:
    pooled = counts.sum(dim=0)
    outside, inside = pooled.sum(dim=2).unbind(dim=1)
    by_lesion = {
        "ap": average_precision(pooled).numpy(),
        "auc": roc_auc(pooled).numpy(),
        "image_ap": _means(average_precision(counts).numpy()),
        "image_auc": _means(roc_auc(counts).numpy()),
        "chance": (inside / (inside + outside)).where(inside > 0, math.nan).numpy(),
    }
    figures: dict[str, float] = {}
    for kind, values in by_lesion.items():
        figures |= {f"{kind}_{lesion}": float(value) for lesion, value in zip(LESIONS, values, strict=True)}
        figures[f"{kind}_mean"] = known_mean(values)
    return figures


def _means(values: np.ndarray) -> np.ndarray:
    """Return the mean (L,) over the images of values (n, L), of those that are known."""
    return np.array([known_mean(column) for column in values.T])
