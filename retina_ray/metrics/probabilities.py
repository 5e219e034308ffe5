"""Probabilities of grades as every metric takes them: checked, clipped, and the top label read off.

Shapes: ``n`` images, ``K`` grades. What is not here: any metric (``grading``, ``calibration``). Serving reads this
file through ``calibration``, so it stays light: numpy only.
"""

from typing import Any

import numpy as np
import numpy.typing as npt

from retina_ray.errors import DataError

DEFAULT_BINS = 15
"""Equal-width bins of the calibration error (Guo et al. 2017, SALL's reference [24])."""

SUM_TOLERANCE = 1e-3
"""How far a row of float32 probabilities may be from a sum of 1."""

SMALLEST_PROBABILITY = float(np.finfo(np.float32).tiny)
"""Stands for 0 under a logarithm: probabilities are stored as float32, so less than this cannot be told from 0."""


def checked(
    probabilities: npt.NDArray[Any], truth: npt.NDArray[Any]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.int64]]:
    """Return the inputs of a metric as float64 in [0, 1] and int64, or say what is wrong with them.

    Args:
        probabilities: (n, K), rows sum to 1.
        truth: (n,), in [0, K).

    Raises:
        ValueError: no rows, or shapes that do not fit each other.
        DataError: probabilities that are not distributions, or a grade outside [0, K).
    """
    if probabilities.ndim != 2 or probabilities.shape[1] < 2 or truth.shape != probabilities.shape[:1]:
        raise ValueError(f"need probabilities (n, K >= 2) and truth (n,), got {probabilities.shape} and {truth.shape}")
    if len(truth) == 0:
        raise ValueError("no predictions to measure: 0 rows")
    values = probabilities.astype(np.float64)
    require_distributions(values)
    grades = truth.astype(np.int64)
    outside = (grades < 0) | (grades >= values.shape[1])
    if outside.any():
        raise DataError(
            f"true grade outside 0..{values.shape[1] - 1}",
            int(grades[outside][0]),
            "drop images without a grade and check that the model has one output per grade",
        )
    return np.clip(values, 0.0, 1.0), grades


def require_distributions(probabilities: npt.NDArray[np.floating[Any]]) -> None:
    """Raise DataError unless every row of (n, K) is finite, not negative and sums to 1 within `SUM_TOLERANCE`."""
    sums = probabilities.sum(axis=1)
    bad = ~np.isfinite(sums) | (np.abs(sums - 1.0) > SUM_TOLERANCE) | (probabilities < 0.0).any(axis=1)
    if bad.any():
        row = int(np.flatnonzero(bad)[0])
        raise DataError(
            f"probabilities of {int(bad.sum())} row(s) are not a distribution, first in row {row}",
            probabilities[row].tolist(),
            "store the softmax outputs in float32, not logits or half precision",
        )


def top_label(
    probabilities: npt.NDArray[np.float64], truth: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.int64], npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return predicted grade (n,), its probability (n,) in (0, 1) and whether it is right (n,).

    Ties go to the milder grade. A confidence of exactly 1 becomes the next smaller number: torchmetrics would
    otherwise open a bin of its own for it, beyond the last one.
    """
    predicted = probabilities.argmax(axis=1)
    confidence = np.minimum(probabilities[np.arange(len(truth)), predicted], np.nextafter(1.0, 0.0))
    return predicted, confidence, predicted == truth


def per_image_losses(
    probabilities: npt.NDArray[np.float64], truth: npt.NDArray[np.int64]
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
    """Return negative log-likelihood (n,) in nats and Brier score (n,) in [0, 2] of each image."""
    of_truth = probabilities[np.arange(len(truth)), truth]
    nll = -np.log(np.maximum(of_truth, SMALLEST_PROBABILITY))
    brier = (probabilities**2).sum(axis=1) - 2.0 * of_truth + 1.0
    return nll, brier
