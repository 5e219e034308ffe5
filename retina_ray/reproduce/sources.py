"""Leave one source out: how a method does on every source of a merged data set when it has seen only the others.

No table of the papers, which test on the images' own sources; the figures are those that cross-domain studies report.
"""

import re

from retina_ray.errors import ConfigError
from retina_ray.report.tables import display_name
from retina_ray.reproduce.experiment import Arm, Build, Column, Experiment, Row, Scope

NAME = "leave-one-source-out"

_METRICS = {"accuracy": ("acc", "%"), "auroc": ("AUROC", ""), "kappa_quadratic": ("kappa", ""), "ece": ("ECE", "%")}


def leave_one_out(scope: Scope) -> Experiment:
    """Return the test on each source of a method that was trained on the others.

    Raises:
        ConfigError: the data set has a single source.
    """
    if len(scope.sources) < 2:
        fix = "join data sets with `retina-ray data merge`"
        raise ConfigError("leaving one source out takes two or more", ", ".join(scope.sources), fix)
    columns = tuple(
        Column(f"{display_name(task)} {heading}", metric, task, unit=unit)  # type: ignore[arg-type]  # of `Unit`
        for task in scope.tasks
        for metric, (heading, unit) in _METRICS.items()
    )
    arms, rows = [], []
    for source in scope.sources:
        arm = Arm(f"without-{re.sub(r'[^A-Za-z0-9._-]+', '-', source)}", {"data.hold_out": source})
        arms.append(arm)
        if scope.has_baselines:
            rows.append(Row({"Tested on": source, "Model": "Single task"}, arm.name, baseline=True))
        against = len(rows) - 1 if scope.has_baselines else None
        rows.append(Row({"Tested on": source, "Model": display_name(scope.model)}, arm.name, against=against))
    notes = (
        "All images of a source test networks that were trained and chosen on the other sources; patients never cross.",
    )
    title = "Leave one source out"
    return Experiment(NAME, title, scope.method, tuple(arms), tuple(rows), columns, notes=notes)


EXPERIMENTS: dict[str, Build] = {NAME: leave_one_out}
