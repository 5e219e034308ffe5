"""Rows of one source or several that show the same photograph, or claim the same id.

Published data sets repeat photographs, sometimes with other grades, and tables of different tasks may list the same
files. A repeated photograph must not land in two splits, nor teach two answers. What is not here: files that differ
but show the same picture (``lookalikes``).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from retina_ray.data.refusals import Refusal, place_of
from retina_ray.data.schema import SPLIT_STRENGTH
from retina_ray.data.sources.base import SourceRow


@dataclass(frozen=True, slots=True)
class Twins:
    """What rows with equal files mean for each other.

    Attributes:
        grades: of each row, those of its twins included.
        refused: by row: all but one of its twins, and rows of a repeated id.
        mask_of: row that has no mask -> its twin that has one.
        pairs: of rows with equal files.
    """

    grades: list[dict[str, int | None]]
    refused: dict[int, Refusal]
    mask_of: dict[int, int]
    pairs: list[tuple[int, int]]


def find_twins(rows: Sequence[SourceRow], sha256: Mapping[int, str]) -> Twins:
    """Compare rows whose files are equal, and rows of equal ids.

    Args:
        rows: all of them.
        sha256: of the files, by row; a row that is not in it cannot be used and is compared with none.
    """
    result = Twins([dict(row.grades) for row in rows], {}, {}, [])
    equal: dict[str, list[int]] = defaultdict(list)
    for index, digest in sha256.items():
        equal[digest].append(index)
    for twins in equal.values():
        if len(twins) > 1:
            _join(rows, twins, result)
    holder: dict[str, SourceRow] = {}
    for index in sha256:
        row = rows[index]
        if index not in result.refused and holder.setdefault(row.image_id, row) is not row:
            reason = f"repeated id: {row.image_id} is also that of {place_of(holder[row.image_id])}"
            result.refused[index] = Refusal("repeated id", reason, "give every photograph its own id")
    return result


def _join(rows: Sequence[SourceRow], twins: Sequence[int], result: Twins) -> None:
    """Give one of equal files what is known of all of them, and refuse the others; or all, if they disagree.

    It is the first of those whose source prescribes the strongest split.
    """
    first, *others = sorted(twins, key=lambda twin: -SPLIT_STRENGTH.get(rows[twin].split or "", -1))
    known = {(task, grade) for twin in twins for task, grade in rows[twin].grades.items() if grade is not None}
    if len(known) > len({task for task, _ in known}):
        places = " and ".join(place_of(rows[twin]) for twin in twins)
        reason = f"conflicting grades: one photograph, graded differently, at {places}"
        refusal = Refusal("conflicting grades", reason, "keep the row with the right grade")
        result.refused.update(dict.fromkeys(twins, refusal))
        return
    result.grades[first] |= dict(known)
    result.pairs.extend((first, other) for other in others)
    if rows[first].masks is None and (drawn := [twin for twin in others if rows[twin].masks is not None]):
        result.mask_of[first] = drawn[0]
    for other in others:
        reason = f"duplicate: the same photograph as {place_of(rows[first])}"
        result.refused[other] = Refusal(
            "duplicate", reason, "nothing, unless the files were mixed up: it is stored once"
        )
