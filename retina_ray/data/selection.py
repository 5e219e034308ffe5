"""Which rows of a data set a run sees, and which of their grades: splits or folds, hidden grades, shares of a task.

Every draw ranks images by a hash of (seed, purpose, image id), so it depends on neither the order of the rows nor
the library's generator, and a smaller share is always a subset of a larger one.
"""

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from retina_ray.data.schema import NO_GRADE, SPLITS, require_tasks
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.splits import assign_folds
from retina_ray.errors import ConfigError, DataError


@dataclass(frozen=True)
class Selection:
    """The rows and visible grades of a run.

    Attributes:
        rows: data set rows (n,) int64 of each split of `SPLITS`, ascending; a row may be in none of them.
        grades: per task (N,) int8 over the whole data set, -1 where there is none or it is hidden.
        has_mask: (N,) bool, whether there is a lesion mask to be used.
        image_ids: (N,) the images' names, which seeded draws go by.
        seed: of the draws.
    """

    rows: dict[str, np.ndarray]
    grades: dict[str, np.ndarray]
    has_mask: np.ndarray
    image_ids: np.ndarray
    seed: int

    def graded(self, split: str, tasks: Sequence[str]) -> np.ndarray:
        """Return the rows of a split that have a visible grade for at least one of the tasks."""
        rows = self.rows[split]
        has_grade = np.any([self.grades[task][rows] != NO_GRADE for task in tasks], axis=0)
        return rows[has_grade]


def select(
    dataset: ShardedDataset,
    *,
    tasks: Sequence[str],
    hide_grades: str = "none",
    folds: int | None = None,
    fold: int = 0,
    keep_test: bool = False,
    hold_out: str | None = None,
    images_per_class: int | None = None,
    masks: float = 1.0,
    seed: int = 0,
) -> Selection:
    """Choose the rows and grades of a run.

    Args:
        dataset: an open data set.
        tasks: tasks to learn.
        hide_grades: ``half`` keeps one seeded grade per training image that has several.
        folds: number of patient-grouped folds that replace the stored splits.
        fold: the test fold; the next one validates, the others train.
        keep_test: deal the folds among the training and validation images alone; then ``fold`` validates.
        hold_out: source that is the test split in full, see `_source_held_out`; not with ``folds``.
        images_per_class: at most this many training images per task and grade (SALL, Table IX).
        masks: fraction of the training images' lesion masks that is used.
        seed: of hidden grades and of the shares kept.

    Raises:
        ConfigError: a task, or the source to hold out, is not in the data set, or there is no other source.
        DataError: a task has no graded image in one of the splits; of a source that is held out, none of the tasks has.
    """
    require_tasks(tasks, dataset.grades)
    grades = {task: dataset.grades[task].copy() for task in tasks}
    if hold_out is None:
        split_of = _split_of(dataset, folds, fold, keep_test=keep_test)
    else:
        split_of = _source_held_out(dataset, hold_out)
    rows = {split: np.flatnonzero(split_of == split) for split in SPLITS}
    ids = dataset.image_ids
    if hide_grades == "half":
        _keep_one_grade(grades, rows["train"], ids, seed)
    if images_per_class is not None:
        _limit_classes(grades, rows["train"], ids, images_per_class, seed)
    has_mask = dataset.has_mask.copy()
    if masks < 1.0:
        _limit_masks(has_mask, rows["train"], ids, masks, seed)
    selection = Selection(rows, grades, has_mask, ids, seed)
    for task in tasks:
        for split in SPLITS:
            if not len(selection.graded(split, [task])) and not (split == "test" and hold_out is not None):
                raise _no_grade(dataset, split, task, hold_out)
    if not len(selection.graded("test", tasks)):
        raise _no_grade(dataset, "test", tasks[0], hold_out)
    return selection


def require_test_grades(
    dataset: ShardedDataset, selection: Selection, tasks: Sequence[str], *, hold_out: str | None
) -> None:
    """Check that every task can be tested.

    Raises:
        DataError: the source that is held out does not grade one of them.
    """
    for task in tasks:
        if not len(selection.graded("test", [task])):
            raise _no_grade(dataset, "test", task, hold_out)


def sources_of(dataset: ShardedDataset) -> dict[str, tuple[str, ...]]:
    """Return the tasks that each source of a data set grades, by its name; `select` can hold one of them out."""
    return {
        str(name): tuple(
            task for task, grades in dataset.grades.items() if (grades[dataset.sources == name] != NO_GRADE).any()
        )
        for name in np.unique(dataset.sources)
    }


def take_ratio(
    selection: Selection, rows: np.ndarray, ratio: Mapping[str, float], *, tasks: Sequence[str]
) -> np.ndarray:
    """Return the rows that stay when only a fraction of each task's images is used (SALL, Table VI).

    The fraction is taken within each grade. An image that is graded for several tasks stays if one of them keeps it.

    Args:
        selection: gives the visible grades.
        rows: candidate rows (n,).
        ratio: fraction in (0, 1] per task; 1 where absent.
        tasks: those whose images are meant; rows without a grade for any of them stay.
    """
    graded = np.zeros(len(rows), dtype=bool)
    kept = np.zeros(len(rows), dtype=bool)
    order = _rank(selection.image_ids[rows], selection.seed, "ratio")
    for task in tasks:
        own = selection.grades[task][rows]
        graded |= own != NO_GRADE
        for grade in np.unique(own[own != NO_GRADE]):
            members = np.flatnonzero(own == grade)
            share = max(1, round(ratio.get(task, 1.0) * len(members)))
            kept[members[np.argsort(order[members])][:share]] = True
    return rows[kept | ~graded]


def _split_of(dataset: ShardedDataset, folds: int | None, fold: int, *, keep_test: bool) -> np.ndarray:
    if folds is None:
        return np.asarray(dataset.splits)
    if keep_test:
        return _validation_fold(dataset, folds, fold)
    # The partition belongs to the data set: runs of any seed and tasks can be compared and pooled over its folds.
    parts = assign_folds(list(dataset.group_ids), dataset.grades, folds=folds, seed=0)
    named = np.full(len(parts), "train", dtype=object)
    named[parts == (fold + 1) % folds] = "validation"
    named[parts == fold] = "test"
    return named


def _validation_fold(dataset: ShardedDataset, folds: int, fold: int) -> np.ndarray:
    named = np.asarray(dataset.splits, dtype=object).copy()
    rows = np.flatnonzero(named != "test")
    grades = {task: values[rows] for task, values in dataset.grades.items()}
    parts = assign_folds(list(dataset.group_ids[rows]), grades, folds=folds, seed=0)
    named[rows] = np.where(parts == fold, "validation", "train")
    return named


def _source_held_out(dataset: ShardedDataset, source: str) -> np.ndarray:
    """Return the split of each row when one source is the test, "" for a row that takes no part.

    Patients never cross: of those with images in the source, the images of other sources take no part. All others keep
    to training or validation, as stored; those stored as test train, for this run has another test.
    """
    sources = sources_of(dataset)
    if source not in sources:
        raise ConfigError(
            "the data set has no such source", source, f"set data.hold_out to one of: {', '.join(sources)}"
        )
    if len(sources) == 1:
        fix = "join data sets with `retina-ray data merge` first"
        raise ConfigError("all images of the data set are of the source to hold out", source, fix)
    held = dataset.sources == source
    groups = dataset.group_ids
    named = np.full(len(dataset), "train", dtype=object)
    named[np.isin(groups, groups[~held & (dataset.splits == "validation")])] = "validation"
    named[np.isin(groups, groups[held])] = ""
    named[held] = "test"
    return named


def _no_grade(dataset: ShardedDataset, split: str, task: str, hold_out: str | None) -> DataError:
    if hold_out is None:
        return DataError(f"no {split} image has a grade for the task", task, "give the data set all three splits")
    if split == "test":
        graded = np.unique(dataset.sources[dataset.grades[task] != NO_GRADE])
        fix = f"hold out one of {', '.join(graded) or 'none'}, or set method.tasks to what the source grades"
        return DataError(f"the source {hold_out} that is held out has no grade for the task", task, fix)
    fix = "merge it with a data set whose splits have some, or leave the task out"
    return DataError(f"without the source {hold_out}, no {split} image has a grade for the task", task, fix)


def _keep_one_grade(grades: dict[str, np.ndarray], rows: np.ndarray, ids: np.ndarray, seed: int) -> None:
    order = _rank(ids[rows], seed, "hide")
    for row, draw in zip(rows, order, strict=True):
        own = [task for task in grades if grades[task][row] != NO_GRADE]
        for task in own:
            if task != own[int(draw % np.uint64(len(own)))]:
                grades[task][row] = NO_GRADE


def _limit_classes(grades: dict[str, np.ndarray], rows: np.ndarray, ids: np.ndarray, limit: int, seed: int) -> None:
    order = _rank(ids[rows], seed, "images_per_class")
    for own in grades.values():
        visible = own[rows]
        for grade in np.unique(visible[visible != NO_GRADE]):
            members = np.flatnonzero(visible == grade)
            surplus = members[np.argsort(order[members])][limit:]
            own[rows[surplus]] = NO_GRADE


def _limit_masks(has_mask: np.ndarray, rows: np.ndarray, ids: np.ndarray, fraction: float, seed: int) -> None:
    masked = rows[has_mask[rows]]
    kept = max(1, round(fraction * len(masked)))
    has_mask[masked[np.argsort(_rank(ids[masked], seed, "masks"))][kept:]] = False


def _rank(ids: np.ndarray, seed: int, purpose: str) -> np.ndarray:
    """Return a uniform uint64 (n,) per image id."""
    digests = (hashlib.blake2b(f"{seed}:{purpose}:{name}".encode(), digest_size=8).digest() for name in ids)
    return np.frombuffer(b"".join(digests), dtype=np.uint64)
