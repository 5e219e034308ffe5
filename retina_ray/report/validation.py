"""An external validation: referral curves, operating points and subgroups of every model and task, and their records.

Everything is measured on test images; validation images choose thresholds and nothing else. What is not here: the
measures (``metrics``), what is written of them (``validation_files``) and their drawing (``validation_figures``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from retina_ray.bundle_statistics import referable_from
from retina_ray.data.schema import Task
from retina_ray.errors import ConfigError, DataError
from retina_ray.metrics.operating_points import (
    Decisions,
    ScreeningFigures,
    decide_at_sensitivity,
    decide_at_threshold,
    screening_figures,
)
from retina_ray.metrics.referral import REFERRAL_METRICS, SHARES, ReferralCurve, Uncertainty, referral_curve
from retina_ray.metrics.subgroups import UNKNOWN, SubgroupSummary, summarise_subgroups
from retina_ray.metrics.summary import as_record as summary_record
from retina_ray.metrics.table import Predictions, graded_tasks, merge_shards, pool_runs, select

Properties = Mapping[str, Mapping[str, str]]
"""By property (a subgroup's column): the value of each image, by its id."""


@dataclass(frozen=True)
class Measuring:
    """What is asked of a validation.

    Attributes:
        tasks: to measure; empty: all.
        referable_from: mildest grade that calls for a referral; None: what serving refers, see `referable_from`.
        sensitivities: to choose thresholds for, in (0, 1].
        thresholds: of the score, that were given.
        uncertainty: what images are referred by.
        resamples, level, bins, seed: as for `summarise`.
    """

    tasks: tuple[str, ...] = ()
    referable_from: int | None = None
    sensitivities: tuple[float, ...] = (0.9,)
    thresholds: tuple[float, ...] = ()
    uncertainty: Uncertainty = "max"
    resamples: int = 1000
    level: float = 0.95
    bins: int = 15
    seed: int = 0


@dataclass(frozen=True)
class Referral:
    """The referral curve of one model and task."""

    model: str
    task: str
    curve: ReferralCurve


@dataclass(frozen=True)
class OperatingPoint:
    """A threshold of one model and task, on all test images or on those of a subgroup.

    Attributes:
        column, value: the subgroup; both empty for all images.
        referable_from: mildest grade that counts as referable.
        decisions: on all images.
        figures: on the subgroup's.
    """

    model: str
    task: str
    column: str
    value: str
    referable_from: int
    decisions: Decisions
    figures: ScreeningFigures


@dataclass(frozen=True)
class Validation:
    """What was measured; each sorted by task, then model."""

    referrals: list[Referral]
    points: list[OperatingPoint]
    subgroups: list[SubgroupSummary]


def measure(runs: Sequence[tuple[str, pa.Table]], properties: Properties, asked: Measuring) -> Validation:
    """Measure the models of one run, or of several that are pooled.

    Args:
        runs: name and prediction table of each, see `PREDICTION_SCHEMA`, with its test images and, where thresholds are
            to be chosen, its validation images. No two test the same image; each chooses thresholds of its own.
        properties: whose values make subgroups.
        asked: what is measured, and how.

    Raises:
        ConfigError: no image is graded for a task that is asked for, or the task has no such grade.
        DataError: no validation image is referable, or runs test the same image.
    """
    splits = {split: [(name, _once(rows, split)) for name, rows in runs] for split in ("validation", "test")}
    table = pool_runs(splits["test"])
    pairs = graded_tasks(table, split="test")
    known = sorted({task for _, task in pairs})
    for task in asked.tasks:
        if task not in known:
            raise ConfigError("no test image has a grade for the task", task, f"choose of: {', '.join(known)}")
    wanted = pa.array(asked.tasks or known, pa.string())
    table = table.filter(pc.field("task").isin(wanted))
    validation = Validation([], [], [])
    for model, task in graded_tasks(table, split="test"):
        rows = select(table, model=model, task=task, split="test")
        curve = referral_curve(
            rows.probabilities,
            rows.truth,
            rows.groups,
            uncertainty=asked.uncertainty,
            resamples=asked.resamples,
            level=asked.level,
            seed=asked.seed,
        )
        validation.referrals.append(Referral(model, task, curve))
        first = _referable_from(task, rows.probabilities.shape[1], asked.referable_from)
        for decisions in _decisions(splits["validation"], splits["test"], model, task, first, asked):
            validation.points.extend(_points(model, task, first, decisions, properties, asked))
    for column, value_of in properties.items():
        found = summarise_subgroups(
            table,
            column=column,
            value_of=value_of,
            split="test",
            resamples=asked.resamples,
            level=asked.level,
            bins=asked.bins,
            seed=asked.seed,
        )
        validation.subgroups.extend(found)
    return validation


def _once(table: pa.Table, split: str) -> pa.Table:
    """Return the rows of a split, those that are repeated once."""
    return merge_shards([table.filter(pc.field("split") == split)])


def _decisions(
    validations: Sequence[tuple[str, pa.Table]],
    tests: Sequence[tuple[str, pa.Table]],
    model: str,
    task: str,
    first: int,
    asked: Measuring,
) -> list[Decisions]:
    """Return what each threshold makes of a model's test images, those of all runs that have some pooled."""
    own = [place for place, (_, table) in enumerate(tests) if (model, task) in graded_tasks(table, split="test")]
    tested = [select(tests[place][1], model=model, task=task, split="test") for place in own]
    made: list[Decisions] = []
    if asked.sensitivities:
        chosen_on = [_validation_rows(*validations[place], model, task, first) for place in own]
        pairs = list(zip(chosen_on, tested, strict=True))
        made += [
            decide_at_sensitivity(pairs, referable_from=first, sensitivity=sensitivity)
            for sensitivity in asked.sensitivities
        ]
    return made + [decide_at_threshold(tested, referable_from=first, threshold=each) for each in asked.thresholds]


def _points(
    model: str, task: str, first: int, decisions: Decisions, properties: Properties, asked: Measuring
) -> list[OperatingPoint]:
    """Return the operating point on all test images, then on those of every subgroup."""
    points = []
    for column, value, inside in _parts(decisions, properties):
        figures = screening_figures(
            decisions, rows=inside, resamples=asked.resamples, level=asked.level, seed=asked.seed
        )
        points.append(OperatingPoint(model, task, column, value, first, decisions, figures))
    return points


def _referable_from(task: str, num_grades: int, asked: int | None) -> int:
    if asked is None:
        return referable_from(Task(name=task, grades=tuple(str(grade) for grade in range(num_grades))))
    if not 1 <= asked < num_grades:
        fix = f"use --referable-from 1 to {num_grades - 1}, or --task for another task alone"
        raise ConfigError(f"referable disease cannot begin with this grade of task {task}", asked, fix)
    return asked


def _validation_rows(name: str, table: pa.Table, model: str, task: str, first: int) -> Predictions:
    found = (model, task) in graded_tasks(table, split="validation")
    rows = select(table, model=model, task=task, split="validation") if found else None
    if rows is None or not (rows.truth >= first).any():
        fix = "give a threshold instead of a sensitivity, or measure other tasks alone"
        raise DataError(
            f"no validation image has a grade of {task} from {first} on, to choose a threshold by", name, fix
        )
    return rows


def _parts(decisions: Decisions, properties: Properties) -> list[tuple[str, str, np.ndarray]]:
    """Return all images, then each subgroup's: its column, its value, and which of the images (n,) are in it.

    A property that all images share makes no part: that would be all images again.
    """
    parts = [("", "", np.ones(len(decisions.flagged), dtype=bool))]
    for column, value_of in properties.items():
        values = np.array([value_of.get(name) or UNKNOWN for name in decisions.image_ids.tolist()])
        if len(found := np.unique(values)) > 1:
            parts += [(column, str(value), values == value) for value in found]
    return parts


def as_record(validation: Validation) -> dict[str, Any]:
    """Return a validation for programs, as the command line's ``--json`` writes it."""
    return {
        "referral": [referral_record(each) for each in validation.referrals],
        "operating_points": [point_record(each) for each in validation.points],
        "subgroups": [_subgroup_record(each) for each in validation.subgroups],
    }


def referral_record(referral: Referral) -> dict[str, Any]:
    """Return a referral curve with its bands, a list per metric over ``share_referred``."""
    curve = referral.curve
    return {
        "model": referral.model,
        "task": referral.task,
        "n": curve.n,
        "share_referred": SHARES.tolist(),
        **{name: curve.values[name].tolist() for name in REFERRAL_METRICS},
        "bands": {name: band.tolist() for name, band in curve.bands.items()},
        "areas": curve.areas,
        "area_intervals": curve.area_intervals,
    }


def point_record(point: OperatingPoint) -> dict[str, Any]:
    """Return an operating point: how its thresholds came about, and its figures."""
    return {
        "model": point.model,
        "task": point.task,
        "subgroup": point.column,
        "value": point.value,
        "referable_from": point.referable_from,
        "stated_sensitivity": point.decisions.stated,
        "thresholds": list(point.decisions.thresholds),
        "validation_sensitivity": list(point.decisions.reached),
        **asdict(point.figures),
    }


def _subgroup_record(subgroup: SubgroupSummary) -> dict[str, Any]:
    return {
        "subgroup": subgroup.column,
        "value": subgroup.value,
        "patients": subgroup.patients,
        "small": subgroup.small,
        **summary_record(subgroup.summary),
        "gaps": subgroup.gaps,
        "gap_intervals": subgroup.gap_intervals,
    }
