"""Photographs listed in a CSV table, one line each, whose columns the caller names.

A published data set that is one table needs no adapter of its own: it is a mapping of columns.
"""

import csv
import difflib
import io
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path

from retina_ray.data.schema import SPLIT_WORDS
from retina_ray.data.sources.base import SourceRow, unlabelled_rows, wrong_grade
from retina_ray.data.sources.files import MISSING, read_text, versions
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
            ``split`` (one of `SPLIT_WORDS`) and ``laterality`` (left, right, L, R, OS, OD), both in any case, are
            optional; every other key is a task, whose cells hold a grade or nothing.
        name: of the source; default: the table's name without its suffix.

    Returns:
        A row per line, whose ``image_id`` is the cell of ``id``, else that of ``image``; a line that cannot be used is
        a refused row that says why. Then a refused row per photograph that lies beside the listed ones.

    Raises:
        DataError: the table cannot be read, lacks a column, or none of its images is there.
    """
    tasks = [key for key in columns if key not in ("image", *OPTIONAL_COLUMNS)]
    if "image" not in columns or not tasks:
        named = ",".join(f"{ours}={theirs}" for ours, theirs in columns.items()) or "none is"
        fix = "write --columns image=...,dr=..."
        raise DataError("the columns of the images and of a task must be named", named, fix)
    source = name or path.stem
    try:
        reader = csv.DictReader(io.StringIO(read_text(path), newline=""), strict=True)
        if not reader.fieldnames:
            raise DataError("the table is empty", str(path), "export it again")
        _check_columns(reader.fieldnames, columns, path)
        rows = [_row(cells, columns, tasks, path=path, line=line, source=source) for line, cells in _numbered(reader)]
    except csv.Error as error:
        raise DataError("the table is no CSV in UTF-8", f"{path} ({error})", "export it again") from error
    if not rows:
        raise DataError("the table has no rows", str(path), "check the export")
    rows = _with_missing_images(rows, path)
    images = {row.image for row in rows if row.image != path}
    folders = {image.parent for image in images}
    return rows + unlabelled_rows(
        folders, images, source=source, root=path.parent, reason=f"{path.name} does not list it"
    )


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
    def cell(key: str) -> str | None:
        return (cells.get(columns[key]) or "").strip() or None if key in columns else None

    image, split, laterality = cell("image"), cell("split"), cell("laterality")
    image_id = cell("id") or image or f"line {line}"
    grades, refused = _grades({task: cell(task) for task in tasks})
    if split is not None and split.lower() not in SPLIT_WORDS:
        refused = f"no such split: {split}, known are {', '.join(SPLIT_WORDS)}"
    if laterality is not None and laterality.lower() not in _LATERALITIES:
        refused = f"no such laterality: {laterality}, known are left and right"
    if image is None:
        refused = "label without image: the line names none"
    if None in cells.values() or None in cells:
        refused = "unreadable line: it has fewer or more cells than the header"
    return SourceRow(
        image=path.parent / image if image else path,
        image_id=image_id,
        group_id=cell("group") or image_id,
        source=source,
        grades={} if refused else grades,
        split=None if refused or split is None else SPLIT_WORDS[split.lower()],
        laterality=None if refused or laterality is None else _LATERALITIES[laterality.lower()],
        line=line,
        refused=refused,
    )


def _grades(cells: Mapping[str, str | None]) -> tuple[dict[str, int | None], str | None]:
    """Return the grade of each task, None where the cell is empty; and what is wrong with the first bad one."""
    grades: dict[str, int | None] = {}
    for task, text in cells.items():
        try:
            number = None if text is None else float(text)  # a column with gaps is often exported as 2.0
        except ValueError:
            number = float("nan")
        if number is not None and not number.is_integer():
            return {}, f"no such grade: {text} of task {task} is no whole number"
        if number is not None and (wrong := wrong_grade(task, int(number))):
            return {}, wrong
        grades[task] = None if number is None else int(number)
    return grades, None


def _with_missing_images(rows: Sequence[SourceRow], path: Path) -> list[SourceRow]:
    """Refuse the rows whose images are not there.

    Raises:
        DataError: when none is, which says that the paths are meant otherwise.
    """
    version_of = versions(row.image for row in rows)
    missing = [row.image for row in rows if version_of[row.image] == MISSING]
    if len(missing) == len(rows):
        fix = "paths are relative to the table's folder: move the table, or correct the column"
        raise DataError(f"none of the {len(rows)} images of {path} is there", str(missing[0]), fix)
    gone = set(missing)
    return [
        row.refuse(f"label without image: there is no {row.image.name}")
        if row.image in gone and row.refused is None
        else row
        for row in rows
    ]
