"""Which split every row of an ingest falls into: the one its source prescribes, else one that is dealt.

No patient and no picture may be in two splits. Where the sources prescribe just that, the rows of the weaker split are
refused: a test is spoilt by training images, not the other way round. What is not here: the dealing (``splits``).
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retina_ray.data.refusals import Refusal, place_of
from retina_ray.data.schema import NO_GRADE, SPLITS, Task
from retina_ray.data.sources.base import SourceRow
from retina_ray.data.splits import assign_splits
from retina_ray.data.twins import Twins

_STRENGTH = {split: strength for strength, split in enumerate(SPLITS)}
"""Of rows that may not be in two splits, those in the strongest stay."""


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
    refused = _leaking_groups(rows, [index for index in stored if index in prescribed], prescribed)
    _leaking_pictures(rows, lookalikes, prescribed, refused)
    warnings = {
        later: Refusal("near duplicate", f"near duplicate: the same picture as {place_of(rows[earlier])}", _KEPT)
        for earlier, later in lookalikes
        if earlier not in refused and later not in refused
    }
    together = [pair for pair in lookalikes if refused.keys().isdisjoint(pair)]
    unit_of = _units(rows, usable, [*twins.pairs, *together])
    fixed = _fixed_units(usable, unit_of, prescribed, refused)
    unvalidated = _sources_without_validation(rows, prescribed)
    train_share = fractions[0] + fractions[1]
    pools: dict[tuple[float, float, float], list[int]] = defaultdict(list)
    splits: dict[int, str] = {}
    for index in usable:
        split = prescribed.get(index) or fixed.get(unit_of[index])
        if split is None:
            pools[fractions].append(index)
        elif split == "train" and rows[index].source in unvalidated and train_share > 0:
            pools[fractions[0] / train_share, fractions[1] / train_share, 0.0].append(index)
        else:
            splits[index] = split
    for shares, members in pools.items():
        grades = {
            task.name: np.array([_number(twins.grades[index].get(task.name)) for index in members], dtype=np.int8)
            for task in tasks
        }
        dealt = assign_splits([unit_of[index] for index in members], grades, fractions=shares, seed=seed)
        splits |= {index: str(split) for index, split in zip(members, dealt, strict=True)}
    return Division(splits, refused, warnings)


_KEPT = "nothing: both are in one split; delete one if they should count once"
_CORRECT = "correct the split, or leave the split column out to have the rows divided by patient"


def _leaking_groups(
    rows: Sequence[SourceRow], members: Sequence[int], prescribed: Mapping[int, str]
) -> dict[int, Refusal]:
    strongest: dict[str, int] = {}
    for index in members:
        group = rows[index].group_id
        best = strongest.setdefault(group, index)
        if _STRENGTH[prescribed[index]] > _STRENGTH[prescribed[best]]:
            strongest[group] = index
    refused = {}
    for index in members:
        best = strongest[rows[index].group_id]
        if prescribed[index] != prescribed[best]:
            reason = f"leak: {rows[index].group_id} is in {prescribed[index]} and in {prescribed[best]}, as {{}}"
            refused[index] = Refusal("leak", reason.format(place_of(rows[best])), _CORRECT)
    return refused


def _leaking_pictures(
    rows: Sequence[SourceRow],
    lookalikes: Sequence[tuple[int, int]],
    prescribed: Mapping[int, str],
    refused: dict[int, Refusal],
) -> None:
    for pair in lookalikes:
        if not refused.keys().isdisjoint(pair) or not all(index in prescribed for index in pair):
            continue
        weak, strong = sorted(pair, key=lambda index: _STRENGTH[prescribed[index]])
        if prescribed[weak] != prescribed[strong]:
            where = f"in {prescribed[strong]}, as {place_of(rows[strong])}"
            reason = f"leak: the same picture is in {prescribed[weak]} and {where}"
            refused[weak] = Refusal("leak", reason, _CORRECT)


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


def _fixed_units(
    usable: Sequence[int], unit_of: Mapping[int, str], prescribed: Mapping[int, str], refused: Mapping[int, Refusal]
) -> dict[str, str]:
    """Return the split of each unit in which a row has one: the strongest."""
    fixed: dict[str, str] = {}
    for index in usable:
        if index in prescribed and index not in refused:
            known = fixed.setdefault(unit_of[index], prescribed[index])
            fixed[unit_of[index]] = max(known, prescribed[index], key=_STRENGTH.__getitem__)
    return fixed


def _sources_without_validation(rows: Sequence[SourceRow], prescribed: Mapping[int, str]) -> set[str]:
    named: dict[str, set[str]] = defaultdict(set)
    for index, split in prescribed.items():
        named[rows[index].source].add(split)
    return {source for source, splits in named.items() if "train" in splits and "validation" not in splits}


def _number(grade: int | None) -> int:
    return NO_GRADE if grade is None else grade
