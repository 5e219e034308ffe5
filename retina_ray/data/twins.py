"""Rows of one source or several that show the same photograph, or claim the same id.

Published data sets repeat photographs, sometimes with other grades, and tables of different tasks may list the same
files. A repeated photograph must not land in two splits, nor teach two answers.
"""

import hashlib
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from retina_ray.data.sources.base import SourceRow


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a photograph is not in the data set; ``kind`` is what refusals are counted by."""

    kind: str
    reason: str
    fix: str


def place_of(row: SourceRow) -> str:
    """Return where a row was read, for messages."""
    return str(row.image) if row.line is None else f"line {row.line} ({row.image})"


def find_twins(rows: Sequence[SourceRow], num_workers: int) -> tuple[list[dict[str, int | None]], dict[int, Refusal]]:
    """Compare rows whose files are equal, and rows of equal ids.

    Returns:
        The grades of each row, those of its twins included, and the refusals by row.
    """
    grades = [dict(row.grades) for row in rows]
    refused: dict[int, Refusal] = {}
    for twins in _equal_files(rows, num_workers):
        first = twins[0]
        known = {(task, grade) for twin in twins for task, grade in rows[twin].grades.items() if grade is not None}
        if len(known) > len({task for task, _ in known}):
            places = " and ".join(place_of(rows[twin]) for twin in twins)
            reason = f"conflicting grades: one photograph, graded differently, at {places}"
            refused |= dict.fromkeys(twins, Refusal("conflicting grades", reason, "keep the row with the right grade"))
            continue
        grades[first] |= dict(known)
        for twin in twins[1:]:
            reason = f"duplicate: the same photograph as {place_of(rows[first])}"
            refused[twin] = Refusal("duplicate", reason, "nothing, unless the files were mixed up: it is stored once")
    holder: dict[str, SourceRow] = {}
    for index, row in enumerate(rows):
        if index in refused:
            continue
        if holder.setdefault(row.image_id, row) is not row:
            reason = f"repeated id: {row.image_id} is also that of {place_of(holder[row.image_id])}"
            refused[index] = Refusal("repeated id", reason, "give every photograph its own id")
    return grades, refused


def _equal_files(rows: Sequence[SourceRow], num_workers: int) -> list[list[int]]:
    """Return lists of two or more rows whose files are equal; only files of equal size are read."""
    by_size: dict[int, list[int]] = defaultdict(list)
    for index, row in enumerate(rows):
        if row.image.is_file():
            by_size[row.image.stat().st_size].append(index)
    suspects = [index for size, indices in by_size.items() if size and len(indices) > 1 for index in indices]
    by_content: dict[str, list[int]] = defaultdict(list)
    with ThreadPoolExecutor(num_workers) as pool:
        for index, digest in zip(suspects, pool.map(_digest, [rows[i] for i in suspects]), strict=True):
            by_content[digest].append(index)
    return [indices for digest, indices in by_content.items() if digest and len(indices) > 1]


def _digest(row: SourceRow) -> str:
    try:
        return hashlib.sha256(row.image.read_bytes()).hexdigest()
    except OSError:  # converting it will say why
        return ""
