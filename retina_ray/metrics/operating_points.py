"""A grader as a screening test: thresholds chosen on validation images, and what they do to test images.

The disease is a grade of at least g; an image's score is the probability of these grades together, and it is flagged
where the score reaches the threshold. A threshold is never chosen on the images that it is measured on. Shapes: ``n``
images, ``K`` grades, ``G`` patients, ``R`` resamples. What is not here: the prediction table (``table``).
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt

from retina_ray.errors import DataError
from retina_ray.metrics.bootstrap import chunks, draw_group_counts, percentile_interval
from retina_ray.metrics.probabilities import checked
from retina_ray.metrics.table import Predictions

Floats = npt.NDArray[np.float64]
Flags = npt.NDArray[np.bool_]

SCREENING_METRICS = ("sensitivity", "specificity", "ppv", "npv", "flagged")
"""Shares of: referable images flagged, others not flagged, flagged images referable, others not, all images flagged."""


@dataclass(frozen=True)
class Decisions:
    """What thresholds make of test images.

    Attributes:
        stated: sensitivity that the thresholds were chosen for, None for a threshold that was given.
        thresholds: one per model that decides, in (-inf, inf); several where runs are pooled, each with its own.
        reached: sensitivity on the validation images that each threshold was chosen on; empty for a given one.
        flagged: (n,), whether the score reaches the threshold.
        referable: (n,), whether the true grade calls for a referral.
        groups: (n,), patient of each image.
        image_ids: (n,).
    """

    stated: float | None
    thresholds: tuple[float, ...]
    reached: tuple[float, ...]
    flagged: Flags
    referable: Flags
    groups: npt.NDArray[Any]
    image_ids: npt.NDArray[Any]


@dataclass(frozen=True)
class ScreeningFigures:
    """What decisions are worth on some images.

    Attributes:
        n: images.
        num_referable: those of them that are referable.
        metrics: value per name of `SCREENING_METRICS`, nan where there is nothing to divide by.
        intervals: (low, high) per name; empty without resamples.
    """

    n: int
    num_referable: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def referable_scores(
    predictions: Predictions, *, referable_from: int
) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.bool_]]:
    """Return each image's score (n,), in [0, 1] but for rounding, and whether it is referable (n,).

    Args:
        predictions: of one task.
        referable_from: g, the mildest referable grade, in [1, K).

    Raises:
        DataError: the task has no such grade.
    """
    values, grades = checked(predictions.probabilities, predictions.truth)
    if not 1 <= referable_from < values.shape[1]:
        fix = f"use one from 1 to {values.shape[1] - 1}"
        raise DataError("no grade that referable disease can begin with", referable_from, fix)
    return values[:, referable_from:].sum(axis=1), grades >= referable_from


def choose_threshold(scores: Floats, referable: Flags, *, sensitivity: float) -> float:
    """Return the highest threshold that reaches a sensitivity, which is the one with the fewest false positives.

    Args:
        scores: (n,) of validation images.
        referable: (n,).
        sensitivity: to be reached or exceeded, in (0, 1].

    Raises:
        ValueError: a sensitivity outside (0, 1].
        DataError: no image is referable.
    """
    if not 0.0 < sensitivity <= 1.0:
        raise ValueError(f"sensitivity must lie in (0, 1], got {sensitivity}")
    positives = np.sort(scores[referable])[::-1]
    if not len(positives):
        fix = "give validation images with the disease, or a threshold"
        raise DataError("no validation image is referable, so no threshold reaches the sensitivity", sensitivity, fix)
    reached = np.arange(1, len(positives) + 1) / len(positives)
    return float(positives[np.searchsorted(reached, sensitivity, side="left")])


def decide_at_sensitivity(
    models: Sequence[tuple[Predictions, Predictions]], *, referable_from: int, sensitivity: float
) -> Decisions:
    """Decide on the test images of one model, or of several that are pooled, each at a threshold of its own.

    Args:
        models: validation and test predictions of each; no test image occurs twice.
        referable_from: g, see `referable_scores`.
        sensitivity: to be reached on each model's validation images, in (0, 1].

    Raises:
        DataError: see `choose_threshold` and `referable_scores`.
    """
    thresholds, reached = [], []
    for validation, _ in models:
        scores, referable = referable_scores(validation, referable_from=referable_from)
        threshold = choose_threshold(scores, referable, sensitivity=sensitivity)
        thresholds.append(threshold)
        reached.append(float((scores[referable] >= threshold).mean()))
    tests = [test for _, test in models]
    return _decide(tests, thresholds, referable_from=referable_from, stated=sensitivity, reached=reached)


def decide_at_threshold(tests: Sequence[Predictions], *, referable_from: int, threshold: float) -> Decisions:
    """Decide on the test images of one model, or of several that are pooled, at a threshold that was given.

    Args:
        tests: predictions of each model; no image occurs twice.
        referable_from: g, see `referable_scores`.
        threshold: of the score.

    Raises:
        DataError: see `referable_scores`.
    """
    return _decide(tests, [threshold] * len(tests), referable_from=referable_from, stated=None, reached=())


def screening_figures(
    decisions: Decisions,
    *,
    rows: Flags | None = None,
    resamples: int = 1000,
    level: float = 0.95,
    seed: int,
) -> ScreeningFigures:
    """Measure decisions on all of their images, or on some, with intervals over patients.

    The thresholds stay as they are in every resample: the intervals are of the test images, not of the choice. A share
    of none or all is the same in every resample, which would claim that it is certain; there the interval is the exact
    binomial one (Clopper and Pearson 1934) of as many draws as there are patients.

    Args:
        decisions: on n images.
        rows: (n,), the images to measure; None: all of them.
        resamples: R; 0 leaves the intervals out, fewer than two patients make them nan.
        level: of the intervals, in (0, 1).
        seed: of the resamples.
    """
    chosen = np.ones(len(decisions.flagged), dtype=bool) if rows is None else rows
    flagged, referable = decisions.flagged[chosen], decisions.referable[chosen]
    cells = np.stack([flagged & referable, flagged & ~referable, ~flagged & referable, ~flagged & ~referable], axis=1)
    values = _shares(cells.sum(axis=0, keepdims=True).astype(np.float64))
    intervals: dict[str, tuple[float, float]] = {}
    if resamples:
        groups = decisions.groups[chosen]
        samples = _samples(cells, groups, resamples=resamples, seed=seed)
        among = {"sensitivity": referable, "specificity": ~referable, "ppv": flagged, "npv": ~flagged}
        for name in SCREENING_METRICS:
            value = values[name][0]
            if value in (0.0, 1.0):
                patients = len(np.unique(groups[among.get(name, slice(None))]))
                intervals[name] = _exact(value, patients, level)
            else:
                intervals[name] = percentile_interval(samples[name], level)
    metrics = {name: float(values[name][0]) for name in SCREENING_METRICS}
    return ScreeningFigures(len(flagged), int(referable.sum()), metrics, intervals)


def _exact(share: float, draws: int, level: float) -> tuple[float, float]:
    """Return the Clopper-Pearson interval of a share of 0 or 1 of ``draws``, where it has a closed form."""
    reach = ((1.0 - level) / 2.0) ** (1.0 / draws)
    return (reach, 1.0) if share == 1.0 else (0.0, 1.0 - reach)


def _decide(
    tests: Sequence[Predictions],
    thresholds: Sequence[float],
    *,
    referable_from: int,
    stated: float | None,
    reached: Sequence[float],
) -> Decisions:
    found = [referable_scores(test, referable_from=referable_from) for test in tests]
    flagged = [scores >= threshold for (scores, _), threshold in zip(found, thresholds, strict=True)]
    return Decisions(
        stated=stated,
        thresholds=tuple(thresholds),
        reached=tuple(reached),
        flagged=np.concatenate(flagged),
        referable=np.concatenate([referable for _, referable in found]),
        groups=np.concatenate([test.groups for test in tests]),
        image_ids=np.concatenate([test.image_ids for test in tests]),
    )


def _samples(cells: Flags, groups: npt.NDArray[Any], *, resamples: int, seed: int) -> dict[str, Floats]:
    """Return every metric on every resample, (R,) each, of images in one of four cells (n, 4)."""
    names, group_of = np.unique(groups, return_inverse=True)
    if len(names) < 2:
        return {name: np.full(resamples, np.nan) for name in SCREENING_METRICS}
    of_group = np.zeros((len(names), cells.shape[1]))
    np.add.at(of_group, group_of, cells)
    rng = np.random.default_rng(seed)
    drawn = [draw_group_counts(rng, len(names), size) @ of_group for size in chunks(resamples, len(names))]
    return _shares(np.concatenate(drawn))


def _shares(counts: Floats) -> dict[str, Floats]:
    """Return every metric, (R,) each, from the images in each cell (R, 4): both, flagged, referable, neither."""
    both, flagged, referable, neither = counts.T
    divided = {
        "sensitivity": (both, both + referable),
        "specificity": (neither, neither + flagged),
        "ppv": (both, both + flagged),
        "npv": (neither, neither + referable),
        "flagged": (both + flagged, counts.sum(axis=1)),
    }
    return {
        name: np.divide(above, below, out=np.full(len(counts), np.nan), where=below > 0)
        for name, (above, below) in divided.items()
    }
