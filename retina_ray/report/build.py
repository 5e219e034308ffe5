"""A run's report: gathers tables and figures and writes them as one self-contained HTML file.

What is not here: how a figure or table looks (``figures``, ``progress_figures``, ``tables``, ``run.html.j2``),
and reading a run's folder (``orchestration``).
"""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
from matplotlib.figure import Figure

from retina_ray.data.schema import task_of
from retina_ray.metrics.comparison import TaskDifference, paired_differences
from retina_ray.metrics.grading import confusion_matrix
from retina_ray.metrics.probabilities import DEFAULT_BINS
from retina_ray.metrics.summary import TaskSummary
from retina_ray.metrics.table import Predictions, select
from retina_ray.report import deepmt_figures, figures, progress_figures, tables
from retina_ray.report.html import InlineFigure, InlineImage, figure_uri, flatten, write_page
from retina_ray.report.tables import Cell, Row, display_name

Shown = dict[str, dict[str, Predictions]]
"""The predictions of the report's split by task, then model, in the order in which they are shown."""


@dataclass(frozen=True, kw_only=True)
class ReportData:
    """Everything a report shows.

    Attributes:
        title: the run's name.
        config_yaml: the resolved configuration.
        summaries: of ``split``.
        predictions: the prediction table.
        histories: epoch records by stage.
        timings: by stage, seconds by phase with the ending ``_s``.
        cam_panels: cross-task Grad-CAM, may be empty.
        soft_labels: ``task``, ``temperature``, ``mean_max``, ``mean_variance`` each, may be empty.
        data_counts: images per visible grade, by split and task of the run; empty where they are not known.
        lesion_panels: DeepMT-DR's test images, may be empty.
        stage_tests: figures of each stage on the test split beyond grading, by stage; may be empty.
        environment: versions and machine; may be nested.
        notes: what the reader should know, such as what was left out.
        baseline: the model that the others are compared with.
        split: which predictions are shown.
        level: of all intervals, in (0, 1).
        resamples: bootstrap resamples of the differences; 0: no intervals.
        bins: of the calibration errors and reliability diagrams.
        seed: of the resamples.
    """

    title: str
    config_yaml: str
    summaries: Sequence[TaskSummary]
    predictions: pa.Table
    histories: Mapping[str, Sequence[Mapping[str, Any]]]
    timings: Mapping[str, Mapping[str, float]]
    soft_labels: Sequence[Mapping[str, Any]]
    data_counts: Mapping[str, Mapping[str, Sequence[int]]]
    environment: Mapping[str, Any]
    notes: Sequence[str]
    cam_panels: Sequence[figures.CamPanel] = ()
    lesion_panels: Sequence[deepmt_figures.LesionPanel] = ()
    stage_tests: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    baseline: str = "single_task"
    split: str = "test"
    level: float = 0.95
    resamples: int = 1000
    bins: int = DEFAULT_BINS
    seed: int = 0


@dataclass(frozen=True)
class Finding:
    """One sentence of the summary: what a model gains over the baseline on a task.

    ``interval`` and ``verdict``, which is judged by it, are empty without a defined interval.
    """

    task: str
    model: str
    baseline: str
    accuracy: str
    before: str
    gain: str
    interval: str
    verdict: str


def write_report(data: ReportData, path: Path) -> Path:
    """Write the report as one HTML file that needs nothing else; an older one is replaced whole.

    Returns:
        The path.

    Raises:
        DataError: predictions that cannot be read; see `metrics.table.validate`.
    """
    return write_page("run.html.j2", _context(data), path)


def _context(data: ReportData) -> dict[str, Any]:
    differences = paired_differences(
        data.predictions,
        baseline=data.baseline,
        split=data.split,
        resamples=data.resamples,
        level=data.level,
        bins=data.bins,
        seed=data.seed,
    )
    tasks = list(dict.fromkeys([*data.data_counts.get("train", {}), *(summary.task for summary in data.summaries)]))
    summaries = sorted(
        data.summaries, key=lambda each: (tasks.index(each.task), each.model != data.baseline, each.model)
    )
    differences.sort(key=lambda each: tasks.index(each.task))
    shown: Shown = {}
    for summary in summaries:
        rows = select(data.predictions, model=summary.model, task=summary.task, split=data.split)
        shown.setdefault(summary.task, {})[summary.model] = rows
    return {
        "title": data.title,
        "split": data.split,
        "level": f"{data.level:.0%}" if data.resamples else "",
        "facts": _facts(data, shown),
        "findings": [_finding(difference, summaries) for difference in differences],
        "main_table": tables.to_html(tables.comparison_rows(summaries, differences, baseline=data.baseline)),
        "notes": data.notes,
        "figures": [
            *_result_figures(data, shown),
            *_lesion_figures(data.lesion_panels),
            *_progress_figures(data),
        ],
        "all_metrics": tables.to_html(tables.metric_rows(summaries)),
        "timing_table": tables.to_html(_timing_rows(data.timings)),
        "restoration_table": tables.to_html(deepmt_figures.restoration_rows(data.stage_tests)),
        "lesion_table": tables.to_html(deepmt_figures.lesion_rows(data.stage_tests)),
        "soft_label_table": tables.to_html(_soft_label_rows(data.soft_labels)),
        "data_table": tables.to_html(_data_rows(data.data_counts)),
        "config": data.config_yaml,
        "environment": list(flatten(data.environment)),
    }


def _facts(data: ReportData, shown: Shown) -> list[tuple[str, str]]:
    """Return what was trained and measured, as label and value."""
    trained = data.data_counts.get("train", {})
    facts = [("Training images", _per_task({task: sum(counts) for task, counts in trained.items()}))]
    for label, column in (("images", "image_ids"), ("patients", "groups")):
        numbers = {
            task: len({name for rows in models.values() for name in getattr(rows, column)})
            for task, models in shown.items()
        }
        facts.append((f"{data.split.capitalize()} {label}", _per_task(numbers)))
    models = dict.fromkeys(display_name(model) for of_task in shown.values() for model in of_task)
    facts.append(("Models", ", ".join(models)))
    facts.append(("Stages", ", ".join(data.histories)))
    return [(label, value) for label, value in facts if value]


def _per_task(numbers: Mapping[str, int]) -> str:
    return ", ".join(f"{display_name(task)} {number:,}" for task, number in numbers.items())


def _finding(difference: TaskDifference, summaries: Sequence[TaskSummary]) -> Finding:
    accuracy = {
        summary.model: tables.format_value("accuracy", summary.metrics["accuracy"])
        for summary in summaries
        if summary.task == difference.task
    }
    interval = difference.intervals.get("accuracy")
    return Finding(
        task=display_name(difference.task),
        model=display_name(difference.model),
        baseline=display_name(difference.baseline).lower(),
        accuracy=accuracy.get(difference.model, "n/a"),
        before=accuracy.get(difference.baseline, "n/a"),
        gain=tables.format_value("accuracy", difference.metrics["accuracy"], signed=True),
        interval=tables.format_interval("accuracy", interval, signed=True),
        verdict=_verdict(interval),
    )


def _verdict(interval: tuple[float, float] | None) -> str:
    if interval is None or not np.isfinite(interval).all():
        return ""
    low, high = interval
    return "a clear gain" if low > 0.0 else "a clear loss" if high < 0.0 else "no clear difference"


def _result_figures(data: ReportData, shown: Shown) -> Iterator[InlineFigure]:
    if shown:
        yield InlineFigure(
            "Confusion matrices",
            "Rows are the true grade, columns the predicted one; each cell holds the images and their share of the "
            "row. The diagonal is right. What lies far from it matters most: a severe eye graded normal, lower left, "
            "or a normal one graded severe, upper right.",
            [InlineImage(display_name(task), figure_uri(_confusion(task, models))) for task, models in shown.items()],
        )
        yield InlineFigure(
            "Reliability",
            "Images are grouped by the confidence of their prediction. Accuracy is the top of the blue; red with "
            "stripes is confidence that the accuracy does not bear out, light blue with dots the reverse. The grey "
            "bars count the images: where they are short, the bar above is mostly noise.",
            [
                InlineImage(display_name(task), figure_uri(_reliability(models, data.bins)))
                for task, models in shown.items()
            ],
        )
    if data.soft_labels:
        yield InlineFigure(
            "Cross labels by temperature",
            "What the teachers say about the other tasks' images. Both curves fall with T: the label keeps the order "
            "of the grades but is less sure of the first. A mean maximum near 1/K says nothing about the grade.",
            [InlineImage("", figure_uri(figures.soft_label_statistics(data.soft_labels)))],
        )
    if data.cam_panels:
        yield InlineFigure(
            "What a network sees in another task's images",
            "Above the image with its own grade, below what drives the prediction of a network that was trained on "
            "another task: bright counts most. Shared lesions are what the synergic labels pass on.",
            [InlineImage("", figure_uri(figures.cam_panels(data.cam_panels)))],
        )


def _lesion_figures(panels: Sequence[deepmt_figures.LesionPanel]) -> Iterator[InlineFigure]:
    if any(len(panel.high) > len(panel.low) for panel in panels):
        yield InlineFigure(
            "From low to high resolution",
            "A detail of each image where its lesions are. Restored should show what bicubic enlargement blurs, above "
            "all small dark dots, and nothing that the high-resolution image does not have.",
            [InlineImage("", figure_uri(deepmt_figures.restoration(panels)))],
        )
    if panels:
        yield InlineFigure(
            "Lesions and evidence",
            "Found lesions come from the restored image; the evidence map shows where the grade comes from, bright "
            "counts most. It should lie on lesions, not on the optic disc or the rim.",
            [InlineImage("", figure_uri(deepmt_figures.lesions(panels)))],
        )


def _confusion(task: str, models: Mapping[str, Predictions]) -> Figure:
    matrices = {display_name(model): confusion_matrix(rows.probabilities, rows.truth) for model, rows in models.items()}
    num_grades = next(iter(matrices.values())).shape[0]
    known = task_of(task, num_grades).grades
    numbered = tuple(str(grade) for grade in range(num_grades))
    return figures.confusion_matrices(matrices, grades=known if len(known) == num_grades else numbered)


def _reliability(models: Mapping[str, Predictions], bins: int) -> Figure:
    predictions = {display_name(model): (rows.probabilities, rows.truth) for model, rows in models.items()}
    return figures.reliability_diagrams(predictions, bins=bins)


def _progress_figures(data: ReportData) -> Iterator[InlineFigure]:
    drawn = {stage: history for stage, history in data.histories.items() if progress_figures.can_draw(history)}
    if drawn:
        yield InlineFigure(
            "Training curves",
            "In the left panel solid lines are training, dashed ones validation. Validation loss that rises while "
            "training loss falls is over-fitting; the weights that are kept are those of the dotted epoch.",
            [
                InlineImage(stage, figure_uri(progress_figures.training_curves(history)))
                for stage, history in drawn.items()
            ],
        )
    timings = {stage: timing for stage, timing in data.timings.items() if progress_figures.stage_seconds(timing)}
    if timings:
        yield InlineFigure(
            "Where the time went",
            "Wall time of each stage by phase, since the start or the resume that finished it: what ran before is not "
            "counted. Data wait is time in which the accelerator had nothing to do; beyond "
            "a few per cent of compute, the loader is the bottleneck.",
            [InlineImage("", figure_uri(progress_figures.timing_bars(timings)))],
        )


def _timing_rows(timings: Mapping[str, Mapping[str, float]]) -> list[Row]:
    present = [phase for phase in progress_figures.PHASES if any(f"{phase}_s" in each for each in timings.values())]
    rows: list[Row] = []
    for stage, timing in timings.items():
        seconds = progress_figures.stage_seconds(timing)
        cells = {
            f"{phase.replace('_', ' ').capitalize()} (s)": Cell(f"{seconds[phase]:,.1f}" if phase in seconds else "")
            for phase in present
        }
        rows.append({"Stage": Cell(stage), **cells, "Total (s)": Cell(f"{sum(seconds.values()):,.1f}")})
    return rows


def _soft_label_rows(records: Sequence[Mapping[str, Any]]) -> list[Row]:
    ordered = sorted(records, key=lambda record: (record["task"], record["temperature"]))
    return [
        {
            "Labels": Cell(display_name(record["task"])),
            "T": Cell(f"{record['temperature']:g}"),
            "Mean maximum": Cell(f"{record['mean_max']:.4f}"),
            "Mean variance": Cell(f"{record['mean_variance']:.4f}"),
        }
        for record in ordered
    ]


def _data_rows(counts: Mapping[str, Mapping[str, Sequence[int]]]) -> list[Row]:
    widest = max((len(numbers) for tasks in counts.values() for numbers in tasks.values()), default=0)
    return [
        {
            "Task": Cell(display_name(task)),
            "Split": Cell(split),
            **{
                f"Grade {grade}": Cell(f"{numbers[grade]:,}" if grade < len(numbers) else "") for grade in range(widest)
            },
            "All": Cell(f"{sum(numbers):,}"),
        }
        for split, tasks in counts.items()
        for task, numbers in tasks.items()
    ]
