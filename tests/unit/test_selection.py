"""Which rows and grades a run sees: hidden grades, folds, limits and shares."""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_ray.data.schema import NO_GRADE, SPLITS
from retina_ray.data.selection import Selection, select, take_ratio
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.synthetic import write_synthetic
from retina_ray.errors import ConfigError, DataError
from tests.helpers import AMD, DR, SCLEROSIS, write_dataset

TASKS = ("dr", "amd")


@pytest.fixture(scope="module")
def both(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    """Every image graded for both tasks."""
    return write_dataset(tmp_path_factory.mktemp("both"), rows=(40, 12, 14), both=True)


@pytest.fixture(scope="module")
def separate(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    """Every image graded for one task."""
    return write_dataset(tmp_path_factory.mktemp("separate"), rows=(40, 12, 14), group_size=3)


def graded(selection: Selection, task: str, split: str) -> np.ndarray:
    return selection.graded(split, [task])


def test_the_stored_splits_and_grades_are_the_default(both: ShardedDataset) -> None:
    selection = select(both, tasks=TASKS)
    for split in SPLITS:
        np.testing.assert_array_equal(selection.rows[split], np.flatnonzero(both.splits == split))
    for task in TASKS:
        np.testing.assert_array_equal(selection.grades[task], both.grades[task])


def test_half_leaves_one_grade_per_training_image_and_touches_no_other(both: ShardedDataset) -> None:
    selection = select(both, tasks=TASKS, hide_grades="half")
    visible = np.sum([selection.grades[task] != NO_GRADE for task in TASKS], axis=0)
    assert (visible[selection.rows["train"]] == 1).all()
    for split in ("validation", "test"):
        rows = selection.rows[split]
        for task in TASKS:
            np.testing.assert_array_equal(selection.grades[task][rows], both.grades[task][rows])
    for task in TASKS:
        kept = selection.grades[task] != NO_GRADE
        np.testing.assert_array_equal(selection.grades[task][kept], both.grades[task][kept])
    shares = [len(graded(selection, task, "train")) for task in TASKS]
    assert min(shares) >= 12, "40 draws of a fair coin"


def test_hiding_changes_neither_the_data_set_nor_images_with_one_grade(separate: ShardedDataset) -> None:
    before = {task: separate.grades[task].copy() for task in TASKS}
    selection = select(separate, tasks=TASKS, hide_grades="half")
    for task in TASKS:
        np.testing.assert_array_equal(selection.grades[task], before[task])
        np.testing.assert_array_equal(separate.grades[task], before[task])


def test_what_is_hidden_depends_on_the_seed_alone(both: ShardedDataset) -> None:
    def hidden(seed: int) -> list[bool]:
        return list(select(both, tasks=TASKS, hide_grades="half", seed=seed).grades["dr"] == NO_GRADE)

    assert hidden(0) == hidden(0)
    assert hidden(0) != hidden(1)


def test_half_keeps_one_of_three_grades(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, tasks=(DR, AMD, SCLEROSIS), rows=(60, 6, 6), both=True)
    names = ("dr", "amd", "arteriosclerosis")
    selection = select(dataset, tasks=names, hide_grades="half")
    rows = selection.rows["train"]
    assert (np.sum([selection.grades[task][rows] != NO_GRADE for task in names], axis=0) == 1).all()
    assert min(len(graded(selection, task, "train")) for task in names) >= 10


@pytest.mark.parametrize("folds", [3, 5])
def test_each_row_is_tested_once_and_no_patient_straddles(separate: ShardedDataset, folds: int) -> None:
    tested = np.zeros(len(separate), dtype=int)
    validated = np.zeros(len(separate), dtype=int)
    for fold in range(folds):
        selection = select(separate, tasks=TASKS, folds=folds, fold=fold)
        tested[selection.rows["test"]] += 1
        validated[selection.rows["validation"]] += 1
        rows = np.concatenate([selection.rows[split] for split in SPLITS])
        assert sorted(rows) == list(range(len(separate)))
        patients = [set(separate.group_ids[selection.rows[split]]) for split in SPLITS]
        assert not patients[0] & patients[1]
        assert not patients[0] & patients[2]
        assert not patients[1] & patients[2]
    assert (tested == 1).all()
    assert (validated == 1).all()


def test_the_folds_do_not_depend_on_the_seed_or_on_the_tasks_learnt(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, rows=(40, 12, 14), group_size=1)
    expected = select(dataset, tasks=TASKS, folds=3, fold=1, seed=0).rows["test"]
    for tasks, seed in ((TASKS, 9), (("amd", "dr"), 0), (("dr",), 0)):
        found = select(dataset, tasks=tasks, folds=3, fold=1, seed=seed).rows["test"]
        np.testing.assert_array_equal(found, expected, err_msg=f"{tasks} {seed}")


@pytest.mark.parametrize("limit", [1, 3, 100])
def test_a_limit_per_class_is_exact_and_nested(both: ShardedDataset, limit: int) -> None:
    everything, limited = select(both, tasks=TASKS), select(both, tasks=TASKS, images_per_class=limit)
    more = select(both, tasks=TASKS, images_per_class=limit + 1)
    for task in TASKS:
        train = limited.rows["train"]
        for grade in range(int(both.grades[task].max()) + 1):
            all_of = np.flatnonzero(everything.grades[task][train] == grade)
            kept = np.flatnonzero(limited.grades[task][train] == grade)
            assert len(kept) == min(limit, len(all_of))
            assert set(kept) <= set(np.flatnonzero(more.grades[task][train] == grade))
        for split in ("validation", "test"):
            np.testing.assert_array_equal(graded(limited, task, split), graded(everything, task, split))


def made_up(grades: dict[str, list[int]], seed: int) -> Selection:
    count = len(next(iter(grades.values())))
    return Selection(
        rows={"train": np.arange(count), "validation": np.arange(0), "test": np.arange(0)},
        grades={task: np.array(values, dtype=np.int8) for task, values in grades.items()},
        has_mask=np.zeros(count, dtype=bool),
        image_ids=np.array([f"image {row}" for row in range(count)]),
        seed=seed,
    )


one_task_per_image = st.lists(st.tuples(st.sampled_from(TASKS), st.integers(0, 3)), min_size=1, max_size=80)


@given(one_task_per_image, st.floats(0.01, 1), st.floats(0.01, 1), st.integers(0, 3))
def test_a_share_is_exact_within_each_grade_and_smaller_ones_are_nested(
    images: list[tuple[str, int]], one: float, other: float, seed: int
) -> None:
    grades = {task: [grade if own == task else NO_GRADE for own, grade in images] for task in TASKS}
    selection = made_up(grades, seed)
    rows = selection.rows["train"]
    small, large = sorted((one, other))
    kept_small, kept_large = (take_ratio(selection, rows, {"dr": share}, tasks=TASKS) for share in (small, large))
    assert set(kept_small) <= set(kept_large)
    for task, share in (("dr", small), ("amd", 1.0)):
        for grade in range(4):
            members = np.flatnonzero(selection.grades[task] == grade)
            kept = np.intersect1d(members, kept_small)
            assert len(kept) == (max(1, round(share * len(members))) if len(members) else 0)
    assert list(kept_small) == sorted(kept_small)


def test_a_share_does_not_depend_on_the_order_of_the_rows() -> None:
    rng = np.random.default_rng(0)
    grades = {"dr": list(rng.integers(0, 3, 60))}
    selection = made_up(grades, 0)
    order = rng.permutation(60)
    shuffled = Selection(
        selection.rows,
        {"dr": selection.grades["dr"][order]},
        selection.has_mask,
        selection.image_ids[order],
        selection.seed,
    )
    kept = take_ratio(selection, np.arange(60), {"dr": 0.4}, tasks=("dr",))
    kept_shuffled = take_ratio(shuffled, np.arange(60), {"dr": 0.4}, tasks=("dr",))
    assert set(selection.image_ids[kept]) == set(shuffled.image_ids[kept_shuffled])


def test_an_image_with_two_grades_stays_if_either_task_keeps_it() -> None:
    selection = made_up({"dr": [0] * 40, "amd": [0] * 40}, 0)
    rows = np.arange(40)
    assert len(take_ratio(selection, rows, {"dr": 0.25}, tasks=TASKS)) == 40
    assert len(take_ratio(selection, rows, {"dr": 0.25, "amd": 0.5}, tasks=TASKS)) == 20


@pytest.mark.parametrize("share", [0.25, 0.5, 1.0])
def test_a_share_of_the_masks_is_of_training_images_and_nested(tmp_path: Path, share: float) -> None:
    write_synthetic(str(tmp_path), tasks=("dr",), images_per_task=40, image_size=32, seed=0, encoding="raw")
    dataset = ShardedDataset.open(str(tmp_path))
    chosen = select(dataset, tasks=("dr",), masks=share)
    train = chosen.rows["train"]
    assert chosen.has_mask[train].sum() == round(share * dataset.has_mask[train].sum())
    for split in ("validation", "test"):
        rows = chosen.rows[split]
        np.testing.assert_array_equal(chosen.has_mask[rows], dataset.has_mask[rows])
    larger = select(dataset, tasks=("dr",), masks=1.0 if share == 1.0 else share + 0.25).has_mask
    assert not (chosen.has_mask & ~larger).any()


def test_an_unknown_task_names_those_there_are(both: ShardedDataset) -> None:
    with pytest.raises(ConfigError, match=r"glaucoma; set method\.tasks to some of: dr, amd"):
        select(both, tasks=("dr", "glaucoma"))


def test_a_task_without_a_graded_image_in_a_split_is_refused(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, rows=(8, 1, 8))
    with pytest.raises(DataError, match="no validation image has a grade for the task: amd"):
        select(dataset, tasks=TASKS)
