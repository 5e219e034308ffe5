"""What every source yields: one row per photograph, with the grades that are known of it.

What is not here: reading photographs (``ingest`` does, in parallel), and any one data set's file layout.
"""

from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from pydantic import ValidationError

from retina_ray.data.schema import KNOWN_TASKS, NO_GRADE, Task, task_of
from retina_ray.data.sources.files import files_in
from retina_ray.errors import DataError

MAX_GRADE = 127
"""Grades are stored in 8 bits."""

SUFFIXES = (".jpg", ".jpeg", ".jfif", ".png", ".tif", ".tiff", ".bmp", ".webp", ".dcm")
"""Files that are taken for photographs, in any case; others (notes, thumbnails' databases) are passed over."""


@dataclass(frozen=True, slots=True)
class SourceRow:
    """One photograph of a source.

    Attributes:
        image: the file.
        image_id: unique within the data set to be made.
        group_id: rows of one patient (or eye pair) share it, so that no split separates them.
        source: name of the data set the photograph comes from.
        grades: per task; None or a missing task means not graded.
        split: train, validation or test where the source prescribes it.
        laterality: left or right where known.
        line: of the table it was read from, counted from 1; None where there is no table.
        masks: files of lesion planes by name (one of `LESIONS`), drawn at the photograph's size; a plane that is
            missing was looked for and not found. None: lesions were not drawn at all.
        refused: why the row cannot be used, as ``kind: detail``, in the words of the adapter; such a row has no grades
            and is listed, never stored. None: it can be used.
    """

    image: Path
    image_id: str
    group_id: str
    source: str
    grades: dict[str, int | None]
    split: str | None = None
    laterality: str | None = None
    line: int | None = None
    masks: dict[str, Path] | None = None
    refused: str | None = None

    @property
    def files(self) -> list[Path]:
        """The photograph, and the drawings of its lesions."""
        return [self.image, *(self.masks or {}).values()]

    @property
    def is_labelled(self) -> bool:
        """Whether it has a grade, or its lesions were drawn."""
        return self.masks is not None or any(grade is not None for grade in self.grades.values())

    def refuse(self, reason: str) -> "SourceRow":
        """Return the row as one that cannot be used; what is known of it no longer counts."""
        return replace(self, grades={}, split=None, masks=None, refused=reason)


def wrong_grade(task: str, grade: int) -> str | None:
    """Return what is wrong with a grade, as `SourceRow.refused` says it, or None where the task has that grade.

    Args:
        task: its name; a known task has known grades, another may have any up to `MAX_GRADE`.
        grade: as read.
    """
    highest = KNOWN_TASKS[task].num_grades - 1 if task in KNOWN_TASKS else MAX_GRADE
    return None if 0 <= grade <= highest else f"no such grade: task {task} has 0..{highest}, not {grade}"


def unlabelled_rows(
    folders: Iterable[Path], listed: Collection[Path], *, source: str, root: Path, reason: str
) -> list[SourceRow]:
    """Return a refused row for each photograph of the folders that is not listed.

    Args:
        folders: searched without their subfolders.
        listed: photographs that have a label.
        source: name of the data set.
        root: that ids are relative to.
        reason: why they have no label.
    """
    known = set(listed)
    found = [file for folder in sorted(set(folders)) if folder.is_dir() for file in photographs_in(folder)]
    return [
        SourceRow(
            image=file,
            image_id=f"unlabelled {_relative(file, root)}",
            group_id=f"unlabelled {_relative(file, root)}",
            source=source,
            grades={},
            refused=f"image without label: {reason}",
        )
        for file in found
        if file not in known
    ]


def photographs_in(folder: Path) -> list[Path]:
    """Return the photographs directly in a folder, sorted; what is no photograph by its name is passed over."""
    return [file for file in files_in(folder) if file.suffix.lower() in SUFFIXES and not is_hidden(file)]


def is_hidden(file: Path) -> bool:
    """Tell whether a file's name hides it from the user, so that it is passed over without a word."""
    return file.name.startswith(".")


def _relative(file: Path, root: Path) -> str:
    return str(file).removeprefix(f"{root}/")


def tasks_of(rows: Sequence[SourceRow]) -> tuple[Task, ...]:
    """Return the tasks that rows name, graded or not, in the order of their first appearance.

    Raises:
        DataError: when a task's name is no lower-case identifier.
    """
    highest: dict[str, int] = {}
    for row in rows:
        for task, grade in row.grades.items():
            highest[task] = max(highest.get(task, NO_GRADE), NO_GRADE if grade is None else grade)
    return tuple(_task(name, grade + 1) for name, grade in highest.items())


def _task(name: str, num_grades: int) -> Task:
    try:
        return task_of(name, num_grades)
    except ValidationError as error:
        raise DataError(
            "this is no name for a task", name, "use lower-case letters, digits and _, a letter first"
        ) from error
