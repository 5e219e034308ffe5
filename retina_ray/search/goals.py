"""What a search optimises, and the figures of a trial that it is judged by."""

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from retina_ray.errors import ConfigError
from retina_ray.search.space import SearchSpace

Mode = Literal["max", "min"]

PREFIX = "validation_"
MEANS = ("accuracy", "kappa", "kappa_quadratic", "auroc", "ece", "loss")
"""Figures of single tasks, ``kappa_dr``, that also exist as the mean over the tasks, ``kappa``."""

LOSS_WEIGHTS = ("method.loss_weight.", "method.loss.")
"""How the paths of the weights of a method's losses begin."""

_SECONDS = "s"
"""The time that a validation took, which is no figure of the network."""

_WORST = -1e12  # finite, so that percentiles can be taken among others

_SMALLER_IS_BETTER = ("criterion", "ece", "loss")


@dataclass(frozen=True)
class Goal:
    """A figure and its better end.

    Attributes:
        metric: name of the figure, such as ``accuracy`` or ``kappa_dr``.
        mode: whether more or less of it is better.
    """

    metric: str
    mode: Mode

    @property
    def direction(self) -> Literal["maximize", "minimize"]:
        """Optuna's word for it."""
        return "maximize" if self.mode == "max" else "minimize"

    def gain(self, value: float) -> float:
        """Return the value with its sign such that more is better; NaN is worse than any figure."""
        if math.isnan(value):
            return _WORST
        return value if self.mode == "max" else -value


def goals_of(space: SearchSpace, metrics: str | None) -> tuple[Goal, ...]:
    """Return what to optimise: the metrics the user names, else the space's.

    Args:
        space: with its own metrics.
        metrics: names separated by commas, or None. Of ``criterion``, losses and calibration errors less is better, of
            everything else more.

    Raises:
        ConfigError: neither the user nor the space names one, or a mode is neither ``max`` nor ``min``.
    """
    if metrics is not None:
        names = [name.strip() for name in metrics.split(",")]
        if not all(names) or len(set(names)) != len(names):
            raise ConfigError("not a list of metrics", repr(metrics), "write one, or several, such as kappa,ece")
        return tuple(Goal(name, _usual_mode(name)) for name in names)
    names, modes = space.metric.split(","), space.mode.split(",")
    if not all(names) or len(names) != len(modes):
        fix = "give --metric, or define METRIC and MODE beside the function"
        raise ConfigError("the search space does not say what to optimise", space.name, fix)
    for mode in modes:
        if mode not in ("max", "min"):
            raise ConfigError("MODE of the search space is neither max nor min", repr(mode), "mend it")
    return tuple(Goal(name, mode) for name, mode in zip(names, modes, strict=True))  # type: ignore[arg-type]


def _usual_mode(metric: str) -> Mode:
    return "min" if metric.startswith(_SMALLER_IS_BETTER) else "max"


def require_comparable(goals: Sequence[Goal], drawn: Iterable[Mapping[str, Any]]) -> None:
    """Check that a goal means the same in every trial.

    Args:
        goals: what to optimise.
        drawn: some suggestions, values by dotted path.

    Raises:
        ConfigError: the criterion, a weighted sum of losses, is to be optimised over its own weights.
    """
    weights = sorted({path for overrides in drawn for path in overrides if path.startswith(LOSS_WEIGHTS)})
    if weights and any(goal.metric == "criterion" for goal in goals):
        what = "the criterion is the loss as a trial weighs it, and the least weight would win"
        raise ConfigError(what, f"the space varies {', '.join(weights)}", "optimise loss, which has no weights")


def require_figures(goals: Sequence[Goal], found: Mapping[str, Any]) -> None:
    """Check that trials report what is to be optimised.

    Raises:
        ConfigError: one of the metrics is not among the figures; the nearest is named.
    """
    for goal in goals:
        if goal.metric not in found:
            near = difflib.get_close_matches(goal.metric, found, n=1, cutoff=0.0)
            hint = f"did you mean {near[0]}? " if near else ""
            raise ConfigError("no trial reports the metric", goal.metric, f"{hint}There are {', '.join(sorted(found))}")


def figures(histories: Iterable[Sequence[Mapping[str, Any]]], tasks: Sequence[str]) -> dict[str, float]:
    """Return what the networks that a trial would keep reach on validation images.

    Args:
        histories: epoch records of each final network so far, at least one each. The record that counts is that of the
            epoch with the least criterion, whose weights are kept.
        tasks: names of all tasks.

    Returns:
        The validation figures by name, ``criterion`` summed over the networks, and the means over tasks of `MEANS`.
    """
    found: dict[str, float] = {}
    criterion = 0.0
    for history in histories:
        kept = min(history, key=lambda record: (math.isnan(c := record[f"{PREFIX}criterion"]), c))
        named = {name.removeprefix(PREFIX): value for name, value in kept.items() if name.startswith(PREFIX)}
        found |= {name: value for name, value in named.items() if name != _SECONDS}
        criterion += kept[f"{PREFIX}criterion"]
    found["criterion"] = criterion
    for name in MEANS:
        values = [found[f"{name}_{task}"] for task in tasks if f"{name}_{task}" in found]
        if values:
            found[name] = math.fsum(values) / len(values)
    return found
