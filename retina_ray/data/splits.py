"""Which rows train, validate and test, or fall into which fold: by patient, and with each grade's share kept.

Groups (patients, eye pairs) are never separated. The result depends on the groups' names, their grades and the seed,
not on the order of the rows. What is not here: where a group's name comes from (``sources``).
"""

import hashlib
from collections import defaultdict
from collections.abc import Mapping, Sequence

import numpy as np
import numpy.typing as npt

from retina_ray.data.schema import NO_GRADE, SPLITS
from retina_ray.errors import ConfigError

Grades = Mapping[str, npt.NDArray[np.integer]]


def assign_splits(
    groups: Sequence[str],
    grades: Grades,
    *,
    fractions: tuple[float, float, float] = (0.5, 0.25, 0.25),
    seed: int,
) -> npt.NDArray[np.str_]:
    """Assign each row to train, validation or test (SALL, section IV-A: 50, 25 and 25 %).

    Args:
        groups: N group ids.
        grades: per task (N,) integers, -1 where there is no grade.
        fractions: of the rows, for train, validation and test; they add up to 1.
        seed: another one makes another division.

    Returns:
        (N,) str. Each split's share is right within twice the largest group's rows.

    Raises:
        ConfigError: for fractions that are negative or do not add up to 1.
    """
    if len(fractions) != len(SPLITS) or not (min(fractions) >= 0 and abs(sum(fractions) - 1) <= 1e-6):  # NaN too
        raise ConfigError("split fractions must be three shares that add up to 1", fractions, "use 0.5,0.25,0.25")
    return np.array(SPLITS)[_deal(groups, grades, fractions, seed)]


def assign_folds(groups: Sequence[str], grades: Grades, *, folds: int, seed: int) -> npt.NDArray[np.int64]:
    """Assign each row to one of ``folds`` equal parts for cross-validation (SALL, section IV-B: three).

    Args:
        groups: N group ids.
        grades: per task (N,) integers, -1 where there is no grade.
        folds: at least 2 and at most the number of groups.
        seed: another one makes another division.

    Returns:
        (N,) integers in 0..folds-1.

    Raises:
        ConfigError: for fewer than two folds, or more than there are groups.
    """
    if not 2 <= folds <= len(set(groups)):
        raise ConfigError("cannot make that many folds", folds, f"use 2..{len(set(groups))}, the number of groups")
    return _deal(groups, grades, (1 / folds,) * folds, seed)


def leaks(groups: Sequence[str], splits: Sequence[str]) -> list[str]:
    """Return the groups with rows in more than one split, sorted.

    Args:
        groups: N group ids.
        splits: N splits.
    """
    seen: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        seen[group].add(split)
    return sorted(group for group, found in seen.items() if len(found) > 1)


def _deal(groups: Sequence[str], grades: Grades, fractions: Sequence[float], seed: int) -> npt.NDArray[np.int64]:
    """Sort the groups by stratum, shuffled within, and deal each to the part that lacks most rows: (N,) parts.

    Because the deal runs through the strata one after the other, every stratum is divided in proportion, and rounding
    is carried from one to the next instead of favouring the first part in each.
    """
    members: dict[str, list[int]] = defaultdict(list)
    for row, group in enumerate(groups):
        members[group].append(row)
    strata = _strata(members, grades)
    parts = np.empty(len(groups), dtype=np.int64)
    lacking = np.zeros(len(fractions))
    for group in sorted(members, key=lambda group: (strata[group], _shuffled(group, seed), group)):
        lacking += np.array(fractions) * len(members[group])
        part = int(lacking.argmax())
        lacking[part] -= len(members[group])
        parts[members[group]] = part
    return parts


def _strata(members: Mapping[str, list[int]], grades: Grades) -> dict[str, int]:
    """Return each group's stratum: the rank of the rarest (task, grade) among its rows, ungraded groups last."""
    present = {
        (int((values == grade).sum()), task, int(grade)): set(np.flatnonzero(values == grade).tolist())
        for task, values in grades.items()
        for grade in np.unique(values)
        if grade != NO_GRADE
    }
    stratum_of_row: dict[int, int] = {}
    for rank, key in enumerate(sorted(present)):
        for row in present[key]:
            stratum_of_row.setdefault(row, rank)
    return {group: min(stratum_of_row.get(row, len(present)) for row in rows) for group, rows in members.items()}


def _shuffled(group: str, seed: int) -> bytes:
    """Return the group's place within its stratum, as good as drawn."""
    return hashlib.blake2b(group.encode(), digest_size=16, key=str(seed).encode()).digest()
