"""Lay a finished table out as the panels of a chart."""

import math

from matplotlib.figure import Figure

from retina_ray.report.reproduction_figures import ChartPanel, Point, bars, curves
from retina_ray.reproduce.experiment import Axes, Column, Row
from retina_ray.reproduce.table import SCALE, Finished

_NOWHERE = (math.nan, math.nan)


def draw_chart(finished: Finished, axes: Axes) -> Figure:
    """Return a chart of an experiment."""
    columns = {column.label: column for column in finished.experiment.columns}
    panels = [_panel(finished, axes, [columns[label] for label in labels]) for labels in axes.panels]
    paper = "paper (not comparable)" if finished.apart else "paper"
    return curves(panels, x=axes.x, paper=paper) if axes.kind == "curves" else bars(panels, paper=paper)


def _panel(finished: Finished, axes: Axes, columns: list[Column]) -> ChartPanel:
    points = tuple(
        _point(finished, axes, number, row, column, alone=len(columns) == 1)
        for column in columns
        for number, row in enumerate(finished.experiment.rows)
        if (number, column.label) in finished.cells
    )
    title = columns[0].label if len(columns) == 1 else ", ".join(column.label for column in columns)
    return ChartPanel("" if axes.kind == "columns" else title, columns[0].unit, points)


def _point(finished: Finished, axes: Axes, number: int, row: Row, column: Column, *, alone: bool) -> Point:
    found, printed = finished.cells[number, column.label], row.printed.get(column.label)
    scale = SCALE[column.unit]
    words = [row.cells[axes.series]] if axes.series else []
    if axes.kind != "columns" and not (alone and words):
        words.append(column.label)
    low, high = found.interval if all(map(math.isfinite, found.interval)) else _NOWHERE
    return Point(
        series=", ".join(words),
        x=column.label if axes.kind == "columns" else row.cells[axes.x],
        value=scale * found.mean,
        interval=(scale * low, scale * high),
        printed=math.nan if printed is None else printed.value,
    )
