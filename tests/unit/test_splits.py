"""Splits and folds: no patient in two of them, every grade in proportion, and the order of the rows without effect."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_ray.data.splits import assign_folds, assign_splits, leaks
from retina_ray.errors import ConfigError

FRACTIONS = (0.5, 0.25, 0.25)


@st.composite
def cohorts(draw: st.DrawFn) -> tuple[list[str], dict[str, np.ndarray]]:
    """Groups of one to four rows with grades of two tasks, some missing, rare grades included."""
    sizes = draw(st.lists(st.integers(1, 4), min_size=3, max_size=60))
    groups = [f"patient {number}" for number, size in enumerate(sizes) for _ in range(size)]
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    order = rng.permutation(len(groups))
    grades = {
        "dr": rng.choice(6, len(groups), p=[0.5, 0.2, 0.15, 0.1, 0.04, 0.01]) - 1,
        "amd": rng.integers(-1, 2, len(groups)),
    }
    return [groups[row] for row in order], grades


@given(cohort=cohorts(), seed=st.integers(0, 1000))
def test_no_group_leaks_and_shares_are_right(cohort, seed):
    groups, grades = cohort
    splits = assign_splits(groups, grades, fractions=FRACTIONS, seed=seed)
    assert leaks(groups, splits) == []
    assert set(splits) <= {"train", "validation", "test"}
    largest = max(groups.count(group) for group in set(groups))
    for split, fraction in zip(("train", "validation", "test"), FRACTIONS, strict=True):
        assert abs((splits == split).sum() - fraction * len(groups)) <= 2 * largest


@given(cohort=cohorts(), seed=st.integers(0, 1000), shuffle=st.randoms(use_true_random=False))
def test_permuting_the_rows_permutes_the_result(cohort, seed, shuffle):
    groups, grades = cohort
    order = list(range(len(groups)))
    shuffle.shuffle(order)
    permuted = [groups[row] for row in order], {task: values[order] for task, values in grades.items()}
    assert (assign_splits(*permuted, seed=seed) == assign_splits(groups, grades, seed=seed)[order]).all()
    assert (
        assign_folds(*permuted, folds=3, seed=seed) == assign_folds(groups, grades, folds=3, seed=seed)[order]
    ).all()


@given(cohort=cohorts(), folds=st.integers(2, 3), seed=st.integers(0, 1000))
def test_folds_are_whole_groups_of_about_equal_size(cohort, folds, seed):
    groups, grades = cohort
    parts = assign_folds(groups, grades, folds=folds, seed=seed)
    assert leaks(groups, parts.astype(str)) == []
    largest = max(groups.count(group) for group in set(groups))
    sizes = np.bincount(parts, minlength=folds)
    assert len(sizes) == folds
    assert np.abs(sizes - len(groups) / folds).max() <= 2 * largest


def test_every_grade_is_divided_in_proportion():
    """IDRiD's grades: the rarest has 17 images."""
    numbers = {0: 50, 1: 17, 2: 50, 3: 50, 4: 48}
    dr = np.repeat(list(numbers), list(numbers.values()))
    splits = assign_splits([str(row) for row in range(len(dr))], {"dr": dr}, fractions=FRACTIONS, seed=0)
    for grade, number in numbers.items():
        for split, fraction in zip(("train", "validation", "test"), FRACTIONS, strict=True):
            assert abs(((splits == split) & (dr == grade)).sum() - fraction * number) <= 1.5


def test_a_group_counts_by_its_rarest_grade():
    """Each patient has a healthy eye; the eight with a PDR eye still reach all splits 4 : 2 : 2."""
    groups = [f"patient {row // 2}" for row in range(80)]
    dr = np.array([0, 0] * 32 + [0, 4] * 8)
    splits = assign_splits(groups, {"dr": dr}, seed=1)
    assert [((splits == split) & (dr == 4)).sum() for split in ("train", "validation", "test")] == [4, 2, 2]


def test_many_rare_grades_do_not_all_go_to_training():
    grades = np.arange(40)
    splits = assign_splits([str(row) for row in range(40)], {"rare": grades}, seed=0)
    assert [(splits == split).sum() for split in ("train", "validation", "test")] == [20, 10, 10]


def test_seeds_give_other_divisions_and_equal_seeds_the_same():
    groups = [str(row) for row in range(100)]
    grades = {"dr": np.zeros(100, int)}
    assert (assign_splits(groups, grades, seed=1) == assign_splits(groups, grades, seed=1)).all()
    assert (assign_splits(groups, grades, seed=1) != assign_splits(groups, grades, seed=2)).any()


def test_an_empty_share_gets_nothing_and_no_rows_give_no_splits():
    splits = assign_splits(list("abcdefgh"), {}, fractions=(0.75, 0.25, 0.0), seed=0)
    assert sorted(splits) == ["train"] * 6 + ["validation"] * 2
    assert len(assign_splits([], {}, seed=0)) == 0


@pytest.mark.parametrize("fractions", [(0.5, 0.5, 0.5), (1.5, -0.25, -0.25), (0.5, 0.5), (float("nan"),) * 3])
def test_fractions_must_add_up(fractions):
    with pytest.raises(ConfigError, match="add up to 1"):
        assign_splits(["a"], {}, fractions=fractions, seed=0)


@pytest.mark.parametrize("folds", [1, 4])
def test_folds_must_fit_the_groups(folds):
    with pytest.raises(ConfigError, match="that many folds"):
        assign_folds(["a", "b", "c", "c"], {}, folds=folds, seed=0)


def test_leaks_names_the_groups():
    assert leaks(["b", "a", "b", "a", "c"], ["train", "test", "test", "train", "test"]) == ["a", "b"]
