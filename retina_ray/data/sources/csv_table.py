"""Photographs listed in a CSV table, one line each, whose columns the caller names.

A published data set that is one table needs no adapter of its own: it is a mapping of columns.
"""

import csv
import difflib
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from retina_ray.data.schema import SPLITS
from retina_ray.data.sources.base import SourceRow, check_grade
from retina_ray.errors import DataError

OPTIONAL_COLUMNS = ("id", "group", "split", "laterality")
"""Beside ``image``, which is required; any other key of the mapping names a task."""

_LATERALITIES = {"l": "left", "left": "left", "os": "left", "r": "right", "right": "right", "od": "right"}


def read_csv(path: Path, *, columns: Mapping[str, str], name: str | None = None) -> list[SourceRow]:
    """Read a table of photographs.

    Args:
        path: the table, UTF-8, comma-separated, the first line naming the columns. Images are looked up relative to
            its folder.
        columns: our name -> column. ``image`` is required; ``id``, ``group`` (default: each image its own),
            ``split`` and ``laterality`` (left, right, L, R, OS, OD) are optional; every other key is a task, whose
            cells hold a grade or nothing.
        name: of the source; default: the table's name without its suffix.

    Returns:
        A row per line; ``image_id`` is the cell of ``id``, else that of ``image``.

    Raises:
        DataError: the table cannot be read, lacks a column, or has a cell or an image that cannot be used; the
            message gives the line.
    """
    tasks = [key for key in columns if key not in ("image", *OPTIONAL_COLUMNS)]
    if "image" not in columns or not tasks:
        raise DataError("the columns of the images and of a task must be named", dict(columns), "add image=... dr=...")
    source = name or path.stem
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            reader = csv.DictReader(file, strict=True)
            _check_columns(reader.fieldnames or [], columns, path)
            rows = [
                _row(cells, columns, tasks, path=path, line=line, source=source) for line, cells in _numbered(reader)
            ]
    except OSError as error:
        raise DataError("the table cannot be read", f"{path} ({error.strerror})", "check the path") from error
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError("the table is no CSV in UTF-8", f"{path} ({error})", "export it again") from error
    if not rows:
        raise DataError("the table has no rows", str(path), "check the export")
    _check_images(rows, path)
    return rows


def _numbered(reader: "csv.DictReader[str]") -> Iterable[tuple[int, dict[str, str]]]:
    for cells in reader:
        yield reader.line_num, cells


def _check_columns(found: Sequence[str], columns: Mapping[str, str], path: Path) -> None:
    for column in columns.values():
        if column not in found:
            nearest = difflib.get_close_matches(column, found, n=1, cutoff=0.4)
            fix = f"did you mean {nearest[0]!r}?" if nearest else f"it has {', '.join(found)}"
            raise DataError(f"the table {path} lacks a column", column, fix)


def _row(
    cells: Mapping[str, str | None],
    columns: Mapping[str, str],
    tasks: Sequence[str],
    *,
    path: Path,
    line: int,
    source: str,
) -> SourceRow:
    where = f"{path}, line {line}"
    if None in cells.values() or None in cells:
        raise DataError(f"{where}: the line has fewer or more cells than the header", line, "quote commas inside cells")

    def cell(key: str) -> str | None:
        return (cells[columns[key]] or "").strip() or None if key in columns else None

    image = cell("image")
    if image is None:
        raise DataError(f"{where}: no image is named", "empty cell", "name a file or delete the line")
    image_id = cell("id") or image
    split, laterality = cell("split"), cell("laterality")
    if split not in (None, *SPLITS):
        raise DataError(f"{where}: no such split", split, f"use {', '.join(SPLITS)}, or leave it empty")
    if laterality is not None and laterality.lower() not in _LATERALITIES:
        raise DataError(f"{where}: no such laterality", laterality, "use left or right, or leave it empty")
    return SourceRow(
        image=path.parent / image,
        image_id=image_id,
        group_id=cell("group") or image_id,
        source=source,
        grades={task: _grade(cell(task), task, where) for task in tasks},
        split=split,
        laterality=laterality and _LATERALITIES[laterality.lower()],
        line=line,
    )


def _grade(text: str | None, task: str, where: str) -> int | None:
    if text is None:
        return None
    try:
        number = float(text)  # a column with gaps is often exported as 2.0
    except ValueError:
        number = float("nan")
    if not number.is_integer():
        raise DataError(f"{where}: the grade of task {task} is no whole number", text, "correct or empty the cell")
    check_grade(task, int(number), where)
    return int(number)


def _check_images(rows: Sequence[SourceRow], path: Path) -> None:
    missing = [row for row in rows if not row.image.is_file()]
    if missing:
        first = missing[0]
        raise DataError(
            f"{path}, line {first.line}: the image is missing ({len(missing)} of {len(rows)} are)",
            str(first.image),
            "paths are relative to the table's folder: move the table, or correct the column",
        )
