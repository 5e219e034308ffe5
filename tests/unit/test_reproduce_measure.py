"""What a grid's runs reach, against counting by hand and against each other."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import stats

from retina_ray.errors import DataError
from retina_ray.metrics.table import make_table
from retina_ray.reproduce.experiment import Column
from retina_ray.reproduce.measure import Measured, Outcome, Settings, gain, measured

ACCURACY = Column("acc", "accuracy", "dr")
PSNR = Column("PSNR", "psnr", stage="joint", unit="dB")


def outcome(predicted: list[int], truth: list[int], *, start: int = 0, model: str = "ours") -> Outcome:
    """A run whose test images are numbered from ``start``."""
    probabilities = np.full((len(truth), 3), 0.1)
    probabilities[np.arange(len(truth)), predicted] = 0.8
    names = [f"image-{start + number:03}" for number in range(len(truth))]
    table = make_table(
        probabilities,
        truth=np.array(truth),
        image_ids=names,
        group_ids=names,
        sources=["drawn"] * len(truth),
        splits=["test"] * len(truth),
        model=model,
        task="dr",
    )
    return Outcome(table, model)


def test_folds_are_pooled_and_seeds_averaged() -> None:
    # Seed 0: 1 of 1 and 1 of 3 right, so 2 of 4; seed 1: all 4.
    first = [outcome([0], [0]), outcome([1, 0, 0], [1, 2, 2], start=1)]
    second = [outcome([0], [0]), outcome([1, 2, 2], [1, 2, 2], start=1)]
    found = measured([first, second], ACCURACY, model="ours", settings=Settings(resamples=0))
    assert found.values.tolist() == [0.5, 1.0]
    assert found.mean == 0.75
    assert found.spread == pytest.approx(math.sqrt(0.125))
    assert found.images == 4
    assert all(map(math.isnan, found.interval))


def test_a_single_seed_has_no_spread() -> None:
    found = measured([[outcome([0, 1], [0, 1])]], ACCURACY, model="ours", settings=Settings(resamples=0))
    assert math.isnan(found.spread)


def test_two_folds_that_test_the_same_image_are_refused() -> None:
    with pytest.raises(DataError, match="both hold predictions"):
        measured([[outcome([0], [0]), outcome([0], [0])]], ACCURACY, model="ours", settings=Settings(resamples=0))


def test_the_interval_is_that_of_seed_averages_on_resampled_patients() -> None:
    rng = np.random.default_rng(5)
    truth = rng.integers(3, size=40).tolist()
    seeds = [[outcome(rng.integers(3, size=40).tolist(), truth)] for _ in range(2)]
    found = measured(seeds, ACCURACY, model="ours", settings=Settings(resamples=400))
    right = np.mean(
        [np.array(each.predictions["probabilities"].to_pylist()).argmax(axis=1) == truth for [each] in seeds], axis=0
    )
    drawn = np.random.default_rng(0).integers(40, size=(400, 40))
    slow = right[drawn].mean(axis=1)
    assert found.interval == pytest.approx(tuple(np.quantile(slow, [0.025, 0.975])))
    assert found.interval[0] < found.mean < found.interval[1]


@settings(max_examples=20, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 2), st.integers(0, 2), st.integers(0, 2)), min_size=2, max_size=20))
def test_a_gain_is_a_paired_bootstrap(images: list[tuple[int, int, int]]) -> None:
    truth, ours, theirs = (list(column) for column in zip(*images, strict=True))
    how = Settings(resamples=50)
    one = measured([[outcome(ours, truth)]], ACCURACY, model="ours", settings=how)
    other = measured([[outcome(theirs, truth)]], ACCURACY, model="ours", settings=how)
    found = gain(one, other, ACCURACY, how)
    assert found.mean == pytest.approx(one.mean - other.mean)
    assert np.allclose(found.samples, one.samples - other.samples)
    # Two models that err on the same images differ in no resample.
    same = gain(one, one, ACCURACY, how)
    assert same.interval == (0.0, 0.0)
    backwards = gain(other, one, ACCURACY, how)
    assert backwards.interval == pytest.approx((-found.interval[1], -found.interval[0]))


def test_a_stage_s_figure_has_students_interval_over_the_seeds() -> None:
    def run(psnr: float) -> Outcome:
        return Outcome(None, "deepmt", {"joint": {"psnr": psnr}})

    found = measured([[run(30.0), run(32.0)], [run(33.0)], [run(36.0)]], PSNR, model="deepmt", settings=Settings())
    assert found.values.tolist() == [31.0, 33.0, 36.0]  # the mean of a seed's folds
    low, high = stats.t.interval(0.95, 2, loc=found.mean, scale=stats.sem(found.values))
    assert found.interval == pytest.approx((low, high))
    alone = measured([[run(30.0)]], PSNR, model="deepmt", settings=Settings())
    assert all(map(math.isnan, alone.interval))
    twice = Measured(2 * found.values, (math.nan, math.nan), np.zeros(0), 0)
    assert gain(twice, found, PSNR, Settings()).mean == pytest.approx(found.mean)


def test_the_external_images_are_measured_apart() -> None:
    own, other = outcome([0, 0], [0, 0]), outcome([0, 0], [0, 1])
    run = Outcome(own.predictions, "ours", external=other.predictions)
    external = Column("acc", "accuracy", "dr", images="external")
    how = Settings(resamples=0)
    assert measured([[run]], ACCURACY, model="ours", settings=how).mean == 1.0
    assert measured([[run]], external, model="ours", settings=how).mean == 0.5
