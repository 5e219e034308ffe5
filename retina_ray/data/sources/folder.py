"""Photographs sorted into folders by grade, without a table.

Two layouts are read: ``<root>/<grade>/*`` for one task that the caller names, and ``<root>/<task>/<grade>/*`` for
several. Grades are folder names 0, 1, 2, ... Nothing tells which photographs belong to one patient, so each is a group
of its own: where a patient has several, use a table with a group column.
"""

from collections.abc import Iterator
from pathlib import Path

from retina_ray.data.sources.base import (
    SUFFIXES,
    SourceRow,
    is_hidden,
    photographs_in,
    unlabelled_rows,
    wrong_grade,
)
from retina_ray.data.sources.files import files_in
from retina_ray.errors import DataError


def read_folder(root: Path, *, task: str | None = None, name: str | None = None) -> list[SourceRow]:
    """List the photographs below a folder.

    Args:
        root: ``<root>/<grade>/*`` where ``task`` is given, else ``<root>/<task>/<grade>/*``.
        task: whose grades the folders are.
        name: of the source; default: the folder's name.

    Returns:
        A row per photograph, sorted by path, which relative to the root is its ``image_id``; then refused ones for
        those that lie beside the folders of the grades.

    Raises:
        DataError: no folder, no photograph, or a folder whose name is no number.
    """
    if not root.is_dir():
        raise DataError("there is no such folder", str(root), "check the path")
    if task is None and _holds_grades(root):
        raise DataError("the folders are grades, but of which task is not said", str(root), "add --task NAME")
    tasks = {task: root} if task is not None else {folder.name: folder for folder in _folders(root)}
    source = name or root.name or root.resolve().name
    rows = [
        _checked(
            SourceRow(
                image=image,
                image_id=image.relative_to(root).as_posix(),
                group_id=image.relative_to(root).as_posix(),
                source=source,
                grades={task_name: grade},
            ),
            task_name,
            grade,
        )
        for task_name, folder in tasks.items()
        for grade, image in _graded(folder)
    ]
    if not rows:
        raise DataError(
            "the folder holds no photographs", str(root), f"expected <task>/<grade>/* with {', '.join(SUFFIXES)}"
        )
    listed = {row.image for row in rows}
    folders = _folders_below(root)
    return rows + unlabelled_rows(folders, listed, source=source, root=root, reason="it lies in no folder of a grade")


def passed_over(root: Path) -> list[Path]:
    """Return the files below a folder that are no photographs by their names, sorted; hidden ones are none of them."""
    files = [file for folder in sorted(_folders_below(root)) for file in files_in(folder)]
    return [file for file in files if file.suffix.lower() not in SUFFIXES and not is_hidden(file)]


def _folders_below(root: Path) -> set[Path]:
    return {root, *(path for path in root.rglob("*") if path.is_dir())}


def _checked(row: SourceRow, task: str, grade: int) -> SourceRow:
    wrong = wrong_grade(task, grade)
    return row.refuse(wrong) if wrong else row


def _folders(root: Path) -> list[Path]:
    return sorted(path for path in root.iterdir() if path.is_dir() and not path.name.startswith("."))


def _holds_grades(folder: Path) -> bool:
    return any(inner.name.isdecimal() for inner in _folders(folder))


def _graded(folder: Path) -> Iterator[tuple[int, Path]]:
    for graded in _folders(folder):
        if not graded.name.isdecimal():
            fix = "leave --task out" if _holds_grades(graded) else "name it 0, 1, 2, ... or move it away"
            raise DataError("this folder is no grade", str(graded), fix)
        for image in photographs_in(graded):
            yield int(graded.name), image
