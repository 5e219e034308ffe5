"""What a model reaches on the images it keeps when it refers those it is least sure of to a human.

Shapes: ``n`` images, ``K`` grades, ``S`` shares, ``R`` resamples. What is not here: the choice of a threshold for a
disease (``operating_points``), and drawing (``report.validation_figures``).
"""

from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt

from retina_ray.metrics.bootstrap import draw_group_counts, percentile_interval
from retina_ray.metrics.probabilities import checked

Floats = npt.NDArray[np.float64]
Uncertainty = Literal["max", "entropy"]

REFERRAL_METRICS = ("accuracy", "kappa_quadratic")
"""What is measured of the images kept; as in `grading.METRICS`."""

SHARES: Floats = np.arange(100) / 100.0
"""Shares referred at which a curve is given: 0 to 99 %. At 100 % nothing is kept to be measured."""

_NOTHING = 1e-9
"""A spread of grades below this is rounding: all kept images have one true and one predicted grade, the same."""


@dataclass(frozen=True)
class ReferralCurve:
    """What is reached at each of `SHARES`.

    Attributes:
        n: graded images.
        values: (S,) per name of `REFERRAL_METRICS`, nan where undefined.
        bands: (S, 2) low and high per name, each share by itself; empty without resamples.
        areas: mean of the values over the shares at which they are defined, per name.
        area_intervals: (low, high) per name; empty without resamples.
    """

    n: int
    values: dict[str, Floats]
    bands: dict[str, Floats]
    areas: dict[str, float]
    area_intervals: dict[str, tuple[float, float]]

    def at(self, share: float) -> dict[str, float]:
        """Return the values where a share in [0, 0.99] is referred, to the nearest per cent."""
        place = int(np.abs(SHARES - share).argmin())
        return {name: float(values[place]) for name, values in self.values.items()}


def uncertainty_of(probabilities: npt.NDArray[Any], kind: Uncertainty = "max") -> Floats:
    """Return how unsure a model is of each image, (n,), >= 0.

    Args:
        probabilities: (n, K), rows sum to 1.
        kind: ``max`` is 1 - the highest probability; ``entropy`` that of the distribution, in nats.
    """
    values = np.clip(probabilities.astype(np.float64), 0.0, 1.0)
    if kind == "max":
        return np.asarray(1.0 - values.max(axis=1))
    return np.asarray(-(values * np.log(np.where(values > 0.0, values, 1.0))).sum(axis=1))


def referral_curve(
    probabilities: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    groups: npt.NDArray[Any],
    *,
    uncertainty: Uncertainty = "max",
    resamples: int = 1000,
    level: float = 0.95,
    seed: int,
) -> ReferralCurve:
    """Measure the images kept while the most uncertain ones are referred, with bands over patients.

    Of images that are equally uncertain, an equal part of each is referred; so the curve depends on no order, and
    equals its mean over all orders of such images (exactly for accuracy, nearly for kappa). The image on the border is
    kept in part for the same reason.

    Args:
        probabilities: (n, K), rows sum to 1.
        truth: (n,), in [0, K).
        groups: (n,), patient of each image.
        uncertainty: what images are referred by, see `uncertainty_of`.
        resamples: R; 0 leaves the bands and intervals out, fewer than two patients make them nan.
        level: of bands and intervals, in (0, 1).
        seed: of the resamples.

    Raises:
        ValueError: no rows, or shapes that do not fit each other.
        DataError: probabilities that are not distributions, or a grade outside [0, K).
    """
    values, grades = checked(probabilities, truth)
    if groups.shape != grades.shape:
        raise ValueError(f"need one group per image, got {groups.shape} groups for {grades.shape} images")
    unsure = uncertainty_of(values, uncertainty)
    order = np.argsort(unsure, kind="stable")
    features = _features(values.argmax(axis=1)[order], grades[order])
    block_ends = np.flatnonzero(np.append(np.diff(unsure[order]) > 0.0, True))
    curve = _measure(features, np.ones(len(order)), block_ends)
    bands: dict[str, Floats] = {}
    area_intervals: dict[str, tuple[float, float]] = {}
    if resamples:
        samples = _samples(features, groups[order], block_ends, resamples=resamples, seed=seed)
        for name, found in samples.items():
            bands[name] = np.array([percentile_interval(column, level) for column in found.T])
            area_intervals[name] = percentile_interval(np.array([_area(row) for row in found]), level)
    areas = {name: _area(row) for name, row in curve.items()}
    return ReferralCurve(len(grades), curve, bands, areas, area_intervals)


def _features(predicted: npt.NDArray[np.intp], truth: npt.NDArray[np.int64]) -> Floats:
    """Return what both metrics are made of, summed: count, right, (t - p)^2, t, p, t^2 + p^2; (n, 6)."""
    t, p = truth.astype(np.float64), predicted.astype(np.float64)
    return np.stack([np.ones(len(t)), t == p, (t - p) ** 2, t, p, t**2 + p**2], axis=1)


def _samples(
    features: Floats, groups: npt.NDArray[Any], block_ends: npt.NDArray[np.intp], *, resamples: int, seed: int
) -> dict[str, Floats]:
    """Return the curve (R, S) of every resample, nan with fewer than two patients."""
    names, group_of = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return {name: np.full((resamples, len(SHARES)), np.nan) for name in REFERRAL_METRICS}
    rng = np.random.default_rng(seed)
    curves = [
        _measure(features, draw_group_counts(rng, len(names), 1)[0][group_of].astype(np.float64), block_ends)
        for _ in range(resamples)
    ]
    return {name: np.stack([curve[name] for curve in curves]) for name in REFERRAL_METRICS}


def _measure(features: Floats, weights: Floats, block_ends: npt.NDArray[np.intp]) -> dict[str, Floats]:
    """Return the curve (S,) of images sorted from the surest on, each counted ``weights`` times.

    Args:
        features: (n, 6), see `_features`.
        weights: (n,), >= 0, not all zero.
        block_ends: last image of each run of equal uncertainty, ascending.
    """
    sums = np.cumsum(features * weights[:, None], axis=0)[block_ends]
    sums = np.concatenate([np.zeros((1, sums.shape[1])), sums])
    counted = sums[:, 0]
    kept = (1.0 - SHARES) * counted[-1]
    # Between the ends of two blocks, sums grow in proportion to the images kept.
    after = np.clip(np.searchsorted(counted, kept, side="left"), 1, len(counted) - 1)
    width = counted[after] - counted[after - 1]
    part = (kept - counted[after - 1]) / width
    total = sums[after - 1] + part[:, None] * (sums[after] - sums[after - 1])
    count, right, apart, t, p, squares = total.T
    # Quadratic kappa: squared distance of truth and prediction, over what it would be were they independent.
    by_chance = squares / count - 2.0 * t * p / count**2
    defined = by_chance > _NOTHING
    kappa = np.full(len(kept), np.nan)
    kappa[defined] = 1.0 - apart[defined] / count[defined] / by_chance[defined]
    return {"accuracy": right / count, "kappa_quadratic": kappa}


def _area(values: Floats) -> float:
    defined = values[np.isfinite(values)]
    return float(defined.mean()) if len(defined) else float("nan")
