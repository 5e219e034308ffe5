"""How well a model does on parts of the test images (by source, by eye, by any property), and what sets them apart.

What is not here: where a property is looked up (the caller says what each image's is).
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc

from retina_ray.metrics.bootstrap import gap_samples, percentile_interval, recentred
from retina_ray.metrics.grading import METRICS, grading_metrics
from retina_ray.metrics.probabilities import DEFAULT_BINS
from retina_ray.metrics.summary import TaskSummary, summarise
from retina_ray.metrics.table import Predictions, graded_tasks, select, validate

SMALL = 30
"""Patients below which a subgroup is marked: intervals by resampling so few are too narrow."""

UNKNOWN = "(unknown)"
"""Value of the images that have none."""


@dataclass(frozen=True)
class SubgroupSummary:
    """What one model reaches on the images of one task that share a value.

    Attributes:
        column: the property, such as ``source``.
        value: that the images share; `UNKNOWN` where they have none.
        patients: of the images.
        summary: as of all images.
        gaps: value on these images minus that on all others, per name of `grading.METRICS`; empty where there are no
            others.
        gap_intervals: (low, high) of that difference per name, see `bootstrap.gap_samples`; empty without resamples.
    """

    column: str
    value: str
    patients: int
    summary: TaskSummary
    gaps: dict[str, float]
    gap_intervals: dict[str, tuple[float, float]]

    @property
    def small(self) -> bool:
        """Whether it has fewer than `SMALL` patients."""
        return self.patients < SMALL


def summarise_subgroups(
    table: pa.Table,
    *,
    column: str,
    value_of: Mapping[str, str],
    split: str,
    resamples: int = 1000,
    level: float = 0.95,
    bins: int = DEFAULT_BINS,
    seed: int,
) -> list[SubgroupSummary]:
    """Measure every model on every task for each value of a property, and the gap to all other images.

    Args:
        table: see `PREDICTION_SCHEMA`.
        column: what the property is called.
        value_of: the property by image id; an image that is not in it, or has an empty value, counts as `UNKNOWN`.
        split: ``train``, ``validation`` or ``test``.
        resamples: bootstrap resamples of patients; 0 leaves the intervals out.
        level: of the intervals, in (0, 1).
        bins: of the calibration errors.
        seed: of the resamples.

    Returns:
        Sorted by task, then model, then value.

    Raises:
        DataError: see `validate`.
    """
    table = validate(table)
    found = []
    for model, task in graded_tasks(table, split=split):
        rows = select(table, model=model, task=task, split=split)
        values = np.array([value_of.get(name) or UNKNOWN for name in rows.image_ids.tolist()])
        for value in np.unique(values).tolist():
            inside = values == value
            wanted = pc.field("image_id").isin(rows.image_ids[inside].tolist())
            part = table.filter((pc.field("model") == model) & (pc.field("task") == task) & wanted)
            (summary,) = summarise(part, split=split, resamples=resamples, level=level, bins=bins, seed=seed)
            gaps = _gaps(rows, inside, bins=bins)
            intervals = _gap_intervals(rows, inside, gaps, resamples=resamples, level=level, bins=bins, seed=seed)
            patients = len(np.unique(rows.groups[inside]))
            found.append(SubgroupSummary(column, value, patients, summary, gaps, intervals))
    return found


def _gaps(rows: Predictions, inside: npt.NDArray[np.bool_], *, bins: int) -> dict[str, float]:
    if inside.all():
        return {}
    here, elsewhere = (
        grading_metrics(rows.probabilities[side], rows.truth[side], bins=bins) for side in (inside, ~inside)
    )
    return {name: here[name] - elsewhere[name] for name in METRICS}


def _gap_intervals(
    rows: Predictions,
    inside: npt.NDArray[np.bool_],
    gaps: Mapping[str, float],
    *,
    resamples: int,
    level: float,
    bins: int,
    seed: int,
) -> dict[str, tuple[float, float]]:
    if not (gaps and resamples):
        return {}
    samples = gap_samples(
        rows.probabilities, rows.truth, rows.groups, inside, resamples=resamples, bins=bins, seed=seed
    )
    return {name: percentile_interval(recentred(name, samples[name], gaps[name]), level) for name in METRICS}
