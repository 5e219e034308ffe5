"""Tables of the report: rows like SALL's Table III, as data and as HTML.

What is not here: the numbers (``metrics``) and the page around the tables (``build``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from markupsafe import Markup

from retina_ray.metrics.comparison import TaskDifference
from retina_ray.metrics.grading import METRICS
from retina_ray.metrics.summary import TaskSummary

MAIN_METRICS = ("accuracy", "confidence", "error", "auroc", "kappa_quadratic", "ece")
"""Columns of the first table: those of Table III, then what tells graders and their confidence apart."""

LOWER_IS_BETTER = frozenset({"error", "ece", "mce", "nll", "brier"})

LABELS = {
    "accuracy": "Accuracy (%)",
    "confidence": "Conf (%)",
    "error": "Err (%)",
    "auroc": "AUROC",
    "kappa": "Kappa",
    "kappa_linear": "Kappa, linear",
    "kappa_quadratic": "Kappa, quadratic",
    "f1_macro": "F1, macro (%)",
    "f1_weighted": "F1, weighted (%)",
    "precision_macro": "Precision, macro (%)",
    "precision_weighted": "Precision, weighted (%)",
    "ece": "ECE (%)",
    "mce": "MCE (%)",
    "nll": "NLL (nats)",
    "brier": "Brier",
}
"""Metrics of `grading.METRICS` as prose writes them, with their unit; per cent are of shares."""

_NAMES = {
    "sall": "SALL",
    "deepmt_dr": "DeepMT-DR",
    "single_task": "Single task",
    "single": "Single task",
    "dr": "DR",
    "amd": "AMD",
    "dme": "DME",
    "arteriosclerosis": "Arteriosclerosis",
}


@dataclass(frozen=True)
class Cell:
    """What stands in one place of a table.

    Attributes:
        text: the value.
        interval: its interval, empty if it has none.
    """

    text: str
    interval: str = ""


Row = Mapping[str, Cell]


def display_name(name: str) -> str:
    """Return a model's or task's name as prose writes it."""
    return _NAMES.get(name, name)


def format_value(metric: str, value: float, *, signed: bool = False) -> str:
    """Return a metric as text: in per cent where its label says so, else with three decimals; nan as ``n/a``."""
    if not np.isfinite(value):
        return "n/a"
    percent = LABELS[metric].endswith("(%)")
    sign = "+" if signed else ""
    # Adding 0.0 after rounding turns a negative zero into zero.
    return f"{round(value * 100.0, 1) + 0.0:{sign}.1f}" if percent else f"{round(value, 3) + 0.0:{sign}.3f}"


def format_interval(metric: str, interval: tuple[float, float] | None, *, signed: bool = False) -> str:
    """Return an interval as ``low to high``, empty if there is none or it is undefined."""
    if interval is None or not np.isfinite(interval).all():
        return ""
    return " to ".join(format_value(metric, bound, signed=signed) for bound in interval)


def comparison_rows(
    summaries: Sequence[TaskSummary],
    differences: Sequence[TaskDifference] = (),
    *,
    baseline: str,
    metrics: Sequence[str] = MAIN_METRICS,
) -> list[Row]:
    """Return rows like Table III's: per task the baseline, the other models, and what each gains over it.

    Args:
        summaries: of one split; tasks keep their order.
        differences: on the same split; those of other baselines are left out.
        baseline: the model that stands first.
        metrics: columns, names from `grading.METRICS`.
    """
    rows: list[Row] = []
    for task in dict.fromkeys(summary.task for summary in summaries):
        of_task = [summary for summary in summaries if summary.task == task]
        for summary in sorted(of_task, key=lambda each: (each.model != baseline, each.model)):
            rows.append(_row(task, display_name(summary.model), summary, metrics, signed=False))
        for difference in differences:
            if difference.task == task and difference.baseline == baseline:
                name = f"{display_name(difference.model)} minus {display_name(baseline).lower()}"
                rows.append(_row(task, name, difference, metrics, signed=True))
    return rows


def metric_rows(summaries: Sequence[TaskSummary]) -> list[Row]:
    """Return one row per metric and one column per summary, for all of `grading.METRICS`."""
    return [
        {
            "Metric": Cell(LABELS[metric]),
            **{
                f"{display_name(summary.task)}, {display_name(summary.model)}": Cell(
                    format_value(metric, summary.metrics[metric]),
                    format_interval(metric, summary.intervals.get(metric)),
                )
                for summary in summaries
            },
        }
        for metric in METRICS
    ]


def to_html(rows: Sequence[Row]) -> Markup:
    """Return the rows as an escaped HTML table, empty for no rows."""
    if not rows:
        return Markup("")
    head = Markup("").join(Markup('<th scope="col">{}</th>').format(name) for name in rows[0])
    body = Markup("").join(Markup("<tr>{}</tr>").format(Markup("").join(map(_html_cell, row.values()))) for row in rows)
    return Markup('<div class="scroll"><table><thead><tr>{}</tr></thead><tbody>{}</tbody></table></div>').format(
        head, body
    )


def _row(
    task: str, name: str, measured: TaskSummary | TaskDifference, metrics: Sequence[str], *, signed: bool
) -> dict[str, Cell]:
    return {
        "Task": Cell(display_name(task)),
        "Model": Cell(name),
        "Images": Cell(f"{measured.n:,}"),
        **{
            LABELS[metric]: Cell(
                format_value(metric, measured.metrics[metric], signed=signed),
                format_interval(metric, measured.intervals.get(metric), signed=signed),
            )
            for metric in metrics
        },
    }


def _html_cell(cell: Cell) -> Markup:
    interval = Markup("<small>{}</small>").format(cell.interval) if cell.interval else ""
    return Markup("<td>{}{}</td>").format(cell.text, interval)
