"""Intervals of the grading metrics by resampling patients, not images: a patient's two eyes are not independent.

A resample is a count per patient, so every metric but AUROC is a function of sums that are added up once per
patient and then weighted: 1000 resamples cost one matrix product. Letters: ``n`` images, ``K`` grades, ``G`` groups,
``R`` resamples. What is not here: the definitions of the metrics (``grading``), which these must match exactly.
"""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt

from retina_ray.metrics.calibration import bin_of
from retina_ray.metrics.grading import METRICS, grading_metrics
from retina_ray.metrics.probabilities import DEFAULT_BINS, checked, per_image_losses, top_label

Floats = npt.NDArray[np.float64]

INFLATED = frozenset({"ece", "mce"})
"""Metrics that resampling makes larger on average."""

_CHUNK_VALUES = 4_000_000
"""Weights held at once (R in a chunk times n); bounds memory at some 100 MB whatever the table's size."""


def bootstrap_intervals(
    probabilities: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    groups: npt.NDArray[Any],
    *,
    metrics: Sequence[str] = METRICS,
    resamples: int = 1000,
    level: float = 0.95,
    bins: int = DEFAULT_BINS,
    seed: int,
) -> dict[str, tuple[float, float]]:
    """Return percentile intervals of the metrics over resampled groups.

    Args:
        probabilities: (n, K), rows sum to 1.
        truth: (n,), in [0, K).
        groups: (n,), patient of each image.
        metrics: names from `METRICS`.
        resamples: R.
        level: share of resamples inside, in (0, 1).
        bins: bins of ``ece`` and ``mce``.
        seed: same seed, same intervals.

    Returns:
        (low, high) per metric, see `recentred`; nan with fewer than two groups or where no resample defines the metric.

    Raises:
        ValueError: no rows, an unknown metric, a level outside (0, 1), or shapes that do not fit each other.
        DataError: probabilities that are not distributions, or a grade outside [0, K).
    """
    samples = bootstrap_samples(probabilities, truth, groups, resamples=resamples, bins=bins, seed=seed)
    unknown = sorted(set(metrics) - set(samples))
    if unknown:
        raise ValueError(f"unknown metric {unknown[0]!r}; known: {', '.join(METRICS)}")
    values = grading_metrics(probabilities, truth, bins=bins)
    intervals = {name: percentile_interval(recentred(name, samples[name], values[name]), level) for name in metrics}
    return {name: (max(low, 0.0), high) if name in INFLATED else (low, high) for name, (low, high) in intervals.items()}


def recentred(metric: str, samples: Floats, value: float) -> Floats:
    """Return samples (R,) of a metric without the bias of resampling.

    A resample repeats images, so its bins look noisier than the data's: calibration errors come out too large, and
    their plain interval can miss the value itself. Those of `INFLATED` are moved to have the value as their mean;
    other metrics are returned as they are.

    Args:
        metric: name from `METRICS`.
        samples: (R,) of the metric, or of its difference between two models.
        value: the same on the data.
    """
    return samples - samples.mean() + value if metric in INFLATED else samples


def percentile_interval(samples: Floats, level: float) -> tuple[float, float]:
    """Return the central interval that holds ``level`` of the finite samples (R,), nan where there are none."""
    if not 0.0 < level < 1.0:
        raise ValueError(f"level must lie in (0, 1), got {level}")
    finite = samples[np.isfinite(samples)]
    if not len(finite):
        return float("nan"), float("nan")
    low, high = np.quantile(finite, [(1.0 - level) / 2.0, (1.0 + level) / 2.0])
    return float(low), float(high)


def bootstrap_samples(
    probabilities: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    groups: npt.NDArray[Any],
    *,
    resamples: int = 1000,
    bins: int = DEFAULT_BINS,
    seed: int,
) -> dict[str, Floats]:
    """Return every metric on every resample, (R,) each.

    Two models measured on the same images with the same seed see the same resamples, so that the difference of
    their samples is a paired bootstrap.

    Args:
        probabilities: (n, K), rows sum to 1.
        truth: (n,), in [0, K).
        groups: (n,), patient of each image.
        resamples: R, at least 1.
        bins: bins of ``ece`` and ``mce``.
        seed: of the draws.

    Raises:
        ValueError: no rows, no resamples, or shapes that do not fit each other.
        DataError: probabilities that are not distributions, or a grade outside [0, K).
    """
    values, grades = checked(probabilities, truth)
    if groups.shape != grades.shape:
        raise ValueError(f"need one group per image, got {groups.shape} groups for {grades.shape} images")
    if resamples < 1:
        raise ValueError(f"need at least 1 resample, got {resamples}")
    names, group_of = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return {name: np.full(resamples, np.nan) for name in METRICS}
    measure = _Resampled(values, grades, group_of, len(names), bins)
    rng = np.random.default_rng(seed)
    parts = [measure(draw_group_counts(rng, len(names), size)) for size in chunks(resamples, len(grades))]
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def gap_samples(
    probabilities: npt.NDArray[Any],
    truth: npt.NDArray[Any],
    groups: npt.NDArray[Any],
    inside: npt.NDArray[np.bool_],
    *,
    resamples: int = 1000,
    bins: int = DEFAULT_BINS,
    seed: int,
) -> dict[str, Floats]:
    """Return every metric of some of the images minus that of the others on every resample, (R,) each.

    Patients are resampled within three strata: those with images inside alone, outside alone, and on both sides. So a
    patient whose two eyes are on different sides counts as often on both, as a paired comparison has it; all others are
    drawn independently for each side; and no resample leaves a side empty.

    Args:
        probabilities: (n, K), rows sum to 1.
        truth: (n,), in [0, K).
        groups: (n,), patient of each image.
        inside: (n,), the images that are compared with all others; some are, some are not.
        resamples: R.
        bins: bins of ``ece`` and ``mce``.
        seed: of the draws.

    Returns:
        nan with fewer than two patients on one side.

    Raises:
        DataError: probabilities that are not distributions, or a grade outside [0, K).
    """
    values, grades = checked(probabilities, truth)
    names, group_of = np.unique(groups, return_inverse=True)
    has_inside, has_outside = (np.bincount(group_of[side], minlength=len(names)) > 0 for side in (inside, ~inside))
    if min(has_inside.sum(), has_outside.sum()) < 2:
        return {name: np.full(resamples, np.nan) for name in METRICS}
    strata = [np.flatnonzero(each) for each in (has_inside & ~has_outside, has_outside & ~has_inside)]
    strata.append(np.flatnonzero(has_inside & has_outside))
    measures = [_Resampled(values[side], grades[side], group_of[side], len(names), bins) for side in (inside, ~inside)]
    rng = np.random.default_rng(seed)
    parts = []
    for size in chunks(resamples, len(grades)):
        counts = np.zeros((size, len(names)), dtype=np.int64)
        for members in strata:
            if len(members):
                counts[:, members] = draw_group_counts(rng, len(members), size)
        one, other = (measure(counts) for measure in measures)
        parts.append({name: one[name] - other[name] for name in METRICS})
    return {name: np.concatenate([part[name] for part in parts]) for name in METRICS}


def chunks(resamples: int, num_images: int) -> Iterator[int]:
    """Yield how many resamples to hold at once, which add up to ``resamples``; bounds memory for that many images."""
    chunk = max(1, _CHUNK_VALUES // max(1, num_images))
    for start in range(0, resamples, chunk):
        yield min(chunk, resamples - start)


def draw_group_counts(rng: np.random.Generator, num_groups: int, resamples: int) -> npt.NDArray[np.int64]:
    """Return how often each resample drew each group, (R, G); rows sum to G."""
    drawn = rng.integers(num_groups, size=(resamples, num_groups)) + np.arange(resamples)[:, None] * num_groups
    return np.bincount(drawn.ravel(), minlength=resamples * num_groups).reshape(resamples, num_groups)


class _Resampled:
    """Measures resamples of some images, from how often each resample drew each group."""

    def __init__(
        self,
        values: Floats,
        grades: npt.NDArray[np.int64],
        group_of: npt.NDArray[np.intp],
        num_groups: int,
        bins: int,
    ) -> None:
        self._values, self._grades, self._group_of, self._bins = values, grades, group_of, bins
        self._sums_by_group = _sums_by_group(values, grades, group_of, num_groups, bins)

    def __call__(self, counts: npt.NDArray[np.int64]) -> dict[str, Floats]:
        """Return every metric, (R,) each, of counts (R, G); every resample holds at least one image."""
        measured = _from_sums(counts.astype(np.float64) @ self._sums_by_group, self._values.shape[1], self._bins)
        weights = counts.T[self._group_of].astype(np.float64)
        return {**measured, "auroc": _weighted_auroc(self._values, self._grades, weights)}


def _sums_by_group(
    values: Floats, grades: npt.NDArray[np.int64], group_of: npt.NDArray[np.intp], num_groups: int, bins: int
) -> Floats:
    """Return per group: K*K confusion counts, 4 sums (Conf, Err, nll, brier), then count, confidence, hits by bin."""
    num_grades = values.shape[1]
    predicted, confidence, right = top_label(values, grades)
    nll, brier = per_image_losses(values, grades)
    rows = np.arange(len(grades))
    of_bin = bin_of(confidence, bins)
    features = np.zeros((len(grades), num_grades**2 + 4 + 3 * bins))
    features[rows, grades * num_grades + predicted] = 1.0
    base = num_grades**2
    features[:, base : base + 4] = np.stack([confidence * right, confidence * ~right, nll, brier], axis=1)
    for offset, value in enumerate((1.0, confidence, right)):
        features[rows, base + 4 + offset * bins + of_bin] = value
    sums = np.zeros((num_groups, features.shape[1]))
    np.add.at(sums, group_of, features)
    return sums


def _from_sums(sums: Floats, num_grades: int, bins: int) -> dict[str, Floats]:
    """Return every metric but AUROC, (R,) each, from the weighted sums (R, F) of `_sums_by_group`."""
    base = num_grades**2
    confusion = sums[:, :base].reshape(-1, num_grades, num_grades)
    right_confidence, wrong_confidence, nll, brier = sums[:, base : base + 4].T
    count, confidence, hits = np.moveaxis(sums[:, base + 4 :].reshape(-1, 3, bins), 1, 0)
    total = count.sum(axis=1)
    right = np.trace(confusion, axis1=1, axis2=2)
    gap = _ratio(np.abs(confidence - hits), count, empty=0.0)
    return {
        "accuracy": right / total,
        "confidence": _ratio(right_confidence, right),
        "error": _ratio(wrong_confidence, total - right),
        **_kappas(confusion, total),
        **_f1_and_precision(confusion, total),
        "ece": (gap * count).sum(axis=1) / total,
        "mce": gap.max(axis=1),
        "nll": nll / total,
        "brier": brier / total,
    }


def _kappas(confusion: Floats, total: Floats) -> dict[str, Floats]:
    grade = np.arange(confusion.shape[1], dtype=np.float64)
    distance = np.abs(grade[:, None] - grade)
    chance = confusion.sum(axis=2)[:, :, None] * confusion.sum(axis=1)[:, None, :] / total[:, None, None]
    weights = {"kappa": (distance > 0).astype(np.float64), "kappa_linear": distance, "kappa_quadratic": distance**2}
    return {
        name: 1.0 - _ratio((confusion * weight).sum(axis=(1, 2)), (chance * weight).sum(axis=(1, 2)))
        for name, weight in weights.items()
    }


def _f1_and_precision(confusion: Floats, total: Floats) -> dict[str, Floats]:
    hit = np.diagonal(confusion, axis1=1, axis2=2)
    true, predicted = confusion.sum(axis=2), confusion.sum(axis=1)
    scores = {
        "f1": _ratio(2.0 * hit, true + predicted, empty=0.0),
        "precision": _ratio(hit, predicted, empty=0.0),
    }
    # A grade that is neither true nor predicted in a resample takes no part in its macro mean.
    seen = (true + predicted > 0).sum(axis=1)
    macro = {f"{name}_macro": score.sum(axis=1) / seen for name, score in scores.items()}
    weighted = {f"{name}_weighted": (score * true).sum(axis=1) / total for name, score in scores.items()}
    return macro | weighted


def _weighted_auroc(values: Floats, grades: npt.NDArray[np.int64], weights: Floats) -> Floats:
    """Return the macro one-vs-rest area (R,) over the grades present in each resample, for weights (n, R)."""
    areas = []
    for grade in range(values.shape[1]):
        positive = grades == grade
        score = values[:, grade]
        order = np.flatnonzero(~positive)[np.argsort(score[~positive])]
        below = np.concatenate([np.zeros((1, weights.shape[1])), np.cumsum(weights[order], axis=0)])
        negatives = score[order]
        # A positive wins against lower negatives and half wins against equal ones.
        lower = np.searchsorted(negatives, score[positive], side="left")
        not_higher = np.searchsorted(negatives, score[positive], side="right")
        wins = (weights[positive] * (below[lower] + below[not_higher])).sum(axis=0) / 2.0
        areas.append(_ratio(wins, weights[positive].sum(axis=0) * below[-1]))
    stacked = np.stack(areas)
    defined = np.isfinite(stacked)
    return _ratio(np.where(defined, stacked, 0.0).sum(axis=0), defined.sum(axis=0).astype(np.float64))


def _ratio(above: Floats, below: Floats, *, empty: float = float("nan")) -> Floats:
    """Divide, with ``empty`` where the divisor is 0."""
    divided: Floats = np.divide(above, below, out=np.full(np.broadcast(above, below).shape, empty), where=below > 0)
    return divided
