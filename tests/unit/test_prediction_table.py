"""The prediction table refuses what is wrong with it and does not depend on the number of ranks."""

import dataclasses
import math
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pytest

from retina_ray.errors import DataError
from retina_ray.metrics.comparison import paired_differences
from retina_ray.metrics.grading import METRICS, confusion_matrix, grading_metrics
from retina_ray.metrics.summary import as_record, summarise
from retina_ray.metrics.table import (
    PREDICTION_SCHEMA,
    as_screening,
    make_table,
    merge_shards,
    pool_runs,
    select,
    validate,
)


def predictions(
    num_images: int = 41,
    *,
    model: str = "sall",
    task: str = "dr",
    num_grades: int = 5,
    seed: int = 0,
    skill: float = 2.0,
) -> pa.Table:
    """Return a table whose images, patients and truth depend on the task alone, and whose errors on the seed."""
    rng = np.random.default_rng(seed)
    truth = np.arange(num_images) % num_grades
    logits = rng.normal(size=(num_images, num_grades)) + skill * np.eye(num_grades)[truth]
    exponential = np.exp(logits)
    truth[3] = -1
    return make_table(
        exponential / exponential.sum(axis=1, keepdims=True),
        truth=truth,
        image_ids=[f"{task}-{index:03d}" for index in range(num_images)],
        group_ids=[f"{task}-{index // 2:03d}" for index in range(num_images)],
        sources=["synthetic"] * num_images,
        splits=["validation" if index % 7 == 0 else "test" for index in range(num_images)],
        model=model,
        task=task,
    )


def both_tasks() -> pa.Table:
    return pa.concat_tables([predictions(), predictions(30, task="amd", num_grades=4, seed=1)])


@pytest.mark.parametrize("ranks", [1, 2, 3])
def test_numbers_do_not_depend_on_the_number_of_ranks(ranks: int) -> None:
    whole = both_tasks()
    # Rank r holds rows r, r + ranks, ...; the ends are padded by repeating rows, as evaluation does.
    steps = math.ceil(whole.num_rows / ranks) + 1
    shards = [whole.take([(rank + step * ranks) % whole.num_rows for step in range(steps)]) for rank in range(ranks)]
    assert sum(shard.num_rows for shard in shards) > whole.num_rows
    merged = merge_shards(shards)
    assert merged.equals(merge_shards([whole]))
    one, many = (
        summarise(table, split="test", resamples=50, level=0.9, bins=10, seed=3)
        for table in (merge_shards([whole]), merged)
    )
    for expected, got in zip(one, many, strict=True):
        assert dataclasses.replace(got, metrics={}, intervals={}) == dataclasses.replace(
            expected, metrics={}, intervals={}
        )
        assert got.metrics == pytest.approx(expected.metrics, nan_ok=True)
        assert [got.intervals[name] for name in METRICS] == [
            pytest.approx(expected.intervals[name], nan_ok=True) for name in METRICS
        ]


def test_survives_parquet(tmp_path: Path) -> None:
    pq.write_table(both_tasks(), tmp_path / "predictions.parquet")
    assert validate(pq.read_table(tmp_path / "predictions.parquet")).equals(both_tasks())


def test_select_takes_graded_rows_of_one_task_and_split() -> None:
    table = both_tasks()
    rows = select(table, model="sall", task="dr", split="test")
    wanted = [index for index in range(41) if index % 7 and index != 3]
    assert rows.image_ids.tolist() == [f"dr-{index:03d}" for index in wanted]
    assert rows.groups.tolist() == [f"dr-{index // 2:03d}" for index in wanted]
    assert rows.truth.tolist() == [index % 5 for index in wanted]
    assert rows.probabilities.shape == (len(wanted), 5)
    listed = table["probabilities"].to_pylist()
    assert rows.probabilities.tolist() == [listed[index] for index in wanted]


def test_select_names_what_it_did_not_find() -> None:
    with pytest.raises(DataError, match="sall, dr, train"):
        select(both_tasks(), model="sall", task="dr", split="train")


def test_screening_is_any_disease_against_none() -> None:
    table = predictions()
    screened = as_screening(table)
    for before, after in zip(table.to_pylist(), screened.to_pylist(), strict=True):
        assert after["truth"] == min(before["truth"], 1)
        assert after["probabilities"] == pytest.approx([before["probabilities"][0], sum(before["probabilities"][1:])])
        assert after["image_id"] == before["image_id"]
    [summary] = summarise(screened, split="test", resamples=0, seed=0)
    rows = select(table, model="sall", task="dr", split="test")
    right = (rows.probabilities[:, 0] < 0.5) == (rows.truth > 0)
    assert summary.metrics["accuracy"] == pytest.approx(right.mean())


def test_summary_is_the_metrics_of_the_selected_rows() -> None:
    table = both_tasks()
    summaries = summarise(table, split="test", resamples=20, level=0.95, bins=15, seed=0)
    assert [(summary.model, summary.task) for summary in summaries] == [("sall", "amd"), ("sall", "dr")]
    rows = select(table, model="sall", task="dr", split="test")
    assert summaries[1].n == len(rows.truth)
    assert summaries[1].metrics == grading_metrics(rows.probabilities, rows.truth)
    assert tuple(summaries[1].intervals) == METRICS


def test_summary_counts_confusions_and_reliability() -> None:
    summary = summarise(both_tasks(), split="test", resamples=0, bins=4, seed=0)[1]
    rows = select(both_tasks(), model="sall", task="dr", split="test")
    assert summary.confusion == confusion_matrix(rows.probabilities, rows.truth).tolist()
    assert [sum(row) for row in summary.confusion] == np.bincount(rows.truth).tolist()
    counts = [each["count"] for each in summary.reliability]
    assert len(counts) == 4
    assert sum(counts) == summary.n
    filled = [each for each in summary.reliability if each["count"]]
    gap = sum(each["count"] * abs(each["confidence"] - each["accuracy"]) for each in filled)
    assert gap / summary.n == pytest.approx(summary.metrics["ece"])


def test_record_of_a_summary_is_flat_and_whole() -> None:
    summary = summarise(both_tasks(), split="test", resamples=5, seed=0)[0]
    assert as_record(summary) == {
        "model": "sall",
        "task": "amd",
        "n": summary.n,
        **summary.metrics,
        "intervals": summary.intervals,
        "confusion": summary.confusion,
        "reliability": summary.reliability,
    }


def test_split_without_grades_has_no_summary() -> None:
    assert summarise(both_tasks(), split="train", resamples=5, seed=0) == []


def test_paired_difference_uses_the_shared_images() -> None:
    weak, strong = predictions(model="single", skill=0.5, seed=1), predictions(skill=3.0, seed=2)
    shuffled = strong.take(np.random.default_rng(0).permutation(strong.num_rows)[:35])
    (difference,) = paired_differences(
        pa.concat_tables([weak, shuffled]), baseline="single", split="test", resamples=200, seed=0
    )
    ours = select(shuffled, model="sall", task="dr", split="test")
    theirs = select(weak, model="single", task="dr", split="test")
    shared = np.isin(theirs.image_ids, ours.image_ids)
    expected = (
        grading_metrics(ours.probabilities, ours.truth)["accuracy"]
        - grading_metrics(theirs.probabilities[shared], theirs.truth[shared])["accuracy"]
    )
    assert difference.n == shared.sum() == len(ours.truth)
    assert difference.metrics["accuracy"] == pytest.approx(expected)
    low, high = difference.intervals["accuracy"]
    assert 0.0 < low < expected < high


def test_equal_models_differ_by_exactly_nothing() -> None:
    table = pa.concat_tables([predictions(model="single"), predictions(model="sall")])
    (difference,) = paired_differences(table, baseline="single", split="test", resamples=50, seed=0)
    assert difference.metrics["kappa"] == 0.0
    assert difference.intervals["kappa"] == (0.0, 0.0)


def test_difference_without_resamples_has_no_interval() -> None:
    table = pa.concat_tables([predictions(model="single", skill=0.5), predictions(model="sall")])
    (bare,) = paired_differences(table, baseline="single", split="test", resamples=0, seed=0)
    (full,) = paired_differences(table, baseline="single", split="test", resamples=5, seed=0)
    assert bare.intervals == {}
    assert bare.metrics == full.metrics


def test_disjoint_runs_are_pooled_and_their_repeated_rows_counted_once() -> None:
    whole = merge_shards([predictions()])
    first, second = whole.slice(0, 20), whole.slice(20)
    padded = pa.concat_tables([second, second.slice(0, 3)])
    assert pool_runs([("a", first), ("b", padded)]).equals(whole)


@pytest.mark.parametrize("truth_differs", [False, True])
def test_runs_that_predict_the_same_image_are_refused(truth_differs: bool) -> None:
    seeds = [predictions(seed=seed) for seed in (0, 1)]
    shared = seeds[1].filter(pc.field("image_id") == "dr-007")
    if truth_differs:
        shared = validate(shared.set_column(6, "truth", pa.array([0], pa.int8())))
    other = predictions(30, task="amd", num_grades=4)
    with pytest.raises(DataError, match=r"runs s0 and s1 both hold .* sall for dr on image: dr-007; .* by itself"):
        pool_runs([("s0", seeds[0]), ("s1", pa.concat_tables([other, shared]))])


def test_missing_columns_are_named() -> None:
    with pytest.raises(DataError, match="lacks columns: source, truth"):
        validate(both_tasks().drop_columns(["truth", "source"]))


def test_column_order_and_width_do_not_matter() -> None:
    table = both_tasks()
    wide = table.set_column(table.schema.get_field_index("truth"), "truth", table["truth"].cast(pa.int64()))
    assert validate(wide.select(sorted(wide.column_names))).equals(table)


@pytest.mark.parametrize(
    ("column", "value", "message"),
    [
        ("probabilities", [0.5, 0.1], "not a distribution"),
        ("probabilities", [float("nan"), 0.5], "not a distribution"),
        ("probabilities", [], "not a distribution"),
        ("probabilities", None, "empty values in: probabilities"),
        ("truth", 2, "truth is not a grade of its task: 2 of 2 grades"),
        ("truth", -2, "truth is not a grade of its task: -2 of 2 grades"),
        ("group_id", None, "empty values in: group_id"),
        ("truth", "mild", "other types"),
    ],
)
def test_wrong_values_are_refused(column: str, value: object, message: str) -> None:
    row = dict.fromkeys(PREDICTION_SCHEMA.names, "x") | {"truth": 1, "probabilities": [0.25, 0.75]}
    validate(pa.Table.from_pylist([row]))
    with pytest.raises(DataError, match=message):
        validate(pa.Table.from_pylist([row | {column: value}]))


def test_ranks_that_disagree_on_the_truth_are_refused() -> None:
    row = dict.fromkeys(PREDICTION_SCHEMA.names, "x") | {"truth": 1, "probabilities": [0.25, 0.75]}
    shards = [pa.Table.from_pylist([row | {"truth": truth}]) for truth in (0, 1)]
    with pytest.raises(DataError, match="two different grades in the prediction shards: x"):
        merge_shards(shards)


def test_tasks_with_rows_of_several_widths_are_refused() -> None:
    table = pa.concat_tables([predictions(10), predictions(20, num_grades=4).slice(10)])
    with pytest.raises(DataError, match="several numbers of grades"):
        select(table, model="sall", task="dr", split="test")


def test_columns_of_different_lengths_are_refused() -> None:
    with pytest.raises(ValueError, match="need 2 values of split"):
        make_table(
            np.full((2, 2), 0.5),
            truth=np.array([0, 1]),
            image_ids=["a", "b"],
            group_ids=["a", "b"],
            sources=["s", "s"],
            splits=["test"],
            model="sall",
            task="dr",
        )


def test_nothing_to_merge_is_an_error() -> None:
    with pytest.raises(ValueError, match="no prediction tables"):
        merge_shards([])
