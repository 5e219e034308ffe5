"""The files of a finished experiment: its table in three forms, its record, its charts and pictures."""

from collections.abc import Mapping
from typing import Any

from matplotlib.figure import Figure

from retina_ray.config import RunConfig
from retina_ray.data.store import Store
from retina_ray.methods.sall import SINGLE_TASK
from retina_ray.metrics.grading import confusion_matrix
from retina_ray.metrics.json_text import json_text
from retina_ray.metrics.table import Predictions
from retina_ray.orchestration import report_deepmt, report_sall
from retina_ray.orchestration.preparation import open_dataset
from retina_ray.orchestration.reproduce_grid import Layout, folder_of
from retina_ray.provenance import environment
from retina_ray.report.deepmt_figures import lesions, restoration
from retina_ray.report.figure_files import figure_bytes
from retina_ray.report.figures import cam_panels, confusion_matrices, reliability_diagrams
from retina_ray.report.tables import display_name
from retina_ray.reproduce.chart import draw_chart
from retina_ray.reproduce.experiment import Drawing, Experiment
from retina_ray.reproduce.measure import SeedOutcomes, pooled
from retina_ray.reproduce.table import Finished, to_csv, to_latex, to_markdown
from retina_ray.training.artifact import HISTORY
from retina_ray.training.stage import select_rows

RESULTS = "results.json"
"""Every number, and what it was made with."""


def write_outputs(
    store: Store,
    finished: Finished,
    config: RunConfig,
    *,
    outcomes: Mapping[str, SeedOutcomes],
    layout: Layout,
    data: Mapping[str, str],
) -> dict[str, str]:
    """Write an experiment's files into its folder.

    Args:
        store: of the folder.
        finished: the numbers.
        config: what the arms changed.
        outcomes: of every arm.
        layout: the runs of every arm.
        data: fingerprint of each data set that the numbers are of, by its address.

    Returns:
        Where each file lies, by its name.
    """
    experiment = finished.experiment
    files = {RESULTS: json_text(_record(finished, config, layout, data)).encode()}
    if experiment.rows:
        files["table.md"] = to_markdown(finished).encode()
        files["table.csv"] = to_csv(finished).encode()
        files["table.tex"] = to_latex(finished).encode()
    for name, figure in _figures(finished, outcomes, layout).items():
        files[f"{name}.png"], files[f"{name}.svg"] = figure_bytes(figure, "png"), figure_bytes(figure, "svg")
    for name, content in files.items():
        store.write_bytes(name, content)
    return {name: f"{store.uri}/{name}" for name in files}


def _record(finished: Finished, config: RunConfig, layout: Layout, data: Mapping[str, str]) -> dict[str, Any]:
    experiment = finished.experiment
    return {
        "experiment": experiment.name,
        "title": experiment.title,
        "setting": finished.setting,
        "data": dict(data),
        "not_comparable": finished.apart,
        "level": finished.level,
        "config": config.model_dump(mode="json"),
        "runs": {arm: [[run.name for run in runs] for runs in seeds] for arm, seeds in layout.items()},
        "figures": [
            {
                "row": row.cells,
                "arm": row.arm,
                "baseline": row.baseline,
                "column": column.label,
                "metric": column.metric,
                "by_seed": found.values.tolist(),
                "mean": found.mean,
                "sd": found.spread,
                "interval": list(found.interval),
                "images": found.images,
                "paper": None if (printed := row.printed.get(column.label)) is None else printed.value,
                "gain": _gain(finished, number, column.label),
            }
            for number, row in enumerate(experiment.rows)
            for column in experiment.columns
            if (found := finished.cells.get((number, column.label))) is not None
        ],
        "notes": list(experiment.notes),
        "environment": environment(),
    }


def _gain(finished: Finished, number: int, label: str) -> dict[str, Any] | None:
    """Return what a row gains over the one that it is compared with."""
    gain, against = finished.gains.get((number, label)), finished.experiment.rows[number].against
    if gain is None or against is None:
        return None
    return {"over": finished.experiment.rows[against].cells, "mean": gain.mean, "interval": list(gain.interval)}


def _figures(finished: Finished, outcomes: Mapping[str, SeedOutcomes], layout: Layout) -> dict[str, Figure]:
    experiment = finished.experiment
    stem = experiment.name.partition("-")[2]
    drawn = {f"{stem}{axes.name}": draw_chart(finished, axes) for axes in experiment.charts}
    if experiment.drawing is not None:
        config = layout[experiment.drawing.arm][0][0]
        drawn |= {
            f"{stem}-{name}" if name else stem: figure
            for name, figure in _draw(experiment, experiment.drawing, config, outcomes[experiment.drawing.arm]).items()
        }
    return drawn


def _draw(experiment: Experiment, drawing: Drawing, config: RunConfig, outcomes: SeedOutcomes) -> dict[str, Figure]:
    """Return figures of the first run of an arm, or of the first seed's pooled folds, by the ending of their names."""
    dataset = open_dataset(config)
    if drawing.kind in ("confusion", "reliability"):
        grades = {task.name: task.grades for task in dataset.tasks}
        return {task: _of_predictions(drawing, task, grades[task], outcomes, config) for task in config.method.tasks}
    selection = select_rows(config, dataset)
    artifacts = folder_of(config).artifacts()
    trained = {name: artifact for name, artifact in artifacts.items() if HISTORY in artifact.files}
    if drawing.kind == "cross_task":
        return {"": cam_panels(report_sall.cross_task_panels(config, dataset, selection, trained))}
    panels = report_deepmt.panels(config, dataset, selection, trained)
    return {"": restoration(panels) if drawing.kind == "restoration" else lesions(panels)}


def _of_predictions(
    drawing: Drawing, task: str, grades: tuple[str, ...], outcomes: SeedOutcomes, config: RunConfig
) -> Figure:
    final = outcomes[0][0].model
    models: dict[str, Predictions] = {
        f"{display_name(task)}: {display_name(model)}": pooled(outcomes[0], task=task, model=model)
        for model in (SINGLE_TASK, final)
    }
    if drawing.kind == "confusion":
        matrices = {title: confusion_matrix(each.probabilities, each.truth) for title, each in models.items()}
        return confusion_matrices(matrices, grades=grades)
    pairs = {title: (each.probabilities, each.truth) for title, each in models.items()}
    return reliability_diagrams(pairs, bins=config.evaluate.bins)
