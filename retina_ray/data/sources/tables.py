"""What the adapters of published data sets share about labels: reading their tables, turning labels into grades.

What is not here: where photographs lie (``photographs``), and tables whose columns the user names (``csv_table``).
"""

import difflib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from retina_ray.data.sources.files import csv_lines
from retina_ray.errors import DataError

ICDR = {"0": 0, "1": 1, "2": 2, "3": 3, "4": 4}
"""International clinical DR scale (none, mild, moderate, severe, proliferative): the grades of task dr."""

ABSENT_PRESENT = {"0": 0, "1": 1}
"""A finding that is said to be there or not, without a grade: never a grade of a graded task."""

Labels = Mapping[str, tuple[str, Mapping[str, int]]]
"""Column -> our task, and the grade of each label. Labels that are not listed are refused, never guessed."""


@dataclass(frozen=True, slots=True)
class Line:
    """A line of a table: its number from 1, the header included, and its cells by column, both stripped of spaces."""

    number: int
    cells: Mapping[str, str]


def read_table(path: Path, *, columns: Sequence[str], delimiter: str = ",") -> list[Line]:
    """Read a table as its publisher ships it.

    Columns without a name, which spreadsheets leave behind, and empty lines are passed over.

    Args:
        path: the table, UTF-8, the first line naming the columns.
        columns: that it must have.
        delimiter: between cells.

    Raises:
        DataError: it cannot be read, lacks a column, has no lines, or one has more cells than the header.
    """
    lines = list(_lines(csv_lines(path, delimiter=delimiter), path, columns))
    if not lines:
        raise DataError("the table has no rows", str(path), "download or export it again")
    return lines


def _lines(rows: Iterator[list[str]], path: Path, columns: Sequence[str]) -> Iterator[Line]:
    header = [name.strip() for name in next(rows, [])]
    for column in columns:
        if column not in header:
            nearest = difflib.get_close_matches(column, header, n=1, cutoff=0.4)
            fix = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(filter(None, header)) or 'none'}"
            raise DataError(f"the table {path} lacks a column", column, fix)
    for number, row in enumerate(rows, start=2):
        cells = [cell.strip() for cell in row]
        if any(cells[len(header) :]):
            raise DataError(f"{path}, line {number}: more cells than the header", len(cells), "quote commas in cells")
        padded = cells + [""] * (len(header) - len(cells))
        if any(cells):
            yield Line(number, {name: cell for name, cell in zip(header, padded, strict=False) if name})


def find_table(root: Path, names: Iterable[str]) -> Path | None:
    """Return the first of the names that lies anywhere below a folder, or None.

    Archives are unpacked into a folder of their own or not, so the depth differs from copy to copy.

    Raises:
        DataError: the folder does not exist, or holds a table twice.
    """
    if not root.is_dir():
        raise DataError("there is no such folder", str(root), "name the folder into which the data set was unpacked")
    for name in names:
        found = sorted(path for path in root.rglob(name) if path.is_file())
        if len(found) > 1:
            raise DataError(f"{name} is there {len(found)} times", ", ".join(map(str, found)), "name one copy's folder")
        if found:
            return found[0]
    return None


def need_table(root: Path, names: Sequence[str]) -> Path:
    """Return the first of the names that lies anywhere below a folder.

    Raises:
        DataError: none does, or one does twice.
    """
    found = find_table(root, names)
    if found is None:
        raise DataError("the labels are missing", str(root), f"put {' or '.join(names)} into this folder")
    return found


def graded(cells: Mapping[str, str], labels: Labels) -> tuple[dict[str, int | None], str | None]:
    """Turn a line's labels into grades.

    Args:
        cells: of the line.
        labels: how to.

    Returns:
        The grade of each task, None where the cell is empty; and why the line cannot be used, else None: a label that
        is not listed, or no label at all. Where it cannot be used there are no grades.
    """
    grades: dict[str, int | None] = {}
    for column, (task, known) in labels.items():
        text = cells[column].removesuffix(".0")  # a column with gaps is often exported as 2.0
        if text and text not in known:
            return {}, f"unknown label: {column} is {cells[column]}, known are {', '.join(known)}"
        grades[task] = known.get(text)
    if all(grade is None for grade in grades.values()):
        return {}, f"no label: nothing in {', '.join(labels)}"
    return grades, None
