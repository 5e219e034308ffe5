"""What the runs of a grid reach: a mean over seeds, its spread, and an interval.

The folds of a cross-validation are pooled: a seed has one figure over all out-of-fold predictions. The interval of a
figure that is measured from predictions is over patients drawn anew, the same ones for every seed and row, so that the
difference of two rows is a paired bootstrap. Other figures, of a run's test stage, have one value per seed, the mean of
its folds, and the interval is Student's over the seeds.
"""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
import pyarrow as pa
import pyarrow.compute as pc
from scipy import stats

from retina_ray.metrics.bootstrap import INFLATED, bootstrap_samples, percentile_interval, recentred
from retina_ray.metrics.grading import grading_metrics
from retina_ray.metrics.probabilities import DEFAULT_BINS
from retina_ray.metrics.table import Predictions, pool_runs, select
from retina_ray.reproduce.experiment import Column

Floats = npt.NDArray[np.float64]


@dataclass(frozen=True)
class Outcome:
    """What a run left behind.

    Attributes:
        predictions: the run's prediction table; None where it stopped before its test.
        model: what its final networks' predictions are filed under.
        figures: of its stages, by stage and name.
        external: the final networks' predictions on the external data set, with two grades; None without one.
    """

    predictions: pa.Table | None
    model: str
    figures: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    external: pa.Table | None = None


SeedOutcomes = Sequence[Sequence[Outcome]]
"""An arm's outcomes: per seed those of its folds, of which there is one without cross-validation."""


@dataclass(frozen=True)
class Settings:
    """How figures are measured.

    Attributes:
        resamples: bootstrap resamples of patients; 0 leaves these intervals out.
        level: coverage of the intervals, in (0, 1).
        bins: of calibration errors.
    """

    resamples: int = 1000
    level: float = 0.95
    bins: int = DEFAULT_BINS


@dataclass(frozen=True)
class Measured:
    """A figure of a row.

    Attributes:
        values: (S,) one per seed.
        interval: (low, high) of their mean; NaN where it is undefined.
        samples: (R,) of the mean on resampled patients; empty where it was not resampled.
        images: graded images behind a seed's figure; 0 where that is not known.
    """

    values: Floats
    interval: tuple[float, float]
    samples: Floats
    images: int

    @property
    def mean(self) -> float:
        """Mean over the seeds."""
        return float(self.values.mean())

    @property
    def spread(self) -> float:
        """Standard deviation over the seeds, NaN for a single one."""
        return float(self.values.std(ddof=1)) if len(self.values) > 1 else math.nan


def measured(outcomes: SeedOutcomes, column: Column, *, model: str, settings: Settings) -> Measured:
    """Return a column's figure of an arm.

    Args:
        outcomes: of the arm.
        column: which figure.
        model: whose predictions it is measured from.
        settings: how.

    Raises:
        DataError: there are no such predictions.
    """
    if column.stage:
        return _of_stages(outcomes, column, settings)
    predictions = [_predictions(folds, column, model) for folds in outcomes]
    images = len(predictions[0].truth)
    values = np.array(
        [grading_metrics(each.probabilities, each.truth, bins=settings.bins)[column.metric] for each in predictions]
    )
    if not settings.resamples:
        return Measured(values, (math.nan, math.nan), np.zeros(0), images)
    samples = np.mean([_resampled(each, column.metric, settings) for each in predictions], axis=0)
    samples = recentred(column.metric, samples, float(values.mean()))
    low, high = percentile_interval(samples, settings.level)
    return Measured(values, (max(low, 0.0) if column.metric in INFLATED else low, high), samples, images)


def pooled(folds: Sequence[Outcome], *, task: str, model: str) -> Predictions:
    """Return a model's test predictions of a seed, of all its folds together.

    Raises:
        DataError: there are none, or two folds test the same image.
    """
    tables = []
    for number, fold in enumerate(folds):
        assert fold.predictions is not None  # an arm that is measured by predictions tests
        wanted = (pc.field("split") == "test") & (pc.field("task") == task) & (pc.field("model") == model)
        tables.append((f"fold {number}", fold.predictions.filter(wanted)))
    return select(pool_runs(tables), model=model, task=task, split="test")


def gain(ours: Measured, theirs: Measured, column: Column, settings: Settings) -> Measured:
    """Return what one row's figure is above another's, seed by seed and resample by resample.

    Args:
        ours: of the row that is judged.
        theirs: of the row it is compared with, over the same seeds.
        column: which figure.
        settings: how it was measured.
    """
    values = ours.values - theirs.values
    if not len(ours.samples):
        return Measured(values, _student(values, settings.level), np.zeros(0), ours.images)
    samples = recentred(column.metric, ours.samples - theirs.samples, float(values.mean()))
    return Measured(values, percentile_interval(samples, settings.level), samples, ours.images)


def _of_stages(outcomes: SeedOutcomes, column: Column, settings: Settings) -> Measured:
    values = np.array([np.mean([fold.figures[column.stage][column.metric] for fold in folds]) for folds in outcomes])
    return Measured(values, _student(values, settings.level), np.zeros(0), 0)


def _student(values: Floats, level: float) -> tuple[float, float]:
    """Return the interval of the mean of (S,) independent values, NaN for fewer than two."""
    if len(values) < 2:
        return math.nan, math.nan
    reach = stats.t.ppf((1.0 + level) / 2.0, len(values) - 1) * values.std(ddof=1) / math.sqrt(len(values))
    return float(values.mean() - reach), float(values.mean() + reach)


def _predictions(folds: Sequence[Outcome], column: Column, model: str) -> Predictions:
    if column.images == "test":
        return pooled(folds, task=column.task, model=model)
    (only,) = folds  # every fold's networks would grade all of these images
    assert only.external is not None  # the arm says so
    return select(only.external, model=only.model, task=column.task, split="test")


def _resampled(predictions: Predictions, metric: str, settings: Settings) -> Floats:
    return bootstrap_samples(
        predictions.probabilities,
        predictions.truth,
        predictions.groups,
        resamples=settings.resamples,
        bins=settings.bins,
        seed=0,  # the same patients for every seed, fold and row
    )[metric]
