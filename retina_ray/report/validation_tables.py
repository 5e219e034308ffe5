"""The tables of an external validation as a reader sees them: rows of text, and a summary in Markdown.

What is not here: the numbers (``validation``), and the files for programs (``validation_files``).
"""

from collections.abc import Sequence

from retina_ray.metrics.operating_points import SCREENING_METRICS
from retina_ray.metrics.referral import REFERRAL_METRICS
from retina_ray.metrics.subgroups import SMALL
from retina_ray.report.tables import LABELS, display_name, format_interval, format_value
from retina_ray.report.validation import OperatingPoint, Validation

SHOWN_SHARES = (0.0, 0.1, 0.2, 0.3, 0.5)
"""Shares referred that tables show; the CSV file has all of `SHARES`."""

SUBGROUP_METRICS = ("accuracy", "kappa_quadratic", "auroc")
"""Metrics of subgroups that tables show; the CSV file has all of `METRICS`."""

SCREENING_LABELS = {
    "sensitivity": "Sens. (%)",
    "specificity": "Spec. (%)",
    "ppv": "PPV (%)",
    "npv": "NPV (%)",
    "flagged": "Flagged (%)",
}

Interval = tuple[float, float]


def _threshold(point: OperatingPoint) -> str:
    """Return the threshold, or the range of those of several runs, and what it was chosen for."""
    lowest, highest = min(point.decisions.thresholds), max(point.decisions.thresholds)
    text = f"{lowest:.3f}" if lowest == highest else f"{lowest:.3f} to {highest:.3f}"
    stated = point.decisions.stated
    return f"{text}, given" if stated is None else f"{text}, for {stated * 100.0:g} %"


def _model(name: str) -> str:
    return display_name(name).replace("_", " ")


def _part(point: OperatingPoint) -> str:
    """Return which images an operating point is measured on."""
    return f"{point.column}: {point.value}" if point.column else "all"


def summary(validation: Validation, *, title: str) -> str:
    """Return the tables that a reader looks at first, in Markdown."""
    sections = [
        [f"# {title}", "", "In brackets: intervals over patients. What each figure means: docs/validation.md."],
        ["## Referral", "", *_markdown(referral_table(validation)), "", "![Referral curves](referral.png)"],
        ["## Operating points", "", *_markdown(point_table(validation))],
    ]
    if validation.subgroups:
        note = f"Marked *: fewer than {SMALL} patients, too few for the intervals to be trusted."
        sections.append(["## Subgroups", "", *_markdown(subgroup_table(validation)), "", note])
    return "\n\n".join("\n".join(section) for section in sections) + "\n"


def referral_table(validation: Validation) -> list[list[str]]:
    """Return the head and the rows of what is reached at `SHOWN_SHARES`."""
    shares = [f"{share:.0%} referred" for share in SHOWN_SHARES]
    rows = [["Task", "Model", "Of the images kept", *shares, "Area"]]
    for each in validation.referrals:
        for metric in REFERRAL_METRICS:
            values = [format_value(metric, each.curve.at(share)[metric]) for share in SHOWN_SHARES]
            area = _with_interval(metric, each.curve.areas[metric], each.curve.area_intervals.get(metric))
            rows.append([display_name(each.task), _model(each.model), LABELS[metric], *values, area])
    return rows


def point_table(validation: Validation) -> list[list[str]]:
    """Return the head and the rows of the operating points."""
    rows = [["Disease", "Model", "Threshold", "On", "Images", "Referable", *SCREENING_LABELS.values()]]
    for point in validation.points:
        figures = point.figures
        shares = [
            _with_interval("accuracy", figures.metrics[name], figures.intervals.get(name)) for name in SCREENING_METRICS
        ]
        disease = f"{display_name(point.task)}, grade {point.referable_from} on"
        counts = [f"{figures.n:,}", f"{figures.num_referable:,}"]
        rows.append([disease, _model(point.model), _threshold(point), _part(point), *counts, *shares])
    return rows


def subgroup_table(validation: Validation) -> list[list[str]]:
    """Return the head and the rows of the subgroups, small ones marked with a star."""
    headings = [text for metric in SUBGROUP_METRICS for text in (LABELS[metric], "Gap to the rest")]
    rows = [["Task", "Model", "Subgroup", "Images", "Patients", *headings]]
    for each in validation.subgroups:
        cells = []
        for metric in SUBGROUP_METRICS:
            cells.append(_with_interval(metric, each.summary.metrics[metric], each.summary.intervals.get(metric)))
            gap = each.gaps.get(metric)
            cells.append(
                "" if gap is None else _with_interval(metric, gap, each.gap_intervals.get(metric), signed=True)
            )
        mark = "*" if each.small else ""
        names = [
            display_name(each.summary.task),
            _model(each.summary.model),
            f"{each.column}: {each.value}{mark}",
        ]
        rows.append([*names, f"{each.summary.n:,}", f"{each.patients:,}", *cells])
    return rows


def _with_interval(metric: str, value: float, interval: Interval | None, *, signed: bool = False) -> str:
    bounds = format_interval(metric, interval, signed=signed)
    text = format_value(metric, value, signed=signed)
    return f"{text} ({bounds})" if bounds else text


def _markdown(rows: Sequence[Sequence[str]]) -> list[str]:
    """Return rows as a table, the first as its head; what would end a cell or begin markup is escaped."""
    lines = ["| " + " | ".join(_escaped(cell) for cell in row) + " |" for row in rows]
    return [lines[0], "|" + "---|" * len(rows[0]), *lines[1:]]


def _escaped(cell: str) -> str:
    for sign in "\\|*_`<[":
        cell = cell.replace(sign, f"\\{sign}")
    return " ".join(cell.split())
