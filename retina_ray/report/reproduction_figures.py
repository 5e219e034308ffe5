"""Charts of a finished table: curves over a number, bars over settings or columns, the paper's figures beside ours.

Whiskers are the intervals of the means. What is not here: figures of prediction tables and of images (``figures``,
``deepmt_figures``).
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from matplotlib.axes import Axes as Panel
from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator

from retina_ray.report.figures import COLOURS, INK, new_figure, plain, tidy

_MARKERS = "osD^vP"
_PANEL_INCHES = 4.0
_PER_ROW = 3
_ALONE_INCHES = 6.5
"""Width of a chart of one panel."""

_DODGE = 0.012
"""Share of the axis by which the whiskers of neighbouring series stand apart."""

_LABEL_SHARE = 0.07
"""Of the horizontal axis that a label takes."""

_LOGARITHMIC_FROM = 20.0
"""Quotient of the largest and smallest number from which the horizontal axis is logarithmic."""


@dataclass(frozen=True)
class Point:
    """A figure in a chart.

    Attributes:
        series: name of its curve, or of its bar within a group.
        x: where it stands, a number or a word.
        value: ours, in the panel's unit; NaN where there is none.
        interval: (low, high) of it; NaN where it is undefined.
        printed: the paper's; NaN where it prints none.
    """

    series: str
    x: str
    value: float
    interval: tuple[float, float]
    printed: float


@dataclass(frozen=True)
class ChartPanel:
    """One panel.

    Attributes:
        title: above it.
        unit: of its vertical axis, empty for none.
        points: in the order in which they are drawn.
    """

    title: str
    unit: str
    points: tuple[Point, ...]


def curves(panels: Sequence[ChartPanel], *, x: str, paper: str = "paper") -> Figure:
    """Draw each series as a curve over the numbers of ``x``, the paper's dashed.

    Args:
        panels: at least one, whose points stand at numbers.
        x: label of the horizontal axis.
        paper: what the legend calls printed figures.

    Raises:
        ValueError: no panels, or a point that does not stand at a number.
    """
    figure, all_axes = _grid(panels)
    for axes, panel in zip(all_axes, panels, strict=True):
        names = _series(panel)
        numbers = np.array(sorted({float(point.x) for point in panel.points}))
        logarithmic = numbers.max() > _LOGARITHMIC_FROM * numbers.min() > 0.0
        for number, name in enumerate(names):
            own = sorted((point for point in panel.points if point.series == name), key=lambda each: float(each.x))
            at = _dodged(
                np.array([float(point.x) for point in own]), numbers, number - (len(names) - 1) / 2, logarithmic
            )
            style: dict[str, Any] = {
                "color": COLOURS[number % len(COLOURS)],
                "marker": _MARKERS[number % len(_MARKERS)],
                "markersize": 5,
            }
            axes.errorbar(at, _values(own), yerr=_reach(own), capsize=2, label=plain(name), elinewidth=1.0, **style)
            printed = np.array([point.printed for point in own])
            if np.isfinite(printed).any():
                axes.plot(
                    at, printed, linestyle="--", markerfacecolor="white", label=plain(f"{name}, {paper}"), **style
                )
        axes.set(xlabel=x, xscale="log" if logarithmic else "linear")
        axes.set_xticks(numbers, _labels(numbers, logarithmic), fontsize=8)
        axes.xaxis.set_minor_locator(NullLocator())
        axes.legend(loc="upper center", bbox_to_anchor=(0.5, -0.2), ncols=2, frameon=False, fontsize=8)
    return figure


def _labels(numbers: np.ndarray, logarithmic: bool) -> list[str]:
    """Return the labels of ascending numbers along an axis, empty where one would run into that of the next."""
    at = np.log(numbers) if logarithmic else numbers
    labels, taken = [""] * len(numbers), math.inf
    for place in reversed(range(len(numbers))):
        if taken - at[place] >= _LABEL_SHARE * (at[-1] - at[0]):
            labels[place], taken = f"{numbers[place]:g}", at[place]
    return labels


def _dodged(at: np.ndarray, numbers: np.ndarray, places: float, logarithmic: bool) -> np.ndarray:
    """Return positions moved by so many steps along an axis over ``numbers``."""
    if logarithmic:
        return np.asarray(at * (numbers.max() / numbers.min()) ** (places * _DODGE))
    return np.asarray(at + places * _DODGE * (numbers.max() - numbers.min()))


def bars(panels: Sequence[ChartPanel], *, paper: str = "paper") -> Figure:
    """Draw a group of bars for each place, one bar per series, the paper's figures as lines across them.

    Args:
        panels: at least one.
        paper: what the legend calls printed figures.

    Raises:
        ValueError: no panels.
    """
    figure, all_axes = _grid(panels)
    for axes, panel in zip(all_axes, panels, strict=True):
        places = list(dict.fromkeys(point.x for point in panel.points))
        names = _series(panel)
        width = 0.8 / len(names)
        for number, name in enumerate(names):
            own = [point for point in panel.points if point.series == name]
            at = np.array([places.index(point.x) + (number - (len(names) - 1) / 2) * width for point in own])
            values = np.nan_to_num(_values(own))
            error = {"ecolor": INK, "capsize": 2}
            axes.bar(at, values, width * 0.92, yerr=_reach(own), error_kw=error, color=COLOURS[number % len(COLOURS)])
            for place, point in zip(at, own, strict=True):
                if math.isfinite(point.printed):
                    axes.hlines(point.printed, place - width / 2, place + width / 2, color=INK, linestyle="--")
        axes.set_xticks(range(len(places)), [plain(place) for place in places], rotation=25, ha="right", fontsize=8)
        if any(math.isfinite(point.printed) for point in panel.points):
            axes.plot([], [], color=INK, linestyle="--", label=paper)
            axes.legend(loc="lower right", bbox_to_anchor=(1.0, 1.0), frameon=False, fontsize=8)
    return figure


def _grid(panels: Sequence[ChartPanel]) -> tuple[Figure, list[Panel]]:
    if not panels:
        raise ValueError("no panels to draw")
    columns = min(_PER_ROW, len(panels))
    lines = -(-len(panels) // columns)
    figure = new_figure(_PANEL_INCHES * lines)
    if columns == 1:
        figure.set_figwidth(_ALONE_INCHES)
    grid = list(figure.subplots(lines, columns, squeeze=False).flat)
    for axes in grid[len(panels) :]:
        axes.set_visible(False)
    for axes, panel in zip(grid, panels, strict=False):
        tidy(axes)
        axes.set_title(plain(panel.title), fontsize=10)
        axes.set_ylabel(panel.unit)
    return figure, grid[: len(panels)]


def _series(panel: ChartPanel) -> list[str]:
    return list(dict.fromkeys(point.series for point in panel.points))


def _values(points: Sequence[Point]) -> np.ndarray:
    return np.array([point.value for point in points])


def _reach(points: Sequence[Point]) -> np.ndarray | None:
    """Return how far the whiskers reach below and above (2, n), 0 where an interval is undefined; None for none."""
    reach = np.array([[point.value - point.interval[0], point.interval[1] - point.value] for point in points]).T
    return np.nan_to_num(np.maximum(reach, 0.0)) if np.isfinite(reach).any() else None
