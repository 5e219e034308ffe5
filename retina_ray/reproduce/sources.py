"""Leave one source out: how a method does on every source of a merged data set when it has seen only the others.

No table of the papers, which test on the images' own sources; the figures are those that cross-domain studies report.
"""

import hashlib
import re
from collections.abc import Sequence

from retina_ray.errors import ConfigError
from retina_ray.report.tables import display_name
from retina_ray.reproduce.experiment import Arm, Build, Column, Experiment, Row, Scope

NAME = "leave-one-source-out"

_NAME_LENGTH = 20
"""Of a source in the name of a run, whose 64 characters the experiment's name, seed and fold share."""

_METRICS = {"accuracy": ("acc", "%"), "auroc": ("AUROC", ""), "kappa_quadratic": ("kappa", ""), "ece": ("ECE", "%")}


def leave_one_out(scope: Scope) -> Experiment:
    """Return the test on each source of a method that was trained on the others.

    Raises:
        ConfigError: the data set has a single source, or none whose tasks others grade as well.
    """
    if len(scope.sources) < 2:
        fix = "join data sets with `retina-ray data merge`"
        raise ConfigError(
            "leaving one source out takes two sources, the data set has one", ", ".join(scope.sources), fix
        )
    columns = tuple(
        Column(f"{display_name(task)} {heading}", metric, task, unit=unit)  # type: ignore[arg-type]  # of `Unit`
        for task in scope.tasks
        for metric, (heading, unit) in _METRICS.items()
    )
    arms: list[Arm] = []
    rows: list[Row] = []
    for source in scope.sources:
        if left_out := _left_out(source, scope):
            rows.append(Row({"Tested on": source, "Model": display_name(scope.model)}, left_out=left_out))
            continue
        arms.append(Arm(f"without-{_name_of(source)}", {"data.hold_out": source}))
        rows += _rows(source, arms[-1], columns, scope, first=len(rows))
    if not arms:
        fix = "join data sets of which two or more grade the same task"
        raise ConfigError("no source can be left out", "; ".join(row.left_out for row in rows), fix)
    notes = (
        "All images of a source test networks that were trained and chosen on the other sources, for the tasks that it "
        "grades; patients never cross.",
    )
    title = "Leave one source out"
    return Experiment(NAME, title, scope.method, tuple(arms), tuple(rows), columns, notes=notes)


def _left_out(source: str, scope: Scope) -> str:
    """Return why a source cannot test what the others train; empty if it can."""
    own = set(scope.sources[source]) & set(scope.tasks)
    elsewhere = {task for name, tasks in scope.sources.items() if name != source for task in tasks}
    if not own:
        return f"it grades none of {', '.join(scope.tasks)}"
    alone = [task for task in scope.tasks if task in own - elsewhere]
    return f"no other source grades {', '.join(alone)}" if alone else ""


def _rows(source: str, arm: Arm, columns: Sequence[Column], scope: Scope, *, first: int) -> list[Row]:
    """Return the rows of a source, from number ``first`` on, with the columns of the tasks that it grades."""
    own = tuple(column.label for column in columns if column.task in scope.sources[source])
    cells = {"Tested on": source, "Model": display_name(scope.model)}
    if not scope.has_baselines:
        return [Row(cells, arm.name, columns=own)]
    single = Row({**cells, "Model": "Single task"}, arm.name, baseline=True, columns=own)
    return [single, Row(cells, arm.name, columns=own, against=first)]


def _name_of(source: str) -> str:
    """Return a source as part of a run's name, which is another one for every source."""
    name = re.sub(r"[^A-Za-z0-9._-]+", "-", source)[:_NAME_LENGTH]
    return name if name == source else f"{name}-{hashlib.sha256(source.encode()).hexdigest()[:6]}"


EXPERIMENTS: dict[str, Build] = {NAME: leave_one_out}
