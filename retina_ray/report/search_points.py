"""What the figures of a search show, as numbers: values by trial, curves, axes, importance.

Values are in the unit of their `quantity`. What is not here: how they are drawn (``search_figures``).
"""

import math
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import optuna
from matplotlib.ticker import MaxNLocator
from optuna.distributions import BaseDistribution, CategoricalDistribution, IntDistribution, json_to_distribution

from retina_ray.report.quantities import quantity
from retina_ray.search.goals import MEANS, Goal
from retina_ray.search.journal import State, TrialRecord
from retina_ray.search.study import finished_study

STATES: tuple[State, ...] = ("complete", "stopped", "running", "failed")
"""In the order in which legends and counts name them."""

IMPORTANCE_FROM = 16
"""Trials with a value from which importance is told: with fewer, the first of five known ones is often wrong."""

_TICKS = 4
"""Steps of a linear axis, at most."""

_NEAR = 0.09
"""Share of an axis within which the number at its end leaves no room for another."""


class LeftOutError(ValueError):
    """A figure that cannot be drawn from these trials; its text is the reason."""


@dataclass(frozen=True)
class Point:
    """A trial's last value.

    Attributes:
        number: of the trial.
        state: of the trial.
        value: finite.
    """

    number: int
    state: State
    value: float


@dataclass(frozen=True)
class Curve:
    """A trial's values by epoch.

    Attributes:
        number: of the trial.
        state: of the trial.
        epochs: of its reports.
        values: as many, NaN where there is none.
    """

    number: int
    state: State
    epochs: list[float]
    values: list[float]


@dataclass(frozen=True)
class Axis:
    """Where values lie on an axis of a figure.

    Attributes:
        label: what it shows.
        low: least position.
        high: largest position, not less.
        logarithmic: whether its scale is; then all positions are positive.
        whole: whether it shows whole numbers only.
        choices: of a parameter that is no number, whose positions are their places; else empty.
    """

    label: str
    low: float
    high: float
    logarithmic: bool = False
    whole: bool = False
    choices: tuple[str, ...] = ()

    def position(self, value: Any) -> float:
        """Return where a value lies."""
        return float(self.choices.index(str(value))) if self.choices else float(value)

    def share(self, position: float) -> float:
        """Return how far a position is from the low to the high end, in [0, 1]; the middle where they are one."""
        low, high, at = map(self._bent, (self.low, self.high, position))
        return (at - low) / (high - low) if high > low else 0.5

    def ticks(self) -> list[tuple[float, str]]:
        """Return positions that are easy to read, with what stands there."""
        if self.choices:
            return [(float(place), choice) for place, choice in enumerate(self.choices)]
        linear = MaxNLocator(_TICKS, integer=self.whole)
        inner = self._steps() if self.logarithmic else list(linear.tick_values(self.low, self.high))
        free = [value for value in inner if _NEAR < self.share(value) < 1.0 - _NEAR and self.low < self.high]
        # Adding 0.0 turns a negative zero into zero.
        return [(float(value), f"{value + 0.0:.3g}") for value in sorted({self.low, self.high, *free})]

    def _steps(self) -> list[float]:
        """Return 1, 2, 5, 10, 20, ... over the range; where these are too many, powers of ten alone."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        if len(powers) <= 3:
            return [float(f"{step}e{power}") for power in powers for step in (1, 2, 5)]
        return [float(f"1e{power}") for power in powers][:: 1 + len(powers) // 6]

    def _bent(self, position: float) -> float:
        return math.log(position) if self.logarithmic else position


@dataclass(frozen=True)
class Coordinates:
    """Trials as lines over parallel axes.

    Attributes:
        axes: a parameter each, then a goal each.
        lines: (trials, axes) shares in [0, 1], NaN where a trial has no such parameter.
        values: (trials,) of the first goal; lines are in their order, the best last.
        numbers: of the trials.
    """

    axes: list[Axis]
    lines: npt.NDArray[np.float64]
    values: npt.NDArray[np.float64]
    numbers: list[int]


def scaled(trial: TrialRecord, metric: str) -> float | None:
    """Return a trial's last value of a figure in its unit, or None where it is no number."""
    value = trial.value(metric)
    return None if value is None or not math.isfinite(value) else value * quantity(metric).scale


def last_values(trials: Sequence[TrialRecord], metric: str) -> list[Point]:
    """Return the last value of every trial that has one, by number."""
    found = [(trial, scaled(trial, metric)) for trial in sorted(trials, key=lambda trial: trial.number)]
    return [Point(trial.number, trial.state, value) for trial, value in found if value is not None]


def best_so_far(points: Sequence[Point], goal: Goal) -> list[tuple[int, float]]:
    """Return the best value of the trials up to each one that was completed or stopped, by its number."""
    found: list[tuple[int, float]] = []
    for point in points:
        if point.state in ("complete", "stopped"):
            better = max if goal.mode == "max" else min
            found.append((point.number, better(point.value, found[-1][1]) if found else point.value))
    return found


def curves(trials: Sequence[TrialRecord], metric: str) -> list[Curve]:
    """Return the values by epoch of every trial that has reported one."""
    scale = quantity(metric).scale
    found = []
    for trial in trials:
        values = [report.figures.get(metric) for report in trial.reports]
        numbers = [math.nan if value is None else value * scale for value in values]
        if any(map(math.isfinite, numbers)):
            found.append(Curve(trial.number, trial.state, [report.epoch for report in trial.reports], numbers))
    return found


def short_names(names: Sequence[str]) -> dict[str, str]:
    """Return what parameters are called where room is scarce: without ``method.`` where that leaves them distinct."""
    short = {name: name.removeprefix("method.") for name in names}
    return short if len(set(short.values())) == len(short) else {name: name for name in names}


def parameter_axes(trials: Sequence[TrialRecord]) -> dict[str, Axis]:
    """Return an axis for each parameter that any trial has, by name: as wide as its ranges and its values."""
    distributions: dict[str, list[BaseDistribution]] = {}
    for trial in trials:
        for name, text in trial.distributions.items():
            distributions.setdefault(name, []).append(json_to_distribution(text))
    labels = short_names(list(distributions))
    return {name: _axis(labels[name], name, those, trials) for name, those in distributions.items()}


def _axis(label: str, name: str, those: Sequence[BaseDistribution], trials: Sequence[TrialRecord]) -> Axis:
    values = [trial.params[name] for trial in trials if name in trial.params]
    choices = [choice for each in those if isinstance(each, CategoricalDistribution) for choice in each.choices]
    if choices:
        texts = tuple(dict.fromkeys(map(str, (*choices, *values))))
        return Axis(label, 0.0, len(texts) - 1.0, choices=texts)
    ends = [float(end) for each in those for end in (getattr(each, "low"), getattr(each, "high"))]  # noqa: B009
    low, high = min(*ends, *values), max(*ends, *values)
    return Axis(
        label,
        low,
        high,
        logarithmic=low > 0.0 and any(getattr(each, "log", False) for each in those),
        whole=all(isinstance(each, IntDistribution) for each in those),
    )


def coordinates(trials: Sequence[TrialRecord], goals: Sequence[Goal]) -> Coordinates:
    """Return the trials that have every goal's value, as lines over parameters and goals.

    Raises:
        LeftOutError: fewer than two have.
    """
    measured = _measured([trial for trial in trials if trial.state != "failed"], goals)
    if len(measured) < 2:
        raise LeftOutError(f"{_trials(len(measured))} with a value, 2 are needed")
    # The best last, so that it is drawn over the others.
    measured.sort(key=lambda each: goals[0].gain(each[1][0]))
    values = np.array([own for _, own in measured])
    parameters = parameter_axes(trials)
    ends = [
        Axis(quantity(goal.metric).label, low, high)
        for goal, low, high in zip(goals, values.min(axis=0).tolist(), values.max(axis=0).tolist(), strict=True)
    ]
    lines = [
        [_share(axis, trial, name) for name, axis in parameters.items()]
        + [axis.share(value) for axis, value in zip(ends, own, strict=True)]
        for trial, own in measured
    ]
    return Coordinates(
        axes=[*parameters.values(), *ends],
        lines=np.array(lines),
        values=values[:, 0],
        numbers=[trial.number for trial, _ in measured],
    )


def _share(axis: Axis, trial: TrialRecord, name: str) -> float:
    return axis.share(axis.position(trial.params[name])) if name in trial.params else math.nan


def _measured(trials: Sequence[TrialRecord], goals: Sequence[Goal]) -> list[tuple[TrialRecord, list[float]]]:
    """Return the trials that have every goal's value, with those."""
    found = []
    for trial in trials:
        values = [value for goal in goals if (value := scaled(trial, goal.metric)) is not None]
        if len(values) == len(goals):
            found.append((trial, values))
    return found


def importance(trials: Sequence[TrialRecord], goal: Goal) -> dict[str, float]:
    """Return the share of each parameter in the spread of a goal's values (fANOVA), the largest first; sum 1.

    Parameters that only some trials have are left out.

    Raises:
        LeftOutError: too few trials, no parameter that all have, or values that are all the same.
    """
    study = finished_study(trials, [goal])
    if len(study.trials) < IMPORTANCE_FROM:
        count = f"{_trials(len(study.trials))} completed or stopped with {goal.metric}"
        raise LeftOutError(f"{count}, {IMPORTANCE_FROM} are needed")
    if len({trial.value for trial in study.trials}) == 1:
        raise LeftOutError(f"every trial has the same {goal.metric}")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
        evaluator = optuna.importance.FanovaImportanceEvaluator(seed=0)
    found = optuna.importance.get_param_importances(study, evaluator=evaluator)
    if not found:
        raise LeftOutError("there is no parameter that every trial has")
    return dict(sorted(found.items(), key=lambda item: (-item[1], item[0])))


def task_metrics(metric: str, trials: Sequence[TrialRecord], tasks: Sequence[str]) -> dict[str, str]:
    """Return the figures by task that a goal is the mean of; empty where it is none, or of one task."""
    if metric not in MEANS:
        return {}
    found = {task: f"{metric}_{task}" for task in tasks}
    known = {task: name for task, name in found.items() if last_values(trials, name)}
    return known if len(known) > 1 else {}


def stage_counts(trials: Sequence[TrialRecord]) -> dict[str, Mapping[str, int]]:
    """Return how often each stage was ``trained`` and ``reused``; the folds of a cross-validation count one by one."""
    counts: dict[str, dict[str, int]] = {}
    for trial in trials:
        for name, how in trial.stages.items():
            stage = name.partition("/")[0]
            counts.setdefault(stage, {"trained": 0, "reused": 0})[how] += 1
    return dict(counts)


def _trials(number: int) -> str:
    return f"{number} trial" if number == 1 else f"{number} trials"
