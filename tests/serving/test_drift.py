"""The drift watch keeps still while nothing has changed, and tells what has when something has.

The population is made up: colours, sharpness and confidence skewed and correlated, and both eyes of each patient
exactly alike, which is the worst that a design effect of 2 stands for. The reference is computed from a sample of it by
the code that makes bundles.
"""

import pickle
from collections.abc import Callable
from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_ray.bundle_manifest import CONFIDENCE_BINS, Reference
from retina_ray.data.quality import ImageMeasures
from retina_ray.serving.drift import DriftCounts, DriftWatch, channel_shifts, confidence_psi
from retina_ray.serving.quality import judge
from retina_ray.serving.schema import GradeResponse, ImageQuality, ModelVersion, TaskGrade, Timing
from tests.drift_samples import RUNS, Clock, Sample, drifted, histogram, month, population, trained, watched

pytestmark = pytest.mark.serving


@pytest.mark.parametrize(
    ("training", "validation", "per_day"),
    [
        pytest.param(256, 1000, 500, id="usual"),
        pytest.param(40, 60, 240, id="small data set, few photographs"),
    ],
)
def test_a_month_without_drift_has_no_alarm(training: int, validation: int, per_day: int) -> None:
    """Looked at on 30 days, each run against a reference of its own: at most 1 % of the months have an alarm."""
    rng = np.random.default_rng(1)
    alarms = []
    for _ in range(RUNS):
        known, limits = trained(rng, training, validation)
        clock = Clock()
        watch = DriftWatch("m", known, clock=clock)
        alarms.append(month(watch, clock, limits, population(rng, 30 * per_day)))
    assert sum(map(bool, alarms)) <= 1, [each for each in alarms if each]


def whiter(sample: Sample) -> Sample:
    """Another camera's blue."""
    return replace(sample, means=sample.means * np.array([1.0, 1.0, 1.3]))


def darker(sample: Sample) -> Sample:
    """A lamp that ages."""
    return replace(sample, means=sample.means * 0.8, contrast=sample.contrast * 0.8)


def unsure(sample: Sample) -> Sample:
    """Another ethnicity or camera: the model is less sure of everybody."""
    return replace(sample, confidence=0.25 + 0.85 * (sample.confidence - 0.25))


def blurred(sample: Sample) -> Sample:
    """One clinic of three is out of focus."""
    bad = np.arange(len(sample.sharpness)) % 3 == 0
    return replace(sample, sharpness=np.where(bad, 0.2 * sample.sharpness, sample.sharpness))


@pytest.mark.parametrize(
    ("change", "statistic"),
    [
        (whiter, "channel_shift"),
        (darker, "channel_shift"),
        (unsure, "confidence_psi"),
        (blurred, "quality_failures"),
    ],
)
def test_a_change_is_found_within_500_photographs(change: Callable[[Sample], Sample], statistic: str) -> None:
    rng = np.random.default_rng(2)
    found = [drifted(watched(rng, change(population(rng, 500)))) for _ in range(100)]
    assert sum(statistic in each for each in found) >= 99
    others = {"channel_shift", "confidence_psi", "quality_failures"} - {statistic}
    if change is not darker:  # which quality limits may notice too
        assert not others & set().union(*found)


def test_sure_of_less_is_found_where_the_model_was_sure_of_everything() -> None:
    """All of the reference in one bin: what falls outside it is the only sign."""
    before = np.zeros(CONFIDENCE_BINS, int)
    before[-1] = 300
    now = before.copy()
    now[-1], now[12] = 250, 50
    assert not confidence_psi("dr", before.tolist(), (2 * before).tolist()).drifted
    assert confidence_psi("dr", before.tolist(), now.tolist()).drifted
    assert not confidence_psi("dr", now.tolist(), now.tolist()).drifted


def test_large_samples_make_no_alarm_of_a_small_change() -> None:
    """Half of what is large, however sure: statistical significance alone is no reason to wake anybody."""
    known = Reference(
        images=100_000,
        channel_mean=(150.0, 80.0, 40.0),
        channel_std=(20.0, 10.0, 10.0),
        confidence={"dr": [0] * 10 + [10_000] * 10},
    )
    window = DriftCounts(
        images=100_000,
        channel_sum=(15e6, 80e5 + 0.2 * 10 * 1e5, 40e5),
        confidence={"dr": tuple([0] * 10 + [8_000] * 5 + [12_000] * 5)},
        quality_failures=6_000,
    )
    watch = DriftWatch("m", known, clock=Clock())
    watch.add(window)
    readings = watch.readings()
    assert {reading.statistic for reading in readings} == {"channel_shift", "confidence_psi", "quality_failures"}
    assert not drifted(readings)
    limits = {reading.statistic: reading.limit for reading in readings}
    assert limits == {"channel_shift": 0.25, "confidence_psi": 0.25, "quality_failures": pytest.approx(0.09, abs=1e-3)}


def test_the_expected_share_of_failures_is_what_new_images_show() -> None:
    """Four limits at one percent each: in small references more new images lie outside, which `limit` knows."""
    rng = np.random.default_rng(3)
    for training in (40, 256):
        shares = []
        for _ in range(100):
            _, limits = trained(rng, training, 30)
            shares.append(population(rng, 500).fails(limits).mean())
        bound = 4 * (1 + (training / 2 - 1) * 0.01) / (training / 2 + 1)
        assert 0.5 * bound < np.mean(shares) <= bound


def test_shifts_are_in_reference_deviations() -> None:
    known = Reference(images=100, channel_mean=(100.0, 50.0, 20.0), channel_std=(10.0, 5.0, 0.0), confidence={})
    window = DriftCounts(images=200, channel_sum=(200 * 115.0, 200 * 47.5, 200 * 90.0))
    red, green = channel_shifts(known, window)
    assert (red.of, red.value) == ("red", pytest.approx(1.5))
    assert (green.of, green.value) == ("green", pytest.approx(0.5))
    assert red.limit == pytest.approx(5.0 * np.sqrt(1 / 50 + 1 / 100), rel=0.01)  # t of 49, not 4.5
    assert red.drifted
    assert not green.drifted


def test_psi_is_that_of_the_textbook() -> None:
    """Two bins of thousands, where the corrections vanish: sum of (q - p) ln(q / p)."""
    before, now = np.zeros(CONFIDENCE_BINS, int), np.zeros(CONFIDENCE_BINS, int)
    before[[9, 19]] = 50_000, 50_000
    now[[9, 19]] = 80_000, 20_000
    expected = 0.3 * np.log(0.8 / 0.5) - 0.3 * np.log(0.2 / 0.5)
    reading = confidence_psi("dr", before.tolist(), now.tolist())
    assert reading.value == pytest.approx(expected, abs=1e-3)
    assert reading.limit == 0.25


HISTOGRAM = st.lists(st.integers(0, 300), min_size=CONFIDENCE_BINS, max_size=CONFIDENCE_BINS)


@given(HISTOGRAM.filter(lambda counts: sum(counts) >= 30), HISTOGRAM.filter(lambda counts: sum(counts) >= 200))
def test_any_histograms_give_a_number(before: list[int], now: list[int]) -> None:
    reading = confidence_psi("dr", before, now)
    assert 0.0 <= reading.value < 100.0
    assert 0.25 <= reading.limit < 100.0
    assert confidence_psi("dr", before, before).value == 0.0


def answer(confidence: float, *, ok: bool = True, abstain: bool = False) -> GradeResponse:
    graded = TaskGrade(
        grade=0,
        grade_name="normal",
        probabilities=[confidence, 1 - confidence],
        confidence=confidence,
        referable=False,
        referable_probability=1 - confidence,
        prediction_set=[0],
        coverage=0.9,
        abstain=abstain,
    )
    return GradeResponse(
        tasks={"dr": graded},
        image=ImageQuality(ok=ok),
        model=ModelVersion(name="m", hash="0"),
        timing=Timing(prepare_ms=1.0, network_ms=1.0),
    )


@given(st.lists(st.tuples(st.floats(0.0, 1.0), st.booleans(), st.booleans()), min_size=1, max_size=20))
def test_counts_are_those_of_the_reference(drawn: list[tuple[float, bool, bool]]) -> None:
    """Bin for bin as ``bundle_statistics`` counts the validation images."""
    measures = ImageMeasures(1.0, 2.0, 3.0, (4.0, 5.0, 6.0))
    parts = [DriftCounts.of(measures, answer(sure, ok=ok, abstain=abstain)) for sure, ok, abstain in drawn]
    counts = reduce(add, parts)
    assert counts.images == len(drawn)
    assert counts.channel_sum == pytest.approx([4.0 * len(drawn), 5.0 * len(drawn), 6.0 * len(drawn)])
    assert counts.confidence == {"dr": histogram(np.array([sure for sure, _, _ in drawn]))}
    assert counts.quality_failures == sum(not ok for _, ok, _ in drawn)
    assert counts.abstentions == {"dr": sum(abstain for _, _, abstain in drawn)}
    assert DriftCounts() + counts == counts + DriftCounts() == pickle.loads(pickle.dumps(counts))


def test_the_edges_of_bins_are_numpys() -> None:
    measures = ImageMeasures(1.0, 2.0, 3.0, (4.0, 5.0, 6.0))
    edges = [
        edge for step in range(21) for edge in (step / 20, np.nextafter(step / 20, 0), np.linspace(0, 1, 21)[step])
    ]
    for edge in map(float, edges):
        assert DriftCounts.of(measures, answer(edge)).confidence["dr"] == histogram(np.array([edge]))


def test_the_made_up_verdict_is_the_real_one() -> None:
    rng = np.random.default_rng(4)
    _, limits = trained(rng, 100, 30)
    sample = population(rng, 200)
    assert sample.fails(limits).tolist() == [not judge(each, limits).ok for each in sample.measures()]
    assert sample.fails(limits).any()
