"""A candidate is compared with the champion: agreement, kappas, latencies, each with an interval that holds."""

import csv
import json
import math
from dataclasses import asdict
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_ray.errors import DataError
from retina_ray.metrics.bootstrap import bootstrap_intervals
from retina_ray.metrics.grading import grading_metrics
from retina_ray.metrics.json_text import json_text
from retina_ray.serving.shadow_comparison import (
    Comparison,
    Estimate,
    by_pair,
    compare,
    quadratic_kappa,
    read_truth,
    wilson,
)
from tests.shadow_records import readers, record, records, said, sha

pytestmark = pytest.mark.serving


def test_kappas_are_those_of_the_metrics() -> None:
    rng = np.random.default_rng(0)
    truth, champion, candidate = readers(rng, 300, 0.6, 0.8)
    known = {sha(index): {"dr": grade} for index, grade in enumerate(truth)}
    compared = compare(records(champion, candidate), known)
    one_hot = np.eye(5)

    def kappa(guess: list[int], target: list[int]) -> float:
        return grading_metrics(one_hot[guess], np.array(target))["kappa_quadratic"]

    task = compared.tasks["dr"]
    assert task.truth is not None
    assert (compared.images, task.truth.images) == (300, 300)
    assert task.agreement.value == pytest.approx(np.mean(np.array(champion) == candidate))
    assert task.kappa.value == pytest.approx(kappa(candidate, champion), abs=1e-6)
    assert task.truth.champion.value == pytest.approx(kappa(champion, truth), abs=1e-6)
    assert task.truth.candidate.value == pytest.approx(kappa(candidate, truth), abs=1e-6)
    gain = task.truth.candidate.value - task.truth.champion.value
    assert task.truth.difference.value == pytest.approx(gain)


def test_intervals_are_those_of_resampled_photographs() -> None:
    """A draw from the table of grades is a draw of photographs: both bootstraps agree up to their noise."""
    truth, champion, _ = readers(np.random.default_rng(1), 400, 0.7, 0.7)
    known = {sha(index): {"dr": grade} for index, grade in enumerate(truth)}
    task = compare(records(champion, champion), known, resamples=4000).tasks["dr"]
    assert task.truth is not None
    expected = bootstrap_intervals(
        np.eye(5)[champion], np.array(truth), np.arange(400), metrics=["kappa_quadratic"], resamples=4000, seed=0
    )["kappa_quadratic"]
    found = task.truth.champion
    assert (found.low, found.high) == pytest.approx(expected, abs=0.01)
    assert (task.truth.difference.low, task.truth.difference.high) == (0.0, 0.0)  # the same on every resample


def coverage(images: int, runs: int) -> dict[str, float]:
    """Return how often each interval holds what an endless log would show."""
    rng = np.random.default_rng(2)
    truth, champion, candidate = (np.array(each) for each in readers(rng, 400_000, 0.6, 0.8))

    def table(a: np.ndarray, b: np.ndarray) -> np.ndarray:
        return np.bincount(5 * a + b, minlength=25).reshape(5, 5)

    both, before, after = (
        float(quadratic_kappa(table(*pair))) for pair in ((champion, candidate), (champion, truth), (candidate, truth))
    )
    true = {"agreement": float((champion == candidate).mean()), "kappa": both, "difference": after - before}
    held = dict.fromkeys(true, 0)
    for _ in range(runs):
        rows = rng.integers(len(truth), size=images)
        known = {sha(index): {"dr": grade} for index, grade in enumerate(truth[rows].tolist())}
        compared = compare(records(champion[rows].tolist(), candidate[rows].tolist()), known, resamples=500)
        task = compared.tasks["dr"]
        assert task.truth is not None
        found = {"agreement": task.agreement, "kappa": task.kappa, "difference": task.truth.difference}
        for name, estimate in found.items():
            held[name] += estimate.low <= true[name] <= estimate.high
    return {name: count / runs for name, count in held.items()}


def test_intervals_of_95_percent_hold_the_truth_about_as_often() -> None:
    shares = coverage(images=120, runs=120)
    assert all(0.88 <= share <= 0.99 for share in shares.values()), shares


@pytest.mark.parametrize(
    ("successes", "trials", "low", "high"),
    [(81, 263, 0.2553, 0.3662), (15, 148, 0.0624, 0.1605), (0, 20, 0.0, 0.1611), (1, 29, 0.0061, 0.1718)],
)
def test_wilsons_interval(successes: int, trials: int, low: float, high: float) -> None:
    """The examples of Newcombe (1998), Table I, method 3."""
    assert wilson(successes, trials, 0.95) == Estimate(
        pytest.approx(successes / trials), pytest.approx(low, abs=6e-5), pytest.approx(high, abs=6e-5)
    )


def test_latencies_and_their_difference() -> None:
    rng = np.random.default_rng(3)
    load = rng.gamma(4.0, 5.0, size=2000)
    pairs = [
        record(index, said(0, float(slow)), said(0, float(slow) + 4.0 + float(noise)))
        for index, (slow, noise) in enumerate(zip(load, rng.exponential(1.0, size=2000), strict=True))
    ]
    latency = compare(pairs, None).latency
    assert list(latency) == ["p50", "p99"]
    assert latency["p50"].champion == pytest.approx(np.median(load))
    assert latency["p99"].champion == pytest.approx(np.quantile(load, 0.99))
    middle, tail = latency["p50"].difference, latency["p99"].difference
    assert middle.value == pytest.approx(latency["p50"].candidate - latency["p50"].champion)
    assert 4.0 < middle.low < middle.value < middle.high < 6.0
    assert tail.low < 5.0 < tail.high
    # Both saw the same load, so the difference is known far better than either.
    assert middle.high - middle.low < 1.5


def test_repetitions_count_once_as_grades_and_each_time_as_latency() -> None:
    first = record(0, said(1, 10.0), said(1, 20.0), image="x")
    again = record(1, said(1, 30.0), said(1, 40.0), image="x")
    other = record(2, said(2, 50.0), said(0, 60.0))
    compared = compare([again, first, other], None)
    assert (compared.records, compared.images) == (3, 2)
    assert compared.tasks["dr"].agreement.value == 0.5
    assert compared.latency["p50"].champion == 30.0


def test_failures_are_counted() -> None:
    compared = compare([record(0, said(1), said(1)), record(1, said(1), None), record(2, said(2), said(2))], None)
    assert (compared.records, compared.failures, compared.images) == (3, 1, 2)
    with pytest.raises(DataError, match="the candidate has graded no photograph: 1 records"):
        compare([record(0, said(1), None)], None)


def test_one_grade_throughout_has_no_kappa() -> None:
    compared = compare(records([0, 0, 0], [0, 0, 0]), None)
    assert compared.tasks["dr"].agreement.value == 1.0
    assert math.isnan(compared.tasks["dr"].kappa.value)
    assert json.loads(json_text(asdict(compared)))["tasks"]["dr"]["kappa"] == {"value": None, "low": None, "high": None}


def test_several_pairs_are_told_apart() -> None:
    mixed = [
        record(0, said(1), said(1), hashed="b"),
        record(1, said(1), said(1), hashed="a"),
        record(2, said(1), said(1), hashed="b"),
    ]
    pairs = by_pair(reversed(mixed))
    assert [pair.candidate for pair in pairs] == ["a", "b"]  # recorded last comes last
    assert [len(each) for each in pairs.values()] == [1, 2]
    with pytest.raises(DataError, match="one champion and one candidate: main: old and a; main: old and b"):
        compare(mixed, None)
    with pytest.raises(DataError, match="no records"):
        compare([], None)


def test_only_tasks_of_both_are_compared() -> None:
    both = said(1).model_copy(update={"tasks": {**said(1).tasks, **said(0, task="amd", num_grades=4).tasks}})
    assert list(compare([record(0, both, said(1))], None).tasks) == ["dr"]
    with pytest.raises(DataError, match="no task in common: dr and amd"):
        compare([record(0, said(1), said(1, task="amd"))], None)
    with pytest.raises(DataError, match=r"different numbers of grades of dr: \(5, 4\)"):
        compare([record(0, said(1), said(1, num_grades=4))], None)


def test_the_truth_of_some_is_enough() -> None:
    truth = {sha(0): {"dr": 1}, sha(1): {}, sha("unseen"): {"dr": 4}}
    against = compare(records([1, 2, 3], [1, 2, 3]), truth).tasks["dr"].truth
    assert against is not None
    assert against.images == 1
    assert compare(records([1, 2], [1, 2]), {sha(0): {}}).tasks["dr"].truth is None


@pytest.mark.parametrize(
    ("truth", "message"),
    [
        ({sha("unseen"): {"dr": 1}}, "names none of the photographs in the log: 1 images"),
        ({sha(0): {"DR": 1}}, "not both models grade: DR; keep the columns of dr"),
        ({sha(0): {"dr": 5}}, "grade of dr that the models do not know: 5; write grades from 0 to 4"),
    ],
)
def test_a_truth_that_does_not_fit_is_refused(truth: dict[str, dict[str, int]], message: str) -> None:
    with pytest.raises(DataError, match=message):
        compare(records([1, 2], [1, 2]), truth)


@given(
    st.lists(st.tuples(st.integers(0, 4), st.integers(0, 4), st.none() | st.integers(0, 4)), min_size=1, max_size=30)
)
def test_any_grades_are_compared(drawn: list[tuple[int, int, int | None]]) -> None:
    truth = {sha(index): {} if true is None else {"dr": true} for index, (_, _, true) in enumerate(drawn)}
    compared = compare(records([a for a, _, _ in drawn], [b for _, b, _ in drawn]), truth, resamples=50)
    task = compared.tasks["dr"]
    assert task.agreement.low <= task.agreement.value <= task.agreement.high
    assert -1.0 <= task.kappa.value <= 1.0 or math.isnan(task.kappa.value)
    assert isinstance(compared, Comparison)
    json_text(asdict(compared))


# The truth


def test_the_truth_is_read(tmp_path: Path) -> None:
    file = tmp_path / "truth.csv"
    with file.open("w", newline="", encoding="utf-8-sig") as lines:
        rows = [["image", " dr", "amd"], [sha(0).upper(), "3", ""], [sha(1), "", " 0 "]]
        csv.writer(lines).writerows(rows)
    assert read_truth(file) == {sha(0): {"dr": 3}, sha(1): {"amd": 0}}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "other columns: none"),
        ("file,dr\n", "other columns: file, dr; write as its first line"),
        ("image\n", "other columns: image;"),
        ("image,dr,dr\n", "other columns"),
        ("image,dr,\n", "other columns"),
        ("image,dr\nSmith_John.jpg,1\n", r"no SHA-256 of a file: .*truth\.csv:2"),
        (f"image,dr\n{sha(0)},1\n{sha(1)},mild\n", r"grade of dr is no number: .*truth\.csv:3"),
        (f"image,dr\n{sha(0)},-1\n", "is no number"),
        (f"image,dr\n{sha(0)},1.5\n", "is no number"),
        (f"image,dr\n{sha(0)},1,2\n", r"need 2 cells in a line of truth, got 3: .*truth\.csv:2"),
        (f"image,dr\n{sha(0)},1\n{sha(0).upper()},1\n", r"two lines of truth: .*truth\.csv:3"),
        (f'image,dr\n{sha(0)},"1\n', "cannot be read"),
        ("\udcff", "cannot be read"),
    ],
)
def test_a_truth_that_cannot_be_used_is_named(tmp_path: Path, text: str, message: str) -> None:
    file = tmp_path / "truth.csv"
    file.write_bytes(text.encode("utf-8", "surrogateescape"))
    with pytest.raises(DataError, match=message) as caught:
        read_truth(file)
    assert str(file) in str(caught.value)
    assert "Smith" not in str(caught.value)


def test_a_missing_truth_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match=r"cannot be read .*nowhere\.csv"):
        read_truth(tmp_path / "nowhere.csv")
