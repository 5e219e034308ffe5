"""The figures of a search's page with their captions; what its trials do not allow becomes a note.

What is not here: the numbers (``search_points``) and how they are drawn (``search_figures``).
"""

from collections.abc import Callable
from dataclasses import dataclass

from retina_ray.report import search_figures
from retina_ray.report.html import InlineFigure, InlineImage, figure_uri
from retina_ray.report.quantities import quantity
from retina_ray.report.search_data import SearchData, named
from retina_ray.report.search_points import (
    Axis,
    LeftOutError,
    coordinates,
    curves,
    importance,
    last_values,
    parameter_axes,
    task_metrics,
)
from retina_ray.search.goals import Goal


@dataclass(frozen=True)
class _Section:
    """A figure of the page.

    Attributes:
        title: its heading.
        caption: how to read it.
        make: draws its images; none where it does not apply, `LeftOutError` where the trials do not allow it.
    """

    title: str
    caption: str
    make: Callable[[SearchData], list[InlineImage]]


def figures_and_notes(data: SearchData) -> tuple[list[InlineFigure], list[str]]:
    """Return the figures that the trials allow, and a note on each one that they do not."""
    drawn: list[InlineFigure] = []
    notes: list[str] = []
    for section in _SECTIONS:
        try:
            images = section.make(data)
        except LeftOutError as error:
            notes.append(f"Left out: {section.title[0].lower()}{section.title[1:]} ({error}).")
            continue
        if images:
            drawn.append(InlineFigure(section.title, section.caption, images))
    return drawn, notes


def _history(data: SearchData) -> list[InlineImage]:
    return [_history_of(goal, data) for goal in _goals_with_values(data)]


def _history_of(goal: Goal, data: SearchData) -> InlineImage:
    figure = search_figures.history(data.trials, goal, winner=data.winner)
    shown, points = quantity(goal.metric), last_values(data.trials, goal.metric)
    texts = [shown.text(end(point.value for point in points)) for end in (min, max)]
    shows = f"last {_label(goal)} of {len(points)} trials, from {texts[0]} to {texts[1]}"
    return InlineImage(_title(goal, data), figure_uri(figure), shows)


def _learning_curves(data: SearchData) -> list[InlineImage]:
    unit = "fold" if data.folds else "epoch"
    images = []
    for goal in _goals_with_values(data):
        figure = search_figures.learning_curves(data.trials, goal, winner=data.winner, unit=unit)
        shows = f"{_label(goal)} of {len(curves(data.trials, goal.metric))} trials by {unit}"
        images.append(InlineImage(_title(goal, data), figure_uri(figure), shows))
    return images


def _parallel_coordinates(data: SearchData) -> list[InlineImage]:
    drawn = coordinates(data.trials, data.goals)
    figure = search_figures.parallel_coordinates(drawn, data.goals[0])
    shows = f"{len(drawn.numbers)} trials over {', '.join(axis.label for axis in drawn.axes)}"
    return [InlineImage("", figure_uri(figure), shows)]


def _importance(data: SearchData) -> list[InlineImage]:
    shares = {goal.metric: importance(data.trials, goal) for goal in data.goals}
    names = {name: axis.label for name, axis in parameter_axes(data.trials).items()}
    first = "; ".join(
        f"{quantity(metric).label}: " + ", ".join(f"{names[name]} {share:.0%}" for name, share in those.items())
        for metric, those in shares.items()
    )
    return [InlineImage("", figure_uri(search_figures.importance_bars(shares, names)), first)]


def _slices(data: SearchData) -> list[InlineImage]:
    goals = _goals_with_values(data)
    names = ", ".join(axis.label for axis in _axes(data))
    return [
        InlineImage(
            _title(goal, data),
            figure_uri(search_figures.slices(data.trials, goal, winner=data.winner)),
            f"last {_label(goal)} of every trial against {names}",
        )
        for goal in goals
    ]


def _task_slices(data: SearchData) -> list[InlineImage]:
    images = []
    for goal in data.goals:
        metrics = task_metrics(goal.metric, data.trials, data.tasks)
        if metrics and parameter_axes(data.trials):
            figure = search_figures.task_slices(data.trials, goal, metrics)
            shows = f"last {_label(goal)} of {', '.join(metrics)} against each parameter"
            images.append(InlineImage(_title(goal, data), figure_uri(figure), shows))
    return images


def _pareto(data: SearchData) -> list[InlineImage]:
    if len(data.goals) < 2:
        return []
    if not data.front:
        raise LeftOutError("no trial was completed or stopped with a value of every goal")
    figure = search_figures.pareto(data.trials, data.goals, data.front)
    shows = f"on the front {named(data.front)}"
    return [InlineImage("", figure_uri(figure), shows)]


def _goals_with_values(data: SearchData) -> list[Goal]:
    found = [goal for goal in data.goals if last_values(data.trials, goal.metric)]
    if not found:
        raise LeftOutError("no trial has a value")
    return found


def _axes(data: SearchData) -> list[Axis]:
    axes = list(parameter_axes(data.trials).values())
    if not axes:
        raise LeftOutError("the space varies no parameter")
    return axes


def _title(goal: Goal, data: SearchData) -> str:
    return _label(goal) if len(data.goals) > 1 else ""


def _label(goal: Goal) -> str:
    return f"validation {quantity(goal.metric).label}"


_SECTIONS = (
    _Section(
        "Optimisation history",
        "The last value of every trial, in the order in which they were suggested. Stopped trials fell behind at an "
        "early epoch: what they would have reached is not known. A line that has long been flat says that more trials "
        "of the same space will hardly find better.",
        _history,
    ),
    _Section(
        "Learning curves",
        "A line per trial that ends in the marker of its state. Curves that still rise at the end ask for more epochs; "
        "stopped ones that cross others ask for a scheduler that waits longer. The value at an epoch is that of the "
        "best epoch so far by the validation criterion, whose weights are kept.",
        _learning_curves,
    ),
    _Section(
        "Parallel coordinates",
        "A line per trial through its parameters to its values; dark is better, the best is thick. Where dark lines "
        "meet, the parameter matters; where they spread over an axis, it does not. Axes whose numbers grow by factors "
        "are logarithmic.",
        _parallel_coordinates,
    ),
    _Section(
        "Importance of the parameters",
        "The share of the spread of the values over the whole space that each parameter explains (fANOVA, Hutter et "
        "al. 2014, by Optuna), from completed and stopped trials. It holds for the ranges that were searched, it is "
        "uncertain with few trials, and it says nothing about which value is best: see the next figure.",
        _importance,
    ),
    _Section(
        "Values against each parameter",
        "A point per trial: its last value against the parameter, while all others vary too. With SALL, the "
        "temperature's panel is its Fig. 5, those of the data ratios are its Table VI. A best value at the end of a "
        "range asks for a wider one.",
        _slices,
    ),
    _Section(
        "Values of each task against each parameter",
        "The same for each task: what helps one may cost the other. Trials that are not complete are hollow.",
        _task_slices,
    ),
    _Section(
        "Pareto front",
        "Two goals against each other. No other trial beats those with a ring and a number in every goal: choose among "
        "them by what an error costs. The winner is the best of them by the first goal.",
        _pareto,
    ),
)
