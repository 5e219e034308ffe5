"""The files of an external validation: the figure, its numbers as CSV, and a summary in Markdown.

What is not here: the numbers themselves (``validation``), and what the summary says (``validation_tables``).
"""

import csv
import io
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

from retina_ray.metrics.grading import METRICS
from retina_ray.metrics.operating_points import SCREENING_METRICS
from retina_ray.metrics.referral import REFERRAL_METRICS, SHARES
from retina_ray.report.figure_files import figure_bytes
from retina_ray.report.validation import Validation
from retina_ray.report.validation_figures import referral_figure
from retina_ray.report.validation_tables import Interval, summary


def validation_files(validation: Validation, *, title: str) -> Iterator[tuple[str, bytes]]:
    """Yield the name and content of each file of a validation.

    Args:
        validation: with at least one referral curve.
        title: what was validated, in words.
    """
    figure = referral_figure(validation.referrals)
    yield "referral.png", figure_bytes(figure, "png")
    yield "referral.svg", figure_bytes(figure, "svg")
    yield "referral.csv", _table(_referral_lines(validation))
    yield "operating_points.csv", _table(_point_lines(validation))
    if validation.subgroups:
        yield "subgroups.csv", _table(_subgroup_lines(validation))
    yield "validation.md", summary(validation, title=title).encode()


def _referral_lines(validation: Validation) -> Iterator[dict[str, Any]]:
    for each in validation.referrals:
        for place, share in enumerate(SHARES.tolist()):
            line: dict[str, Any] = {"task": each.task, "model": each.model, "share_referred": share}
            for metric in REFERRAL_METRICS:
                band = each.curve.bands.get(metric)
                line |= _valued(
                    metric,
                    float(each.curve.values[metric][place]),
                    None if band is None else tuple(band[place].tolist()),
                )
            yield line


def _point_lines(validation: Validation) -> Iterator[dict[str, Any]]:
    for point in validation.points:
        line: dict[str, Any] = {
            "task": point.task,
            "model": point.model,
            "referable_from": point.referable_from,
            "stated_sensitivity": point.decisions.stated,
            "thresholds": " ".join(map(repr, point.decisions.thresholds)),
            "validation_sensitivity": " ".join(map(repr, point.decisions.reached)),
            "subgroup": point.column,
            "value": point.value,
            "images": point.figures.n,
            "referable": point.figures.num_referable,
        }
        for metric in SCREENING_METRICS:
            line |= _valued(metric, point.figures.metrics[metric], point.figures.intervals.get(metric))
        yield line


def _subgroup_lines(validation: Validation) -> Iterator[dict[str, Any]]:
    for each in validation.subgroups:
        for metric in METRICS:
            yield {
                "task": each.summary.task,
                "model": each.summary.model,
                "subgroup": each.column,
                "value": each.value,
                "images": each.summary.n,
                "patients": each.patients,
                "small": "yes" if each.small else "no",
                "metric": metric,
                **_valued("figure", each.summary.metrics[metric], each.summary.intervals.get(metric)),
                **_valued("gap", each.gaps.get(metric), each.gap_intervals.get(metric)),
            }


def _valued(name: str, value: float | None, interval: Interval | None) -> Mapping[str, float | None]:
    """Return a figure and its bounds as cells; nan, as None, leaves a cell empty."""
    low, high = interval or (None, None)
    cells = {name: value, f"{name}_low": low, f"{name}_high": high}
    return {key: None if cell != cell else cell for key, cell in cells.items()}


def _table(lines: Iterable[Mapping[str, Any]]) -> bytes:
    """Return lines as CSV; all have the columns of the first."""
    text = io.StringIO()
    rows = list(lines)
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue().encode()
