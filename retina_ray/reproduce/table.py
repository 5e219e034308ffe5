"""A finished experiment as a table: in Markdown for people, in CSV for programs, in LaTeX for papers.

What is not here: measuring (``measure``) and what is measured (``experiment``).
"""

import csv
import io
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

from retina_ray.reproduce.experiment import Column, Experiment, Row, Unit
from retina_ray.reproduce.measure import Measured

SCALE: dict[Unit, float] = {"%": 100.0, "dB": 1.0, "images": 1.0, "": 1.0}
"""What a figure is multiplied by to be shown in its unit."""

_DECIMALS: dict[Unit, int] = {"%": 2, "dB": 2, "images": 0, "": 3}

_PLUS_MINUS = "\N{PLUS-MINUS SIGN}"

_LATEX = {
    **{each: f"\\{each}" for each in "&%$#_{}"},
    "\\": r"\textbackslash{}",
    "~": r"\textasciitilde{}",
    "^": r"\textasciicircum{}",
    "<": r"\textless{}",
    ">": r"\textgreater{}",
    "|": r"\textbar{}",
    _PLUS_MINUS: r"$\pm$",
}

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
    if finished.gains:
        parts += [f"{_DIFFERENCES}:", _markdown(_gain_headings(finished), list(_gain_lines(finished)))]
    notes = [*_explanations(finished), *experiment.notes]
    return "\n\n".join(part for part in [*parts, "\n".join(f"* {note}" for note in notes)] if part) + "\n"


def to_csv(finished: Finished) -> str:
    """Return a line for every figure, ours and the paper's, in the unit of its column."""
    experiment = finished.experiment
    names = _names(experiment)
    out = io.StringIO()
    writer = csv.writer(out, lineterminator="\n")
    ours_columns = ["mean", "sd", "low", "high", "seeds", "images", "gain_over", "gain", "gain_low", "gain_high"]
    paper_columns = ["paper", "paper_sd", "paper_comparable"]
    writer.writerow([*names, "figure", "unit", *ours_columns, *paper_columns, "left_out"])
    comparable = "no" if finished.apart else "yes"
    for number, row in enumerate(experiment.rows):
        for column in experiment.columns:
            found, printed = finished.cells.get((number, column.label)), row.printed.get(column.label)
            ours = _figures(found, column) if found else [_plain(row.given.get(column.label)), *[""] * 5]
            paper = [_plain(printed.value), _plain(printed.spread), comparable] if printed else [""] * 3
            if any(ours) or any(paper):
                cells = [row.cells.get(name, "") for name in names]
                gain = _gained(experiment, row, finished.gains.get((number, column.label)), column)
                writer.writerow([*cells, column.label, column.unit, *ours, *gain, *paper, row.left_out])
    return out.getvalue()


def to_latex(finished: Finished) -> str:
    """Return the same for a paper that uses booktabs and graphicx: a table, and one of the differences."""
    experiment = finished.experiment
    words, label = len(_names(experiment)), experiment.name
    notes = " ".join(_latex(note) for note in [finished.setting, *_explanations(finished), *experiment.notes])
    caption = f"{_latex(experiment.title)}. {notes}"
    table = _latex_table(_headings(finished), _lines(finished), caption=caption, label=label, words=words)
    if not finished.gains:
        return table
    caption = f"{_latex(experiment.title)}. {_latex(_DIFFERENCES)}."
    gains = list(_gain_lines(finished))
    return table + _latex_table(_gain_headings(finished), gains, caption=caption, label=f"{label}-gains", words=1)


def _latex_table(
    headings: Sequence[str], lines: Sequence[Sequence[str]], *, caption: str, label: str, words: int
) -> str:
    return "\n".join(
        [
            r"\begin{table}",
            r"\centering",
            rf"\caption{{{caption}}}",
            rf"\label{{tab:{label}}}",
            r"\resizebox{\ifdim\width>\linewidth\linewidth\else\width\fi}{!}{"
            rf"\begin{{tabular}}{{{'l' * words}{'r' * (len(headings) - words)}}}",
            r"\toprule",
            " & ".join(_latex(heading) for heading in headings) + r" \\",
            r"\midrule",
            *(" & ".join(_latex(cell) for cell in line) + r" \\" for line in lines),
            r"\bottomrule",
            r"\end{tabular}}",
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
                line.append(_paper(experiment, row, column))
        lines.append(line)
    return lines


def _ours(row: Row, column: Column, found: Measured | None) -> str:
    if found is not None:
        return _cell(found, column.unit)
    if column.label in row.given:
        return shown(row.given[column.label], column.unit)
    return "left out" if row.left_out else ""


def _cell(found: Measured, unit: Unit, *, sign: str = "") -> str:
    """Return mean, spread and interval, without what is undefined."""
    text = shown(found.mean, unit)
    if sign and not text.startswith(("-", "n")):
        text = sign + text
    if math.isfinite(found.spread):
        text += f" {_PLUS_MINUS} {shown(found.spread, unit)}"
    if all(map(math.isfinite, found.interval)):
        text += f" [{', '.join(shown(bound, unit) for bound in found.interval)}]"
    return text


def _paper(experiment: Experiment, row: Row, column: Column) -> str:
    """Return what the paper prints, with as many decimals as it has in that column."""
    printed = row.printed.get(column.label)
    if printed is None:
        return ""
    every = (each.printed[column.label].value for each in experiment.rows if column.label in each.printed)
    decimals = max(len(f"{value:g}".partition(".")[2]) for value in every)
    return f"{printed.value:.{decimals}f}" + (f" ({printed.spread:g})" if printed.spread is not None else "")


_DIFFERENCES = "Differences, with the interval of the difference itself"


def _gain_headings(finished: Finished) -> list[str]:
    return ["Row", *(_heading(column) for column in finished.experiment.columns)]


def _gain_lines(finished: Finished) -> Iterator[list[str]]:
    rows, compared = finished.experiment.rows, {number for number, _ in finished.gains}
    for number, row in enumerate(rows):
        if row.against is not None and number in compared:
            cells = []
            for column in finished.experiment.columns:
                found = finished.gains.get((number, column.label))
                cells.append("" if found is None else _cell(found, column.unit, sign="+"))
            yield [f"{_called(row)} minus {_called(rows[row.against])}", *cells]


def _called(row: Row) -> str:
    """Return what names a row, with its headings where there are several."""
    if len(row.cells) == 1:
        return next(iter(row.cells.values()))
    return ", ".join(f"{heading} {cell}" for heading, cell in row.cells.items())


def _explanations(finished: Finished) -> list[str]:
    """Return what the numbers mean, and why some are missing."""
    found = list(finished.cells.values())
    notes = []
    if found:
        several = len(found[0].values) > 1
        spread = f" {_PLUS_MINUS} standard deviation over seeds" if several else ""
        notes.append(f"Ours: mean{spread}, [{finished.level:.0%} interval of the mean].")
        if any(len(each.samples) for each in found):
            what = "what other patients would have changed, not what other seeds would"
            notes.append(f"Intervals of figures of predictions are over patients drawn anew: {what}.")
        if several and not all(len(each.samples) for each in found):
            notes.append("Intervals of the other figures are Student's over seeds.")
    if any(row.printed for row in finished.experiment.rows):
        notes.append(f"Not comparable with the paper's: {finished.apart}." if finished.apart else _COMPARABLE)
    reasons: dict[str, list[str]] = {}
    for row in finished.experiment.rows:
        if row.left_out:
            reasons.setdefault(row.left_out, []).append(_called(row))
    return [*notes, *(f"Left out: {'; '.join(rows)}: {reason}." for reason, rows in reasons.items())]


_COMPARABLE = "The paper's figures are on the same data set: comparable if these are its own splits."


def _figures(found: Measured, column: Column) -> list[str]:
    numbers = [found.mean, found.spread, *found.interval]
    scaled = [_plain(SCALE[column.unit] * number) for number in numbers]
    return [*scaled, str(len(found.values)), str(found.images or "")]


def _gained(experiment: Experiment, row: Row, gain: Measured | None, column: Column) -> list[str]:
    """Return the row that one is compared with, and by how much it is above it; empty for none."""
    if gain is None or row.against is None:
        return [""] * 4
    numbers = [_plain(SCALE[column.unit] * number) for number in (gain.mean, *gain.interval)]
    return [_called(experiment.rows[row.against]), *numbers]


def _plain(value: float | None) -> str:
    return "" if value is None or not math.isfinite(value) else f"{value:.6g}"


def _markdown(headings: Sequence[str], lines: Sequence[Sequence[str]]) -> str:
    rows = [headings, ["---"] * len(headings), *lines]
    return "\n".join("| " + " | ".join(cell.replace("|", "\\|") for cell in row) + " |" for row in rows)


def _latex(text: str) -> str:
    return "".join(_LATEX.get(each, each) for each in text)
