"""What one model gains over another on the same images, with an interval of the difference itself.

What is not here: each model's own numbers (``summary.summarise``).
"""

from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from retina_ray.metrics.bootstrap import bootstrap_samples, percentile_interval, recentred
from retina_ray.metrics.grading import METRICS, grading_metrics
from retina_ray.metrics.probabilities import DEFAULT_BINS
from retina_ray.metrics.table import graded_tasks, select, validate


@dataclass(frozen=True)
class TaskDifference:
    """What one model gains over another on the same images of one task.

    Attributes:
        model: the one that is judged.
        baseline: the one it is compared with.
        task: as in the table.
        n: graded images that both have predictions for.
        metrics: value of ``model`` minus that of ``baseline`` per name of `grading.METRICS`.
        intervals: (low, high) of that difference per name, from paired resamples; empty without resamples.
    """

    model: str
    baseline: str
    task: str
    n: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]


def paired_differences(
    table: pa.Table,
    *,
    baseline: str,
    split: str,
    resamples: int = 1000,
    level: float = 0.95,
    bins: int = DEFAULT_BINS,
    seed: int,
) -> list[TaskDifference]:
    """Compare every other model with the baseline on the images that both have, by a paired bootstrap over patients.

    The models err on the same hard images, so the interval of the difference is narrower than the two models' own
    intervals suggest, and is the one to judge a gain by.

    Args:
        table: see `PREDICTION_SCHEMA`.
        baseline: model to compare with.
        split: ``train``, ``validation`` or ``test``.
        resamples: bootstrap resamples of patients; 0 leaves the intervals out.
        level: of the intervals, in (0, 1).
        bins: of the calibration errors.
        seed: of the resamples.

    Returns:
        Sorted by task, then model; without the tasks for which the baseline has no predictions.

    Raises:
        DataError: see `validate`.
    """
    table = validate(table)
    pairs = graded_tasks(table, split=split)
    differences = []
    for model, task in pairs:
        if model == baseline or (baseline, task) not in pairs:
            continue
        ours = select(table, model=model, task=task, split=split)
        theirs = select(table, model=baseline, task=task, split=split)
        shared, left, right = np.intersect1d(ours.image_ids, theirs.image_ids, return_indices=True)
        if not len(shared):
            continue
        sides = [(ours.probabilities[left], ours.truth[left]), (theirs.probabilities[right], theirs.truth[right])]
        judged, before = (grading_metrics(*side, bins=bins) for side in sides)
        gains = {name: judged[name] - before[name] for name in METRICS}
        intervals: dict[str, tuple[float, float]] = {}
        if resamples:
            samples, samples_before = (
                bootstrap_samples(*side, ours.groups[left], resamples=resamples, bins=bins, seed=seed) for side in sides
            )
            resampled = {name: recentred(name, samples[name] - samples_before[name], gains[name]) for name in METRICS}
            intervals = {name: percentile_interval(resampled[name], level) for name in METRICS}
        differences.append(TaskDifference(model, baseline, task, len(shared), gains, intervals))
    return differences
