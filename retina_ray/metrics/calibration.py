"""How far probabilities can be trusted: reliability bins, temperature scaling, conformal prediction sets.

Everything fitted here (temperature, quantile) is meant for validation data, never for test data. The temperature is
the calibration temperature of Guo et al. 2017, apart from SALL's training temperature T. What is not here: the
calibration errors themselves (``grading``) and their drawing (``report``).
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import torch

from retina_ray.metrics.probabilities import DEFAULT_BINS, SMALLEST_PROBABILITY, checked, top_label

TEMPERATURE_RANGE = (0.05, 20.0)
"""Where `fit_temperature` looks; a separable validation set would otherwise drive it to 0."""

_HALVINGS = 40
"""Steps of the search: 6 / 2**40 is far below what any validation set can tell apart."""


@dataclass(frozen=True)
class ReliabilityBins:
    """Accuracy and confidence of the top label by confidence (SALL Fig. 7).

    Attributes:
        edges: (bins + 1,), from 0 to 1.
        accuracy: (bins,), share of right predictions, nan in an empty bin.
        confidence: (bins,), mean highest probability, nan in an empty bin.
        count: (bins,), images.
    """

    edges: npt.NDArray[np.float64]
    accuracy: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]
    count: npt.NDArray[np.int64]

    def as_records(self) -> list[dict[str, float | None]]:
        """Return ``count``, ``confidence`` and ``accuracy`` per bin, the latter two None in an empty bin."""
        columns = zip(self.count.tolist(), self.confidence.tolist(), self.accuracy.tolist(), strict=True)
        return [
            {
                "count": count,
                "confidence": confidence if count else None,
                "accuracy": accuracy if count else None,
            }
            for count, confidence, accuracy in columns
        ]


def bin_edges(bins: int) -> npt.NDArray[np.float64]:
    """Return the (bins + 1,) edges, bit for bit those torchmetrics uses, so that bars and ECE agree."""
    edges: npt.NDArray[np.float64] = torch.linspace(0.0, 1.0, bins + 1, dtype=torch.float64).numpy()
    return edges


def bin_of(confidence: npt.NDArray[np.float64], bins: int) -> npt.NDArray[np.int64]:
    """Return the bin (n,) of each confidence in [0, 1); a bin holds its lower edge."""
    return np.digitize(confidence, bin_edges(bins)).astype(np.int64) - 1


def reliability_bins(
    probabilities: npt.NDArray[Any], truth: npt.NDArray[Any], bins: int = DEFAULT_BINS
) -> ReliabilityBins:
    """Group predictions by confidence (SALL section IV-C, Fig. 7).

    Args:
        probabilities: (n, K), rows sum to 1.
        truth: (n,), in [0, K).
        bins: number of equal-width bins, at least 1.

    Raises:
        ValueError: no rows, no bins, or shapes that do not fit each other.
        DataError: probabilities that are not distributions, or a grade outside [0, K).
    """
    if bins < 1:
        raise ValueError(f"need at least 1 bin, got {bins}")
    _, confidence, right = top_label(*checked(probabilities, truth))
    index = bin_of(confidence, bins)
    count = np.bincount(index, minlength=bins)
    filled = np.where(count > 0, count, np.nan)
    return ReliabilityBins(
        edges=bin_edges(bins),
        accuracy=np.bincount(index, weights=right, minlength=bins) / filled,
        confidence=np.bincount(index, weights=confidence, minlength=bins) / filled,
        count=count,
    )


def apply_temperature(probabilities: npt.NDArray[Any], temperature: float) -> npt.NDArray[np.float64]:
    """Return softmax(log p / t), which is softmax(logits / t), as (n, K).

    Args:
        probabilities: (n, K), rows sum to 1.
        temperature: t > 0; above 1 softens, below 1 sharpens; the order of grades never changes.

    Raises:
        ValueError: a temperature that is not positive and finite.
    """
    if not (math.isfinite(temperature) and temperature > 0.0):
        raise ValueError(f"temperature must be positive and finite, got {temperature}")
    scaled = _log(probabilities) / temperature
    powers: npt.NDArray[np.float64] = np.exp(scaled - scaled.max(axis=1, keepdims=True))
    normalised: npt.NDArray[np.float64] = powers / powers.sum(axis=1, keepdims=True)
    return normalised


def fit_temperature(probabilities: npt.NDArray[Any], truth: npt.NDArray[Any]) -> float:
    """Return the calibration temperature: the t that minimises the negative log-likelihood (Guo et al. 2017, 4.2).

    Args:
        probabilities: (n, K) of the validation split, rows sum to 1.
        truth: (n,), in [0, K).

    Returns:
        t in `TEMPERATURE_RANGE`.

    Raises:
        ValueError: no rows, or shapes that do not fit each other.
        DataError: probabilities that are not distributions, or a grade outside [0, K).
    """
    values, grades = checked(probabilities, truth)
    logits = _log(values)
    of_truth = logits[np.arange(len(grades)), grades].mean()
    # The loss is convex in 1/t, and its slope there is (mean logit under the prediction) - (mean logit of the truth):
    # the slope's one change of sign is the minimum, so halving the interval cannot miss it.
    low, high = (math.log(bound) for bound in TEMPERATURE_RANGE)
    for _ in range(_HALVINGS):
        middle = (low + high) / 2.0
        expected = (apply_temperature(values, math.exp(middle)) * logits).sum(axis=1).mean()
        if expected > of_truth:
            low = middle
        else:
            high = middle
    return math.exp((low + high) / 2.0)


def conformal_quantile(probabilities: npt.NDArray[Any], truth: npt.NDArray[Any], *, coverage: float) -> float:
    """Return the split-conformal threshold on the score 1 - p_truth (Sadinle et al. 2019; Vovk et al. 2005).

    With the finite-sample rank ceil((n + 1) * coverage), a prediction set holds the truth of a new exchangeable
    image with probability at least ``coverage``.

    Args:
        probabilities: (n, K) of the validation split, rows sum to 1.
        truth: (n,), in [0, K).
        coverage: wanted share of sets that hold the truth, in (0, 1).

    Returns:
        The threshold for `prediction_set`, in [0, 1]; 1 (every grade) when n is too small for the coverage.

    Raises:
        ValueError: no rows, a coverage outside (0, 1), or shapes that do not fit each other.
        DataError: probabilities that are not distributions, or a grade outside [0, K).
    """
    if not 0.0 < coverage < 1.0:
        raise ValueError(f"coverage must lie in (0, 1), got {coverage}")
    values, grades = checked(probabilities, truth)
    scores = np.sort(1.0 - values[np.arange(len(grades)), grades])
    rank = math.ceil((len(scores) + 1) * coverage)
    return float(scores[rank - 1]) if rank <= len(scores) else 1.0


def prediction_set(probabilities: npt.NDArray[Any], quantile: float) -> npt.NDArray[np.bool_]:
    """Return which grades stay possible, (n, K): those with 1 - p <= quantile, and always the most probable one.

    Args:
        probabilities: (n, K), rows sum to 1.
        quantile: from `conformal_quantile`.
    """
    values = probabilities.astype(np.float64)
    kept: npt.NDArray[np.bool_] = 1.0 - values <= quantile
    kept[np.arange(len(values)), values.argmax(axis=1)] = True
    return kept


def _log(probabilities: npt.NDArray[Any]) -> npt.NDArray[np.float64]:
    """Return log p as (n, K): the logits up to a constant per row, which softmax ignores."""
    logits: npt.NDArray[np.float64] = np.log(np.maximum(probabilities.astype(np.float64), SMALLEST_PROBABILITY))
    return logits
