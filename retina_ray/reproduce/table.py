"""A finished experiment as a table: in Markdown for people, in CSV for programs, in LaTeX for papers.

What is not here: measuring (``measure``) and what is measured (``experiment``).
"""

import csv
import io
import math
import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from retina_ray.reproduce.experiment import Column, Experiment, Row, Unit
from retina_ray.reproduce.measure import Measured

SCALE: dict[Unit, float] = {"%": 100.0, "dB": 1.0, "images": 1.0, "": 1.0}
"""What a figure is multiplied by to be shown in its unit."""

_DECIMALS: dict[Unit, int] = {"%": 2, "dB": 2, "images": 0, "": 3}

_LATEX = {**{each: f"\\{each}" for each in "&%$#_{}"}, "\\": r"\textbackslash{}", "~": r"\textasciitilde{}"}

Cells = Mapping[tuple[int, str], Measured]
"""A figure by number of its row and label of its column."""


@dataclass(frozen=True)
class Finished:
    """An experiment with what was measured.

    Attributes:
        experiment: what it is.
        cells: what each row reaches.
        gains: what each row that is compared with another one gains over it.
        apart: why the paper's figures cannot be compared with ours; empty where they can.
        level: coverage of the intervals.
        setting: of the runs, in words: data set, budget, seeds, folds.
    """

    experiment: Experiment
    cells: Cells
    gains: Cells = field(default_factory=dict)
    apart: str = ""
    level: float = 0.95
    setting: str = ""


def to_markdown(finished: Finished) -> str:
    """Return the table, the differences between its rows, and what the reader should know."""
    experiment = finished.experiment
    parts = [f"# {experiment.title}", finished.setting, _markdown(_headings(finished), _lines(finished))]
    if gains := [line for line in _gain_lines(finished) if any(line[1:])]:
        first, columns = "Row", [_heading(column) for column in experiment.columns]
        parts += ["Differences, with the interval of the difference itself:", _markdown([first, *columns], gains)]
    notes = [*_explanations(finished), *experiment.notes]
    return "\n\n".join(part for part in [*parts, "\n".join(f"* {note}" for note in notes)] if part) + "\n"


def to_csv(finished: Finished) -> str:
    """Return a line for every figure, ours and the paper's, in the unit of its column."""
    experiment = finished.experiment
    names = _names(experiment)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    writer.writerow([*names, "figure", "unit", "mean", "sd", "low", "high", "seeds", "images", "paper", "paper_sd"])
    for number, row in enumerate(experiment.rows):
        for column in experiment.columns:
            found, printed = finished.cells.get((number, column.label)), row.printed.get(column.label)
            ours = _figures(found, column) if found else [_plain(row.given.get(column.label)), *[""] * 5]
            paper = [_plain(printed.value), _plain(printed.spread)] if printed else ["", ""]
            if any(ours) or any(paper):
                cells = [row.cells.get(name, "") for name in names]
                writer.writerow([*cells, column.label, column.unit, *ours, *paper])
    return out.getvalue()


def to_latex(finished: Finished) -> str:
    """Return a table for a paper that uses the package booktabs."""
    headings, lines = _headings(finished), _lines(finished)
    words = len(_names(finished.experiment))
    label = finished.experiment.name
    body = "\n".join(" & ".join(_latex(cell) for cell in line) + r" \\" for line in lines)
    notes = " ".join(_latex(note) for note in _explanations(finished))
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{_latex(finished.experiment.title)}. {notes}}}",
            rf"\label{{tab:{label}}}",
            rf"\begin{{tabular}}{{{'l' * words}{'r' * (len(headings) - words)}}}",
            r"\toprule",
            " & ".join(_latex(heading) for heading in headings) + r" \\",
            r"\midrule",
            body,
            r"\bottomrule",
            r"\end{tabular}",
            r"\end{table}",
            "",
        ]
    )


def shown(value: float, unit: Unit) -> str:
    """Return a figure as text in its unit, ``n/a`` where it is undefined."""
    return f"{SCALE[unit] * value:.{_DECIMALS[unit]}f}" if math.isfinite(value) else "n/a"


def _names(experiment: Experiment) -> list[str]:
    """Return the headings of what names the rows."""
    return list(dict.fromkeys(name for row in experiment.rows for name in row.cells))


def _heading(column: Column) -> str:
    return f"{column.label} ({column.unit})" if column.unit in ("%", "dB") else column.label


def _headings(finished: Finished) -> list[str]:
    experiment = finished.experiment
    headings = _names(experiment)
    for column in experiment.columns:
        headings += [_heading(column), *([f"{column.label}, paper"] if _is_printed(experiment, column) else [])]
    return headings


def _is_printed(experiment: Experiment, column: Column) -> bool:
    return any(column.label in row.printed for row in experiment.rows)


def _lines(finished: Finished) -> list[list[str]]:
    experiment = finished.experiment
    names = _names(experiment)
    lines = []
    for number, row in enumerate(experiment.rows):
        line = [row.cells.get(name, "") for name in names]
        for column in experiment.columns:
            line.append(_ours(row, column, finished.cells.get((number, column.label))))
            if _is_printed(experiment, column):
                line.append(_paper(row, column))
        lines.append(line)
    return lines


def _ours(row: Row, column: Column, found: Measured | None) -> str:
    if found is not None:
        return _cell(found, column.unit)
    if column.label in row.given:
        return shown(row.given[column.label], column.unit)
    return "left out" if row.left_out else ""


def _cell(found: Measured, unit: Unit, *, sign: str = "") -> str:
    """Return ``mean ± spread [low, high]``, without what is undefined."""
    text = shown(found.mean, unit)
    if sign and not text.startswith(("-", "n")):
        text = sign + text
    if math.isfinite(found.spread):
        text += f" ± {shown(found.spread, unit)}"
    if all(map(math.isfinite, found.interval)):
        text += f" [{', '.join(shown(bound, unit) for bound in found.interval)}]"
    return text


def _paper(row: Row, column: Column) -> str:
    printed = row.printed.get(column.label)
    if printed is None:
        return ""
    return f"{printed.value:g}" + (f" ({printed.spread:g})" if printed.spread is not None else "")


def _gain_lines(finished: Finished) -> Iterator[list[str]]:
    rows = finished.experiment.rows
    for number, row in enumerate(rows):
        if row.against is not None:
            cells = []
            for column in finished.experiment.columns:
                found = finished.gains.get((number, column.label))
                cells.append("" if found is None else _cell(found, column.unit, sign="+"))
            yield [f"{_called(row)} minus {_called(rows[row.against])}", *cells]


def _called(row: Row) -> str:
    return " / ".join(row.cells.values())


def _explanations(finished: Finished) -> list[str]:
    """Return what the numbers mean, and why some are missing."""
    found = list(finished.cells.values())
    notes = []
    if found:
        spread = " ± standard deviation over seeds" if len(found[0].values) > 1 else ""
        notes.append(f"Ours: mean{spread}, [{finished.level:.0%} interval of the mean].")
    if any(row.printed for row in finished.experiment.rows):
        notes.append(f"Not comparable with the paper's: {finished.apart}." if finished.apart else _COMPARABLE)
    reasons: dict[str, list[str]] = {}
    for row in finished.experiment.rows:
        if row.left_out:
            reasons.setdefault(row.left_out, []).append(_called(row))
    return [*notes, *(f"Left out: {'; '.join(rows)}: {reason}." for reason, rows in reasons.items())]


_COMPARABLE = "The paper's figures are on the same images and split, and can be compared."


def _figures(found: Measured, column: Column) -> list[str]:
    numbers = [found.mean, found.spread, *found.interval]
    scaled = [_plain(SCALE[column.unit] * number) for number in numbers]
    return [*scaled, str(len(found.values)), str(found.images or "")]


def _plain(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _latex(text: str) -> str:
    escaped = re.sub(r"[&%$#_{}\\~]", lambda found: _LATEX[found[0]], text)
    return escaped.replace("±", r"$\pm$")
