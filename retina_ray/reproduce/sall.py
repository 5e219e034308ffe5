"""SALL's tables and figures (Ju et al., section IV), over the first two or three tasks of a run.

The paper's DR is the run's first task, its AMD the second, its arteriosclerosis the third. Baselines are the teachers:
single-task networks of the same configuration, which every run with several tasks trains anyway.
"""

from collections.abc import Mapping, Sequence
from typing import Any

from retina_ray.errors import ConfigError
from retina_ray.methods.sall import LABELS
from retina_ray.report.tables import display_name
from retina_ray.reproduce.experiment import Arm, Axes, Build, Column, Drawing, Experiment, Printed, Row, Scope

FOLDS = 3
"""Section IV-A: "at least three times and make 3-fold cross-validation"."""

_FIGURES = {"accuracy": "acc", "confidence": "con", "error": "err", "ece": "ECE", "kappa_quadratic": "kappa"}
"""What is measured, by its name in headings: what the paper prints, and what a reader of it wants to know besides."""

_HEADINGS = "acc: accuracy; con and err: mean confidence of all and of wrong predictions; kappa: quadratic."

_BEST_T = 8.0
"""Section IV-F's temperature."""

_LARGEST_CLASS = 7735
"""Of Table I: Table IX's numbers of images are shares of it where a data set is smaller."""

_TABLE_1 = (
    ((7359, 2454, 2454), (4878, 543, 543), (5353, 1785, 1785), (5040, 840, 840), (5457, 921, 921)),
    ((7359, 2454, 2454), (7735, 2579, 2579), (5463, 608, 608), (7671, 2558, 2558)),
    ((7359, 2454, 2454), (2762, 921, 921)),
)
"""Per task and grade: training, validation, test images; the third task's are Table VII's."""

_TABLE_3 = (
    (1, False, False, (75.39, 79.15, 85.74, 86.06, 65.39, 78.81)),
    (1, True, False, (75.35, 78.70, 82.93, 87.71, 64.84, 77.61)),
    (1, False, True, (75.91, 78.81, 85.06, 86.85, 65.72, 69.27)),
    (1, True, True, (76.92, 79.34, 84.25, 85.65, 63.23, 67.23)),
    (2, True, True, (77.53, 81.12, 86.99, 88.26, 63.38, 66.55)),
    (3, True, True, (78.01, 81.25, 85.68, 86.15, 63.10, 65.75)),
    (3, False, False, (76.65, 80.13, 86.07, 85.07, 66.02, 77.11)),
    (3, True, False, (77.36, 80.36, 86.90, 87.65, 66.81, 77.40)),
    (3, False, True, (77.15, 79.86, 85.87, 86.85, 65.51, 70.64)),
)
"""T, SA-label, multi-task; accuracy, confidence and error of DR and AMD each, in percent."""

_TABLE_4 = {
    4: (77.73, 81.13, 86.39, 86.70, 66.29, 70.44),
    5: (78.30, 80.56, 85.32, 85.31, 65.26, 68.10),
    6: (78.53, 81.23, 85.57, 85.88, 65.33, 69.04),
    7: (78.39, 81.39, 85.36, 85.82, 65.48, 69.40),
    8: (78.77, 81.73, 87.79, 88.29, 69.05, 73.49),
    9: (78.01, 82.02, 87.53, 88.21, 67.56, 72.86),
    10: (77.97, 81.47, 86.72, 87.20, 67.63, 71.06),
    20: (78.40, 81.52, 84.75, 85.76, 66.66, 72.11),
    50: (77.81, 80.95, 86.74, 87.08, 69.94, 74.51),
}
"""By T, as above."""

_TABLE_5 = {1: (0.7478, 0.0960), 3: (0.6915, 0.0633)}
"""By T: mean maximum and variance of a synergic label."""

_TABLE_6 = (
    (0, (28154, 28228), 400, (77.92, 87.51, 67.79)),
    (0, (28154, 28228), 2800, (78.07, 86.89, 67.86)),
    (0, (28154, 28228), 13101, (77.99, 87.54, 66.91)),
    (0, (28154, 28228), 18844, (78.91, 88.55, 65.79)),
    (1, (28154, 28228), 500, (80.70, 87.71, 71.37)),
    (1, (28154, 28228), 3000, (80.85, 87.77, 71.49)),
    (1, (28154, 28228), 15533, (81.47, 87.44, 70.43)),
    (1, (28154, 28228), 19620, (80.08, 87.21, 70.96)),
)
"""Task that is measured, all images of DR and AMD, images of the other task that are used, accuracy etc."""

_TABLE_8 = {
    "Single Model": (75.39, 79.15, 81.95, 85.74, 86.06, 83.14, 65.39, 78.81, 62.45),
    "2 sub-task": (78.77, 81.73, None, 87.79, 88.29, None, 69.05, 73.49, None),
    "3 sub-task": (78.23, 81.07, 81.87, 85.08, 86.03, 85.79, 63.92, 67.88, 61.82),
}

_TABLE_9 = {
    1500: ((70.32, 70.61, 80.89), (76.23, 74.30, 81.11)),
    3000: ((74.72, 75.58, 81.64), (79.74, 76.17, 81.12)),
}
"""By images per class: accuracy of the single networks, and of the multi-task one."""


def table_1(scope: Scope) -> Experiment:
    """Return Table I, and Table VII for a third task: the images of each grade."""
    columns = tuple(Column(split.capitalize(), split, unit="images") for split in ("train", "validation", "test"))
    rows = []
    for number, task in enumerate(scope.tasks):
        for grade, name in enumerate(scope.grades[task]):
            given = {column.label: float(scope.counts[column.metric][task][grade]) for column in columns}
            known = number < len(_TABLE_1) and grade < len(_TABLE_1[number])
            printed = _printed(columns, _TABLE_1[number][grade]) if known else {}
            rows.append(Row({"Task": display_name(task), "Grade": name}, given=given, printed=printed))
    return Experiment("sall-table1", "SALL, Table I: the data", "sall", rows=tuple(rows), columns=columns)


def table_3(scope: Scope) -> Experiment:
    """Return Table III: with and without synergic labels, several tasks, and temperature."""
    pair = _first(scope, 2)
    columns = _columns(pair)
    arms: list[Arm] = []
    rows: list[Row] = []
    for temperature, synergic, multi_task, values in _TABLE_3:
        arm = _arm(pair, temperature=temperature, synergic=synergic, multi_task=multi_task)
        cells = {"T": str(temperature), "SA-label": _yes(synergic), "Multi-task": _yes(multi_task)}
        arms.append(arm)
        rows.append(Row(cells, arm.name, against=0 if rows else None, printed=_printed(columns, values)))
    notes = ("The network of the first row is also the teacher of the others; the paper calls it the baseline.",)
    title = "SALL, Table III: accuracy, confidence and error"
    return _experiment("sall-table3", title, arms, rows, columns, notes=notes)


def table_4(scope: Scope) -> Experiment:
    """Return Table IV: the temperature."""
    arms, rows, columns = _temperatures(scope, _TABLE_4)
    return _experiment("sall-table4", "SALL, Table IV: values of T", arms, rows, columns)


def table_5(scope: Scope) -> Experiment:
    """Return Table V: how temperature softens the labels that a teacher gives; no student is trained."""
    pair = _first(scope, 2)
    columns = (
        Column("Max", "mean_max", stage=LABELS, unit=""),
        Column("Var", "mean_variance", stage=LABELS, unit=""),
    )
    arms = [_arm(pair, temperature=temperature, until=LABELS) for temperature in _TABLE_5]
    rows = [
        Row({"T": str(temperature)}, arm.name, printed=_printed(columns, values))
        for arm, (temperature, values) in zip(arms, _TABLE_5.items(), strict=True)
    ]
    title = "SALL, Table V: maximum and variance of a synergic adversarial label"
    notes = ("Means over the labels that both teachers give to the other task's training images.",)
    return _experiment("sall-table5", title, arms, rows, columns, notes=notes)


def table_6(scope: Scope) -> Experiment:
    """Return Table VI: how much of the other task's images is used."""
    pair = _first(scope, 2)
    columns = _columns(pair)
    arms, rows = [], []
    for measured, totals, used, values in _TABLE_6:
        other = 1 - measured
        share = used / totals[other]
        arm = _arm(pair, name=f"share-{other}-{used}", ratio={pair[other]: share})
        own = [column for column in columns if column.task == pair[measured]]
        shares = {measured: "1", other: f"{share:.3f}"}
        cells = {f"{display_name(task)} share": shares[number] for number, task in enumerate(pair)}
        arms.append(arm)
        labels = tuple(column.label for column in own)
        rows.append(Row(cells, arm.name, columns=labels, against=len(_TABLE_6), printed=_printed(own, values)))
    whole = _arm(pair, name="share-all")
    cells = {f"{display_name(task)} share": "1" for task in pair}
    rows.append(Row(cells, whole.name, printed=_printed(columns, _TABLE_3[5][3])))
    title = "SALL, Table VI: data ratio"
    notes = ("The paper's numbers of images, as shares of its 28,154 of DR and 28,228 of AMD; T = 3.",)
    return _experiment("sall-table6", title, [*arms, whole], rows, columns, notes=notes)


def table_8(scope: Scope) -> Experiment:
    """Return Table VIII: two and three tasks."""
    three = _first(scope, 3)
    columns = _columns(three)
    both, all_three = _arm(three[:2], temperature=_BEST_T), _arm(three, name="three-tasks", temperature=_BEST_T)
    fewer = tuple(column.label for column in columns if column.task in both.overrides["method.tasks"])
    rows: list[Row] = []
    for (model, values), arm in zip(_TABLE_8.items(), (all_three, both, all_three), strict=True):
        filled = fewer if arm is both else ()
        against = 0 if rows else None
        printed = _printed(columns, values)
        rows.append(
            Row({"Model": model}, arm.name, baseline=not rows, columns=filled, against=against, printed=printed)
        )
    title = "SALL, Table VIII: three tasks"
    return _experiment("sall-table8", title, [both, all_three], rows, columns)


def table_9(scope: Scope) -> Experiment:
    """Return Table IX: three tasks with fewer images of each class."""
    three = _first(scope, 3)
    columns = tuple(column for column in _columns(three) if column.metric == "accuracy")
    limits, notes = _images_per_class(scope, three)
    arms: list[Arm] = []
    rows: list[Row] = []
    for (images, (single, ours)), limit in zip(_TABLE_9.items(), limits, strict=True):
        arm = _arm(three, name=f"images-{images}", temperature=_BEST_T, images_per_class=limit)
        arms.append(arm)
        for model, values in (("Single Model", single), ("ours", ours)):
            baseline = model == "Single Model"
            cells = {"Images per class": str(limit), "Model": model}
            against = None if baseline else len(rows) - 1
            rows.append(Row(cells, arm.name, baseline=baseline, against=against, printed=_printed(columns, values)))
    title = "SALL, Table IX: images per class"
    return _experiment("sall-table9", title, arms, rows, columns, notes=notes)


def figure_5(scope: Scope) -> Experiment:
    """Return Fig. 5: Tables III and IV over T."""
    printed = {row[0]: row[3] for row in _TABLE_3 if row[1] and row[2]} | _TABLE_4
    arms, rows, columns = _temperatures(scope, printed)
    drawn = ("accuracy", "confidence", "error")
    panels = tuple(tuple(column.label for column in columns if column.metric == metric) for metric in drawn)
    charts = (Axes("curves", panels, x="T"),)
    return _experiment("sall-figure5", "SALL, Fig. 5: values of T", arms, rows, columns, charts=charts)


def figure_6(scope: Scope) -> Experiment:
    """Return Fig. 6: confusion matrices of single-task networks and of SALL at T = 8."""
    title = "SALL, Fig. 6: confusion matrices"
    return _compared(scope, "sall-figure6", title, temperature=_BEST_T, kind="confusion")


def figure_7(scope: Scope) -> Experiment:
    """Return Fig. 7: reliability diagrams of single-task networks and of SALL at T = 3."""
    title = "SALL, Fig. 7: reliability diagrams"
    return _compared(scope, "sall-figure7", title, temperature=3.0, kind="reliability")


def figure_8(scope: Scope) -> Experiment:
    """Return Fig. 8: what a task's network looks at in images of the other; no student is trained."""
    pair = _first(scope, 2)
    arm = _arm(pair, until=LABELS)
    title = "SALL, Fig. 8: Grad-CAM of a task's network on the other task's images"
    return _experiment("sall-figure8", title, [arm], [], (), drawing=Drawing("cross_task", arm.name))


EXPERIMENTS: dict[str, Build] = {
    "sall-table1": table_1,
    "sall-table3": table_3,
    "sall-table4": table_4,
    "sall-table5": table_5,
    "sall-table6": table_6,
    "sall-table8": table_8,
    "sall-table9": table_9,
    "sall-figure5": figure_5,
    "sall-figure6": figure_6,
    "sall-figure7": figure_7,
    "sall-figure8": figure_8,
}


def _experiment(
    name: str,
    title: str,
    arms: Sequence[Arm],
    rows: Sequence[Row],
    columns: Sequence[Column],
    *,
    notes: Sequence[str] = (),
    **more: Any,
) -> Experiment:
    notes = (*notes, _HEADINGS) if any(column.metric in _FIGURES for column in columns) else tuple(notes)
    return Experiment(name, title, "sall", tuple(arms), tuple(rows), tuple(columns), notes=notes, folds=FOLDS, **more)


def _arm(
    tasks: Sequence[str],
    *,
    name: str = "",
    temperature: float = 3.0,
    synergic: bool = True,
    multi_task: bool = True,
    ratio: Mapping[str, float] | None = None,
    images_per_class: int | None = None,
    until: str = "",
) -> Arm:
    named = f"T{temperature:g}-{'sa' if synergic else 'nosa'}-{'mt' if multi_task else 'nomt'}"
    overrides = {
        "method.tasks": list(tasks),
        "method.temperature": float(temperature),
        "method.synergic_labels": synergic,
        "method.multi_task": multi_task,
        "method.ratio": dict(ratio or {}),
        "data.images_per_class": images_per_class,
    }
    return Arm(name or named, overrides, until=until)


def _first(scope: Scope, number: int) -> tuple[str, ...]:
    if len(scope.tasks) < number:
        fix = "set method.tasks to as many tasks that the data set grades"
        raise ConfigError(f"this experiment takes {number} tasks, not {len(scope.tasks)}", ", ".join(scope.tasks), fix)
    return scope.tasks[:number]


def _columns(tasks: Sequence[str]) -> tuple[Column, ...]:
    return tuple(
        Column(f"{display_name(task)} {heading}", metric, task, unit="" if metric == "kappa_quadratic" else "%")
        for metric, heading in _FIGURES.items()
        for task in tasks
    )


def _printed(columns: Sequence[Column], values: Sequence[float | None]) -> dict[str, Printed]:
    """Return the paper's figures by column, for as many columns as it has; None where it prints none."""
    pairs = zip(columns, values, strict=False)
    return {column.label: Printed(value) for column, value in pairs if value is not None}


def _yes(switch: bool) -> str:
    return "yes" if switch else "no"


def _temperatures(
    scope: Scope, printed: Mapping[int, Sequence[float]]
) -> tuple[list[Arm], list[Row], tuple[Column, ...]]:
    pair = _first(scope, 2)
    columns = _columns(pair)
    arms = [_arm(pair, temperature=temperature) for temperature in printed]
    rows = [
        Row({"T": str(temperature)}, arm.name, printed=_printed(columns, values))
        for arm, (temperature, values) in zip(arms, printed.items(), strict=True)
    ]
    return arms, rows, columns


def _compared(scope: Scope, name: str, title: str, *, temperature: float, kind: Any) -> Experiment:
    """Return single-task networks beside SALL's at one temperature."""
    pair = _first(scope, 2)
    arm = _arm(pair, temperature=temperature)
    rows = [
        Row({"Model": "Single task"}, arm.name, baseline=True),
        Row({"Model": "SALL"}, arm.name, against=0),
    ]
    return _experiment(name, title, [arm], rows, _columns(pair), drawing=Drawing(kind, arm.name))


def _images_per_class(scope: Scope, tasks: Sequence[str]) -> tuple[list[int], tuple[str, ...]]:
    """Return Table IX's limits: the paper's, or the same shares of the largest class where they would limit nothing."""
    largest = max(max(scope.counts["train"][task]) for task in tasks)
    if largest > max(_TABLE_9):
        return list(_TABLE_9), ()
    limits = [max(1, round(images * largest / _LARGEST_CLASS)) for images in _TABLE_9]
    note = (
        f"The largest class has {largest} training images, so that 1,500 and 3,000 would limit nothing: the limits are "
        "the same shares of it as in the paper."
    )
    return limits, (note,)
