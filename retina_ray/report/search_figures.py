"""Figures of a hyper-parameter search, drawn from its trials: each function returns a matplotlib figure.

A trial's state has a colour, a marker and a line style of its own; the winner is ringed or drawn in ink. What is not
here: the numbers behind them (``search_points``), and the page (``search_page``).
"""

from collections.abc import Mapping, Sequence
from itertools import combinations
from typing import Any

import numpy as np
from matplotlib import colormaps
from matplotlib.axes import Axes
from matplotlib.cm import ScalarMappable
from matplotlib.colors import ListedColormap, Normalize
from matplotlib.figure import Figure
from matplotlib.lines import Line2D
from matplotlib.ticker import MaxNLocator

from retina_ray.report.figures import COLOURS, INK, new_figure, plain, scale_for, tidy
from retina_ray.report.quantities import quantity
from retina_ray.report.search_points import (
    STATES,
    Axis,
    Coordinates,
    Curve,
    Point,
    best_so_far,
    curves,
    last_values,
    parameter_axes,
    scaled,
)
from retina_ray.report.tables import display_name
from retina_ray.search.goals import Goal
from retina_ray.search.journal import State, TrialRecord

STYLES: dict[State, dict[str, Any]] = {
    "complete": {"color": COLOURS[0], "marker": "o", "linestyle": "-"},
    "stopped": {"color": COLOURS[1], "marker": "v", "linestyle": "--"},
    "running": {"color": COLOURS[2], "marker": "D", "linestyle": "-."},
    "failed": {"color": COLOURS[3], "marker": "X", "linestyle": ":"},
}
"""How a trial is drawn by its state."""

_PANELS_PER_ROW = 3
_ROOM = 0.05
"""Share of an axis that is left free at either end."""
_LONGEST = 36
"""Characters of a name in a figure, beyond which it would leave no room for what it names."""


def history(trials: Sequence[TrialRecord], goal: Goal, *, winner: int | None) -> Figure:
    """Draw every trial's last value in the order of the trials, and the best so far.

    Trials that failed without a value are crosses at the bottom.
    """
    figure = new_figure(3.6)
    axes = figure.subplots()
    tidy(axes)
    points = last_values(trials, goal.metric)
    best = best_so_far(points, goal)
    if best:
        numbers, values = zip(*[*best, (trials[-1].number, best[-1][1])], strict=True)
        axes.step(numbers, values, where="post", color=INK, linewidth=1.4, label="best so far", zorder=1)
    _scatter(axes, [(point, point.number) for point in points], winner)
    valued = {point.number for point in points}
    lost = [trial.number for trial in trials if trial.state == "failed" and trial.number not in valued]
    label = None if any(point.state == "failed" for point in points) else "failed"
    style = {"color": STYLES["failed"]["color"], "marker": STYLES["failed"]["marker"]}
    if lost:
        bottom = axes.get_xaxis_transform()
        axes.scatter(lost, [0.0] * len(lost), s=52, transform=bottom, clip_on=False, zorder=4, label=label, **style)
    _set_scale(axes, goal, [point.value for point in points])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel="trial", ylabel=_axis_label(goal.metric))
    _legend(figure, [axes])
    return figure


def learning_curves(trials: Sequence[TrialRecord], goal: Goal, *, winner: int | None, unit: str) -> Figure:
    """Draw every trial's values over its epochs, or folds, with the marker of its state at the last.

    Args:
        trials: at least one with a value.
        goal: whose values.
        winner: number of the trial that is drawn in ink.
        unit: ``epoch`` or ``fold``.
    """
    figure = new_figure(4.2)
    axes = figure.subplots()
    tidy(axes)
    drawn = curves(trials, goal.metric)
    for curve in drawn:
        _curve(axes, curve, is_winner=curve.number == winner)
    _set_scale(axes, goal, [value for curve in drawn for value in curve.values])
    axes.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))
    axes.set(xlabel=f"{unit}s done", ylabel=_axis_label(goal.metric))
    states = [state for state in STATES if any(curve.state == state for curve in drawn)]
    handles = [Line2D([], [], **STYLES[state], markersize=6, linewidth=1.4, label=state) for state in states]
    if any(curve.number == winner for curve in drawn):
        handles.append(Line2D([], [], color=INK, linewidth=2.6, label=f"best, trial {winner}"))
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def _curve(axes: Axes, curve: Curve, *, is_winner: bool) -> None:
    style = STYLES[curve.state]
    line = {"color": INK, "linewidth": 2.6, "zorder": 5} if is_winner else {"color": style["color"], "linewidth": 1.3}
    alpha = 1.0 if is_winner else 0.75
    axes.plot(curve.epochs, curve.values, linestyle=style["linestyle"], alpha=alpha, **line)
    end = {"color": style["color"], "marker": style["marker"], "zorder": 6}
    axes.plot(curve.epochs[-1:], curve.values[-1:], markersize=6, markeredgecolor="white", markeredgewidth=0.6, **end)


def parallel_coordinates(drawn: Coordinates, goal: Goal) -> Figure:
    """Draw a line per trial over its parameters and values; the darker, the better by the first goal."""
    figure = new_figure(4.8)
    axes = figure.subplots()
    axes.set_axis_off()
    dark_is_last = ListedColormap(colormaps["viridis"](np.linspace(0.92, 0.0, 256)))
    colours = dark_is_last if goal.mode == "max" else dark_is_last.reversed()
    low, high = float(drawn.values.min()), float(drawn.values.max())
    shown = ScalarMappable(Normalize(low, high if high > low else low + 1.0), colours)
    places = range(len(drawn.axes))
    for line, value in zip(drawn.lines, drawn.values, strict=True):
        is_best = value == drawn.values[-1]
        width = 3.0 if is_best else 1.4
        axes.plot(places, line, color=shown.to_rgba(value), linewidth=width, marker="o", markersize=2.0 * width**0.5)
    for place, axis in zip(places, drawn.axes, strict=True):
        axes.plot([place, place], [0.0, 1.0], color=INK, linewidth=1.0, zorder=3)
        _coordinate_ticks(axes, place, axis)
        axes.text(place, 1.04, _cut(axis.label), rotation=24, rotation_mode="anchor", va="bottom", fontsize=9)
    # The last label runs out to the right of its axis.
    axes.set(xlim=(-0.45, len(places) - 0.35), ylim=(-0.06, 1.26))
    label = f"{_axis_label(goal.metric)}, {'more' if goal.mode == 'max' else 'less'} is better"
    figure.colorbar(shown, ax=axes, pad=0.01, fraction=0.03, label=label)
    return figure


def _coordinate_ticks(axes: Axes, place: int, axis: Axis) -> None:
    box = {"facecolor": "white", "alpha": 0.75, "edgecolor": "none", "pad": 0.8}
    for position, text in axis.ticks():
        share = axis.share(position)
        axes.plot([place - 0.03, place], [share, share], color=INK, linewidth=0.9, zorder=3)
        axes.text(place - 0.05, share, _cut(text), fontsize=8, ha="right", va="center", zorder=4, bbox=box)


def importance_bars(shares: Mapping[str, Mapping[str, float]], names: Mapping[str, str]) -> Figure:
    """Draw how much of the spread of each goal's values each parameter explains.

    Args:
        shares: in [0, 1] by parameter, by metric; the order of the first metric's is that of the bars.
        names: what the parameters are called.
    """
    order = list(dict.fromkeys(name for those in shares.values() for name in those))
    figure = new_figure(1.3 + 0.36 * len(order))
    panels = figure.subplots(1, len(shares), squeeze=False, sharey=True)[0]
    for axes, (metric, those) in zip(panels, shares.items(), strict=True):
        tidy(axes)
        axes.grid(visible=False, axis="y")
        lengths = [100.0 * those.get(name, 0.0) for name in order]
        bars = axes.barh(range(len(order)), lengths, height=0.62, color=COLOURS[0])
        axes.bar_label(bars, fmt="%.0f", padding=3, fontsize=9, color=INK)
        axes.set(xlim=(0.0, 108.0), xlabel="share of the spread (%)")
        axes.set_title(plain(f"validation {quantity(metric).label}"), fontsize=11)
    panels[0].set_yticks(range(len(order)), [_cut(names[name]) for name in order])
    panels[0].invert_yaxis()
    return figure


def slices(trials: Sequence[TrialRecord], goal: Goal, *, winner: int | None) -> Figure:
    """Draw every trial's last value of a goal against each parameter, a panel each (SALL Fig. 5 and Table VI)."""
    points = {point.number: point for point in last_values(trials, goal.metric)}
    figure, panels = _parameter_panels(trials)
    for axes, (name, axis) in panels:
        own = [trial for trial in trials if name in trial.params and trial.number in points]
        places = [axis.position(trial.params[name]) + _apart(trial.number, axis) for trial in own]
        _scatter(axes, [(points[trial.number], at) for trial, at in zip(own, places, strict=True)], winner)
        _set_scale(axes, goal, [point.value for point in points.values()])
    _label_rows(panels, _axis_label(goal.metric))
    _legend(figure, [axes for axes, _ in panels])
    return figure


def task_slices(trials: Sequence[TrialRecord], goal: Goal, metrics: Mapping[str, str]) -> Figure:
    """Draw the tasks' values of a metric against each parameter, a panel each (SALL Fig. 5 and Table VI).

    Args:
        trials: complete ones are filled, others hollow.
        goal: the mean over the tasks.
        metrics: name of the figure by task.
    """
    figure, panels = _parameter_panels(trials)
    for axes, (name, axis) in panels:
        own = [trial for trial in trials if name in trial.params]
        for index, (task, metric) in enumerate(metrics.items()):
            colour, marker = COLOURS[index % len(COLOURS)], "osD^vP"[index % 6]
            found = [(trial, scaled(trial, metric)) for trial in own]
            for filled in (True, False):
                drawn = [(t, value) for t, value in found if value is not None and (t.state == "complete") is filled]
                axes.scatter(
                    [axis.position(t.params[name]) + _apart(t.number, axis) for t, _ in drawn],
                    [value for _, value in drawn],
                    s=26,
                    marker=marker,
                    facecolor=colour if filled else "none",
                    edgecolor=colour,
                    label=plain(f"{display_name(task)}, {'complete' if filled else 'not complete'}") if drawn else None,
                )
    _label_rows(panels, _axis_label(goal.metric))
    _legend(figure, [axes for axes, _ in panels])
    return figure


def pareto(trials: Sequence[TrialRecord], goals: Sequence[Goal], front: Sequence[int]) -> Figure:
    """Draw every pair of goals against each other, and the trials that no other one beats in all goals.

    Args:
        trials: those without a value of all goals are left out.
        goals: at least two.
        front: numbers of the unbeaten trials.
    """
    pairs = list(combinations(goals, 2))
    columns = min(len(pairs), 2)
    rows = -(-len(pairs) // columns)
    figure = new_figure(4.4 * rows)
    grid = figure.subplots(rows, columns, squeeze=False)
    for axes in grid.flat[len(pairs) :]:
        axes.set_visible(False)
    for axes, (across, up) in zip(grid.flat, pairs, strict=False):
        tidy(axes)
        _front(axes, trials, across, up, front, join=len(goals) == 2)
    _legend(figure, list(grid.flat[: len(pairs)]))
    return figure


def _front(
    axes: Axes, trials: Sequence[TrialRecord], across: Goal, up: Goal, front: Sequence[int], *, join: bool
) -> None:
    found = [(trial, scaled(trial, across.metric), scaled(trial, up.metric)) for trial in trials]
    points = [(Point(t.number, t.state, y), x) for t, x, y in found if x is not None and y is not None]
    _scatter(axes, points, None)
    best = sorted((x, point.value, point.number) for point, x in points if point.number in front)
    if best:
        across_front, up_front = [x for x, _, _ in best], [y for _, y, _ in best]
        if join:
            axes.plot(across_front, up_front, color=INK, linewidth=1.2, zorder=1)
        _ring(axes, across_front, up_front, label="Pareto front")
    for x, y, number in best:
        axes.annotate(str(number), (x, y), xytext=(7, 6), textcoords="offset points", fontsize=9, color=INK)
    axes.margins(0.08)
    axes.set(xlabel=_directed(across), ylabel=_directed(up))


def _parameter_panels(trials: Sequence[TrialRecord]) -> tuple[Figure, list[tuple[Axes, tuple[str, Axis]]]]:
    """Return a figure with a panel per parameter, its horizontal axis set up."""
    parameters = parameter_axes(trials)
    rows = -(-len(parameters) // _PANELS_PER_ROW)
    figure = new_figure(0.4 + 2.7 * rows)
    grid = figure.subplots(rows, _PANELS_PER_ROW, squeeze=False, sharey=True)
    for axes in grid.flat[len(parameters) :]:
        axes.set_visible(False)
    panels = list(zip(grid.flat, parameters.items(), strict=False))
    for axes, (_, axis) in panels:
        tidy(axes)
        axes.set_xlabel(_cut(axis.label))
        places, texts = zip(*axis.ticks(), strict=True)
        axes.set_xscale("log" if axis.logarithmic else "linear")
        axes.set_xticks(places, [_cut(text, 12) for text in texts], rotation=20 if len(axis.choices) > 3 else 0)
        axes.set_xticks([], minor=True)
        axes.set_xlim(*_room(axis))
        axes.tick_params(labelleft=axes in grid[:, 0])
    return figure, panels


def _room(axis: Axis) -> tuple[float, float]:
    """Return the limits of an axis with some room beside its ends, so that points there are seen whole."""
    if axis.choices:
        return -0.5, axis.high + 0.5
    if axis.logarithmic:
        factor = (axis.high / axis.low) ** _ROOM if axis.high > axis.low else 2.0
        return axis.low / factor, axis.high * factor
    room = _ROOM * (axis.high - axis.low) or 0.5
    return axis.low - room, axis.high + room


def _label_rows(panels: Sequence[tuple[Axes, Any]], label: str) -> None:
    for axes, _ in panels[::_PANELS_PER_ROW]:
        axes.set_ylabel(label)


def _scatter(axes: Axes, placed: Sequence[tuple[Point, float]], winner: int | None) -> None:
    """Draw trials by state, and a ring around the winner.

    Args:
        axes: where.
        placed: the points with their horizontal positions.
        winner: number of a trial, or None.
    """
    for state in STATES:
        own = [(at, point.value) for point, at in placed if point.state == state]
        style = {"color": STYLES[state]["color"], "marker": STYLES[state]["marker"]}
        if own:
            across, up = zip(*own, strict=True)
            axes.scatter(across, up, s=44, linewidth=0.6, edgecolor="white", zorder=2, label=state, **style)
    best = [(at, point.value) for point, at in placed if point.number == winner]
    if best:
        _ring(axes, *zip(*best, strict=True), label=f"best, trial {winner}")


def _ring(axes: Axes, across: Sequence[float], up: Sequence[float], *, label: str) -> None:
    axes.scatter(across, up, s=140, facecolor="none", edgecolor=INK, linewidth=1.5, zorder=3, label=label)


def _apart(number: int, axis: Axis) -> float:
    """Return a small shift for a trial, so that those with the same choice do not hide each other."""
    return (number % 7 - 3) * 0.05 if axis.choices else 0.0


def _set_scale(axes: Axes, goal: Goal, values: Sequence[float]) -> None:
    """Make the vertical axis logarithmic where a figure to minimise, such as a loss, spans magnitudes."""
    known = np.array([value for value in values if np.isfinite(value)])
    if goal.mode == "min" and known.size and known.min() > 0.0:
        axes.set_yscale(scale_for(known))


def _legend(figure: Figure, panels: Sequence[Axes]) -> None:
    """Draw one legend above the panels, of everything that any of them shows."""
    entries: dict[str, Any] = {}
    for axes in panels:
        for handle, label in zip(*axes.get_legend_handles_labels(), strict=True):
            entries.setdefault(str(label), handle)
    if entries:
        figure.legend(
            list(entries.values()), list(entries), loc="outside upper left", ncols=6, frameon=False, fontsize=9
        )


def _axis_label(metric: str) -> str:
    return _cut(f"validation {quantity(metric).label}", 44)


def _directed(goal: Goal) -> str:
    return f"{_axis_label(goal.metric)}, {'more' if goal.mode == 'max' else 'less'} is better"


def _cut(text: str, longest: int = _LONGEST) -> str:
    """Return text that matplotlib shows as it is, its middle left out where it is too long."""
    half = (longest - 3) // 2
    return plain(text if len(text) <= longest else f"{text[:half]}...{text[-half:]}")
