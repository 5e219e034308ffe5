"""Which split every row of an ingest falls into: the one its source prescribes, else one that is dealt.

No patient and no picture may be in two splits. Where the sources prescribe just that, the rows of the weaker split are
refused: a test is spoilt by training images, not the other way round. What is not here: the dealing (``splits``).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retina_ray.data.refusals import Refusal, place_of
from retina_ray.data.schema import NO_GRADE, SPLIT_STRENGTH, Task
from retina_ray.data.sources.base import SourceRow
from retina_ray.data.splits import assign_splits, leaks
from retina_ray.data.twins import Twins


@dataclass(frozen=True, slots=True)
class Division:
    """The splits of rows, and what stood in their way.

    Attributes:
        splits: by row.
        refused: rows that are in a weaker split than others of their patient or picture.
        warnings: stored rows that show the picture of another, kept in its split.
    """

    splits: dict[int, str]
    refused: dict[int, Refusal]
    warnings: dict[int, Refusal]


def divide(
    rows: Sequence[SourceRow],
    usable: Sequence[int],
    twins: Twins,
    lookalikes: Sequence[tuple[int, int]],
    *,
    tasks: Sequence[Task],
    fractions: tuple[float, float, float],
    seed: int,
    stored: Sequence[int],
) -> Division:
    """Divide rows into splits.

    A source that prescribes training rows but no validation rows has these dealt out of its training rows.

    Args:
        rows: all of them.
        usable: those that take part: their source can use them, whether or not their file can be.
        twins: rows with equal files, and everyone's grades.
        lookalikes: pairs of stored rows that show one picture, (earlier, later).
        tasks: whose grades the deal keeps in proportion.
        fractions: for train, validation and test of the rows without a prescribed split.
        seed: of the deal.
        stored: rows that will be, as far as their file and their twins go.
    """
    prescribed = {index: split for index in usable if (split := rows[index].split) is not None}
    unit_of = _units(rows, usable, [*twins.pairs, *lookalikes])
    holder = _holders(stored, unit_of, prescribed)
    refused = {
        index: _leak(rows, index, holder[unit_of[index]], prescribed)
        for index in stored
        if index in prescribed and prescribed[index] != prescribed[holder[unit_of[index]]]
    }
    warnings = {
        later: Refusal("near duplicate", f"near duplicate: the same picture as {place_of(rows[earlier])}", _KEPT)
        for earlier, later in lookalikes
        if earlier not in refused and later not in refused
    }
    fixed = {unit: prescribed[index] for unit, index in (_holders(usable, unit_of, prescribed) | holder).items()}
    dealt_anew = _units_to_validate(rows, usable, unit_of, prescribed)
    train_share = fractions[0] + fractions[1]
    pools: dict[tuple[float, float, float], list[int]] = defaultdict(list)
    splits: dict[int, str] = {}
    for index in usable:
        unit = unit_of[index]
        if unit not in fixed:
            pools[fractions].append(index)
        elif fixed[unit] == "train" and unit in dealt_anew and train_share > 0:
            pools[fractions[0] / train_share, fractions[1] / train_share, 0.0].append(index)
        else:
            splits[index] = fixed[unit]
    for shares, members in pools.items():
        grades = {
            task.name: np.array([_number(twins.grades[index].get(task.name)) for index in members], dtype=np.int8)
            for task in tasks
        }
        dealt = assign_splits([unit_of[index] for index in members], grades, fractions=shares, seed=seed)
        splits |= {index: str(split) for index, split in zip(members, dealt, strict=True)}
    kept = [index for index in stored if index not in refused]
    if leaking := leaks([unit_of[index] for index in kept], [splits[index] for index in kept]):
        raise AssertionError(f"{leaking[0]} is in more than one split")
    return Division(splits, refused, warnings)


_KEPT = "nothing: both are in one split; delete one if they should count once"
_CORRECT = "correct the split, or leave the split column out to have the rows divided by patient"


def _holders(members: Sequence[int], unit_of: Mapping[int, str], prescribed: Mapping[int, str]) -> dict[str, int]:
    """Return of each unit the first of its rows in the strongest split that is prescribed in it."""
    holder: dict[str, int] = {}
    for index in members:
        if index in prescribed:
            best = holder.setdefault(unit_of[index], index)
            if SPLIT_STRENGTH[prescribed[index]] > SPLIT_STRENGTH[prescribed[best]]:
                holder[unit_of[index]] = index
    return holder


def _leak(rows: Sequence[SourceRow], index: int, holder: int, prescribed: Mapping[int, str]) -> Refusal:
    """Say why a row may not be in its split, and which row stands against it."""
    one, other = rows[index].group_id, rows[holder].group_id
    where = f"in {prescribed[holder]}, as {place_of(rows[holder])}"
    if one == other:
        reason = f"leak: {one} is in {prescribed[index]} and {where}"
    else:
        reason = f"leak: {one} is in {prescribed[index]}, and the same picture under the name {other} {where}"
    return Refusal("leak", reason, _CORRECT)


def _units(rows: Sequence[SourceRow], usable: Sequence[int], pairs: Sequence[tuple[int, int]]) -> dict[int, str]:
    """Return by row the name of what may not be divided: a group, or several that share a picture."""
    parent = {rows[index].group_id: rows[index].group_id for index in usable}

    def root(group: str) -> str:
        while parent[group] != group:
            parent[group] = parent[parent[group]]
            group = parent[group]
        return group

    for one, other in pairs:
        first, second = sorted((root(rows[one].group_id), root(rows[other].group_id)))
        parent[second] = first
    return {index: root(rows[index].group_id) for index in usable}


def _units_to_validate(
    rows: Sequence[SourceRow], usable: Sequence[int], unit_of: Mapping[int, str], prescribed: Mapping[int, str]
) -> set[str]:
    """Return the units whose training rows are all of sources that prescribe no validation rows."""
    named: dict[str, set[str]] = defaultdict(set)
    for index, split in prescribed.items():
        named[rows[index].source].add(split)
    validated = {source for source, splits in named.items() if "validation" in splits}
    return {unit_of[index] for index in usable} - {
        unit_of[index] for index in prescribed if rows[index].source in validated
    }


def _number(grade: int | None) -> int:
    return NO_GRADE if grade is None else grade
