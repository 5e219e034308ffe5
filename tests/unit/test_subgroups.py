"""Subgroups are measured as all images are, and gaps resample patients so that pairs of eyes stay pairs."""

import math

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest

from retina_ray.metrics.bootstrap import draw_group_counts, gap_samples
from retina_ray.metrics.grading import METRICS, grading_metrics
from retina_ray.metrics.subgroups import SMALL, UNKNOWN, summarise_subgroups
from retina_ray.metrics.summary import summarise
from retina_ray.metrics.table import make_table


def draw(num_images: int, seed: int, num_grades: int = 3) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    truth = rng.integers(num_grades, size=num_images)
    powers = np.exp(rng.normal(size=(num_images, num_grades)) + np.eye(num_grades)[truth])
    return powers / powers.sum(axis=1, keepdims=True), truth


def table_of(probabilities: np.ndarray, truth: np.ndarray, groups: list[str], **changes: object) -> pa.Table:
    number = len(truth)
    columns = {
        "image_ids": [f"image {index}" for index in range(number)],
        "sources": ["tests"] * number,
        "splits": ["test"] * number,
        "model": "sall",
        "task": "dr",
    }
    return make_table(probabilities, truth=truth, group_ids=groups, **{**columns, **changes})


def test_each_value_is_measured_as_its_images_alone() -> None:
    probabilities, truth = draw(90, 0)
    groups = [f"patient {index // 2}" for index in range(90)]
    table = pa.concat_tables(
        [
            table_of(probabilities, truth, groups, splits=["test"] * 80 + ["validation"] * 10),
            table_of(*draw(90, 1), groups, model="single_task"),
        ]
    )
    value_of = {f"image {index}": "abc"[index % 3] for index in range(70)} | {"image 70": ""}
    found = summarise_subgroups(table, column="camera", value_of=value_of, split="test", resamples=20, seed=3)
    assert [(each.summary.model, each.value) for each in found] == [
        (model, value) for model in ("sall", "single_task") for value in (UNKNOWN, "a", "b", "c")
    ]
    for each in found:
        ids = [f"image {i}" for i in range(90) if (value_of.get(f"image {i}") or UNKNOWN) == each.value]
        part = table.filter((pc.field("model") == each.summary.model) & pc.field("image_id").isin(ids))
        (expected,) = summarise(part, split="test", resamples=20, seed=3)
        assert each.summary == expected
        assert each.patients == len(set(part.filter(pc.field("split") == "test")["group_id"].to_pylist()))
        assert each.small == (each.patients < SMALL)
        rest = table.filter((pc.field("model") == each.summary.model) & ~pc.field("image_id").isin(ids))
        (other,) = summarise(rest, split="test", resamples=0, seed=3)
        for name in METRICS:
            assert each.gaps[name] == pytest.approx(expected.metrics[name] - other.metrics[name])
            low, high = each.gap_intervals[name]
            assert low <= high


def test_a_single_value_has_no_rest_to_differ_from() -> None:
    table = table_of(*draw(12, 2), [str(index) for index in range(12)])
    (found,) = summarise_subgroups(table, column="source", value_of={}, split="test", resamples=5, seed=0)
    assert (found.value, found.gaps, found.gap_intervals) == (UNKNOWN, {}, {})
    assert summarise_subgroups(table, column="source", value_of={}, split="train", resamples=5, seed=0) == []


def test_gaps_equal_measuring_each_side_of_each_resample() -> None:
    probabilities, truth = draw(40, 4)
    groups = np.array([f"p{index // 2:02d}" for index in range(40)])
    inside = np.arange(40) % 2 == 0  # one eye of every patient
    inside[:10] = True  # five patients with both inside
    inside[10:18] = False  # four with both outside
    samples = gap_samples(probabilities, truth, groups, inside, resamples=15, seed=6)
    names = np.unique(groups)
    inner, outer, both = np.arange(0, 5), np.arange(5, 9), np.arange(9, 20)
    rng = np.random.default_rng(6)
    counts = np.zeros((15, 20), dtype=int)
    for members in (inner, outer, both):
        counts[:, members] = draw_group_counts(rng, len(members), 15)
    for resample, count in enumerate(counts):
        rows = np.concatenate([np.tile(np.flatnonzero(groups == names[at]), count[at]) for at in range(20)])
        sides = [rows[inside[rows]], rows[~inside[rows]]]
        here, there = (grading_metrics(probabilities[side], truth[side]) for side in sides)
        for name in METRICS:
            expected = here[name] - there[name]
            assert samples[name][resample] == pytest.approx(expected, abs=4e-6, nan_ok=True), name


def test_eyes_of_the_same_patients_are_compared_in_pairs() -> None:
    # Both eyes of a patient are right or wrong together: the gap is 0 in every resample of patients.
    right = np.arange(60) % 3 > 0
    probabilities = np.where(np.repeat(right, 2)[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
    truth = np.zeros(120, dtype=int)
    patients = np.repeat(np.arange(60), 2)
    left = np.arange(120) % 2 == 0
    assert (gap_samples(probabilities, truth, patients, left, resamples=50, seed=0)["accuracy"] == 0.0).all()
    # Of other patients on either side, the two sides vary each by themselves.
    apart = gap_samples(probabilities, truth, np.arange(120), left, resamples=400, seed=0)["accuracy"]
    assert apart.std() == pytest.approx(math.sqrt(2 * (2 / 9) / 60), rel=0.15)


def test_a_side_of_one_patient_has_no_interval() -> None:
    probabilities, truth = draw(10, 5)
    inside = np.arange(10) < 2
    groups = np.array(["lonely"] * 2 + [f"other {index}" for index in range(8)])
    samples = gap_samples(probabilities, truth, groups, inside, resamples=5, seed=0)
    assert all(np.isnan(values).all() for values in samples.values())
