"""What a table or figure of a paper is: rows, each of which a network's run fills, and columns, each of one figure.

An experiment says nothing of where or on what it runs: that is the base configuration's, which every `Arm` changes in
a few values. So one grid holds for the paper's sizes, for a user's and for a debug budget's.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

Method = Literal["sall", "deepmt"]

Unit = Literal["%", "dB", "images", ""]
"""Of what is shown: ``%`` is the figure times 100."""


@dataclass(frozen=True)
class Printed:
    """A figure as a paper prints it.

    Attributes:
        value: in the column's unit.
        spread: its standard deviation, where it is printed.
    """

    value: float
    spread: float | None = None


@dataclass(frozen=True)
class Arm:
    """A configuration that is trained, once per seed and fold.

    Attributes:
        name: unique in its experiment; part of the names of its runs.
        overrides: values by dotted path that replace the base's.
        until: name of the last stage that is trained; empty: all, and the test.
        external: its networks also grade the external data set, with two grades: no disease, and any.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    until: str = ""
    external: bool = False


@dataclass(frozen=True)
class Column:
    """A figure that is measured of every row's network.

    Attributes:
        label: its heading; unique in the experiment.
        metric: name of one of `metrics.grading.METRICS` where ``task`` is given, else of the ``stage``'s figure.
        task: whose predictions it is measured from.
        stage: whose figure it is; empty where a task is given.
        unit: of what is shown.
        images: what the predictions are of: the run's test images, or the external data set.
    """

    label: str
    metric: str
    task: str = ""
    stage: str = ""
    unit: Unit = "%"
    images: Literal["test", "external"] = "test"


@dataclass(frozen=True)
class Row:
    """A line of a table, or a point or bar of a figure.

    Attributes:
        cells: what names it, by heading.
        arm: name of the arm that fills it; empty where it is left out.
        baseline: whether it is that arm's single-task networks, rather than its final ones.
        columns: labels of the columns it fills; empty: all.
        left_out: why there is nothing of ours.
        against: number of the row that it is compared with; None: none.
        given: figures that take no run, by column label.
        printed: the paper's figures by column label, in the column's unit.
    """

    cells: Mapping[str, str]
    arm: str = ""
    baseline: bool = False
    columns: tuple[str, ...] = ()
    left_out: str = ""
    against: int | None = None
    given: Mapping[str, float] = field(default_factory=dict)
    printed: Mapping[str, Printed] = field(default_factory=dict)

    def fills(self, column: Column) -> bool:
        """Return whether the row has a value of its own in the column."""
        return bool(self.arm) and (not self.columns or column.label in self.columns)


@dataclass(frozen=True)
class Axes:
    """A chart of the table's numbers.

    Attributes:
        name: ending of its files' names; empty for an experiment's only chart.
        kind: ``curves`` over the numbers under the heading ``x``; ``bars`` over its words; or ``columns``, bars over
            the columns' labels.
        panels: labels of the columns of each panel.
        x: heading of what is along the horizontal axis.
        series: heading of what tells the curves, or the bars of a group, apart; empty: a panel's columns alone do.
    """

    kind: Literal["curves", "bars", "columns"]
    panels: tuple[tuple[str, ...], ...]
    x: str = ""
    series: str = ""
    name: str = ""


@dataclass(frozen=True)
class Drawing:
    """A figure that is more than the table's numbers: of prediction tables, or of images.

    Attributes:
        kind: what is drawn.
        arm: name of the arm whose first run it is drawn of.
    """

    kind: Literal["confusion", "reliability", "cross_task", "restoration", "lesions"]
    arm: str


@dataclass(frozen=True)
class Experiment:
    """A table or figure of a paper.

    Attributes:
        name: what users call it, such as ``sall-table3``.
        title: in words.
        method: ``sall`` or ``deepmt``.
        arms: what is trained.
        rows: of the table, in the paper's order.
        columns: of the table.
        charts: what is drawn of the rows.
        drawing: what is drawn of predictions or images, if anything is.
        notes: what the reader should know, such as how it departs from the paper.
        seeds: of initial weights, order and random choices, as many as the paper has or as tell a spread.
        folds: of cross-validation, as the paper says; None: the data set's splits.
        printed_on: name of the public data set whose own splits the paper's figures are on; empty: none is public.
    """

    name: str
    title: str
    method: Method
    arms: tuple[Arm, ...] = ()
    rows: tuple[Row, ...] = ()
    columns: tuple[Column, ...] = ()
    charts: tuple[Axes, ...] = ()
    drawing: Drawing | None = None
    notes: tuple[str, ...] = ()
    seeds: int = 3
    folds: int | None = None
    printed_on: str = ""


@dataclass(frozen=True)
class Scope:
    """What a grid depends on beside the paper.

    Attributes:
        method: that is trained.
        model: what its final networks' predictions are filed under.
        has_baselines: whether its runs train single-task networks as well.
        tasks: names of the tasks, the paper's first one first.
        grades: names of the grades, by task.
        counts: images per grade, by split and task, as a run sees them.
        resolutions: sides of square images in pixels, ascending, that stand for the paper's 128, 256, 512 and 1024.
        sources: the tasks that each data set grades that images come from, by its name.
    """

    method: Method
    model: str
    has_baselines: bool
    tasks: tuple[str, ...]
    grades: Mapping[str, tuple[str, ...]]
    counts: Mapping[str, Mapping[str, list[int]]]
    resolutions: tuple[int, int, int, int]
    sources: Mapping[str, tuple[str, ...]]


Build = Callable[[Scope], Experiment]
"""Lays out an experiment for a scope; raises ConfigError where the data set cannot carry it."""
