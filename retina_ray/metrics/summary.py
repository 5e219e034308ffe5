"""What each model reaches on each task of a split, measured from the prediction table."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa

from retina_ray.metrics.bootstrap import bootstrap_intervals
from retina_ray.metrics.calibration import reliability_bins
from retina_ray.metrics.grading import METRICS, confusion_matrix, grading_metrics
from retina_ray.metrics.json_text import null_as_nan
from retina_ray.metrics.probabilities import DEFAULT_BINS
from retina_ray.metrics.table import graded_tasks, select, validate


@dataclass(frozen=True)
class TaskSummary:
    """What one model reaches on one task.

    Attributes:
        model: as in the table.
        task: as in the table.
        n: graded images.
        metrics: value per name of `grading.METRICS`.
        intervals: (low, high) per name; empty where none were computed.
        confusion: K x K images, rows = truth.
        reliability: see `calibration.ReliabilityBins.as_records`; equal-width bins of confidence from 0 to 1.
    """

    model: str
    task: str
    n: int
    metrics: dict[str, float]
    intervals: dict[str, tuple[float, float]]
    confusion: list[list[int]] = field(default_factory=list)
    reliability: list[dict[str, float | None]] = field(default_factory=list)


def as_record(summary: TaskSummary) -> dict[str, Any]:
    """Return a summary for programs, as ``metrics.json`` and the command line's ``--json`` hold it."""
    return {
        "model": summary.model,
        "task": summary.task,
        "n": summary.n,
        **summary.metrics,
        "intervals": summary.intervals,
        "confusion": summary.confusion,
        "reliability": summary.reliability,
    }


def from_record(record: Mapping[str, Any]) -> TaskSummary:
    """Return the summary that `as_record` made, after its way through JSON, where NaN is null."""
    return TaskSummary(
        model=record["model"],
        task=record["task"],
        n=record["n"],
        metrics=null_as_nan({name: record[name] for name in METRICS}),
        intervals={name: (low, high) for name, (low, high) in null_as_nan(record["intervals"]).items()},
        confusion=record["confusion"],
        reliability=record["reliability"],
    )


def summarise(
    table: pa.Table,
    *,
    split: str,
    resamples: int = 1000,
    level: float = 0.95,
    bins: int = DEFAULT_BINS,
    seed: int,
) -> list[TaskSummary]:
    """Measure every model on every task of a split, with intervals over patients.

    Args:
        table: see `PREDICTION_SCHEMA`.
        split: ``train``, ``validation`` or ``test``.
        resamples: bootstrap resamples of patients; 0 leaves the intervals out.
        level: of the intervals, in (0, 1).
        bins: of the calibration errors.
        seed: of the resamples.

    Returns:
        Sorted by task, then model; empty when the split has no graded image.

    Raises:
        DataError: see `validate`.
    """
    table = validate(table)
    summaries = []
    for model, task in graded_tasks(table, split=split):
        rows = select(table, model=model, task=task, split=split)
        metrics = grading_metrics(rows.probabilities, rows.truth, bins=bins)
        intervals = (
            bootstrap_intervals(
                rows.probabilities, rows.truth, rows.groups, resamples=resamples, level=level, bins=bins, seed=seed
            )
            if resamples
            else {}
        )
        confusion = confusion_matrix(rows.probabilities, rows.truth).tolist()
        reliability = reliability_bins(rows.probabilities, rows.truth, bins).as_records()
        summaries.append(TaskSummary(model, task, len(rows.truth), metrics, intervals, confusion, reliability))
    return summaries
