"""The window that drift is watched over: what it holds, what it forgets, and what an alert reads."""

import pickle
from dataclasses import replace
from functools import reduce
from operator import add

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client.parser import text_string_to_metric_families

from retina_ray.bundle_manifest import Reference
from retina_ray.serving.drift import DriftCounts, DriftWatch
from retina_ray.serving.telemetry import merge
from tests.drift_samples import DAY, Clock, drifted

pytestmark = pytest.mark.serving

KNOWN = Reference(
    images=200, channel_mean=(150.0, 80.0, 40.0), channel_std=(20.0, 10.0, 10.0), confidence={"dr": [0] * 19 + [100]}
)
PLAIN = DriftCounts(
    images=100,
    channel_sum=(15_000.0, 8_000.0, 4_000.0),
    confidence={"dr": (*[0] * 19, 100)},
    quality_failures=3,
    abstentions={"dr": 20},
)
RED = replace(PLAIN, channel_sum=(25_000.0, 8_000.0, 4_000.0))


def test_little_is_no_verdict() -> None:
    watch = DriftWatch("m", KNOWN, clock=Clock())
    watch.add(RED)
    assert watch.readings() == []
    assert watch.window().images == 100
    watch.add(RED)
    assert drifted(watch.readings()) == {"channel_shift"}


def test_a_small_reference_is_no_reference() -> None:
    small = KNOWN.model_copy(update={"images": 29, "confidence": {"dr": [0] * 19 + [29]}})
    watch = DriftWatch("m", small, clock=Clock())
    watch.add(RED + RED)
    assert watch.readings() == []


def test_the_window_forgets_what_is_older() -> None:
    clock = Clock()
    watch = DriftWatch("m", KNOWN, clock=clock)
    watch.add(RED + RED)
    clock.now = 0.9 * DAY
    watch.add(reduce(add, [PLAIN] * 30))
    assert watch.window().images == 3200
    clock.now = 1.1 * DAY
    assert watch.window().images == 3000
    assert not drifted(watch.readings())


def test_little_traffic_is_watched_too() -> None:
    """Ten photographs a day never make 200 in one: the window reaches back as far as it must."""
    clock = Clock()
    watch = DriftWatch("m", KNOWN, clock=clock)
    ten = replace(PLAIN, images=10, channel_sum=(1_500.0, 800.0, 400.0), confidence={"dr": (*[0] * 19, 10)})
    for _ in range(60):
        watch.add(ten)
        clock.now += DAY
    assert watch.window().images == 200
    red = replace(ten, channel_sum=(2_500.0, 800.0, 400.0))
    days = 0
    while not drifted(watch.readings()):
        watch.add(red)
        clock.now += DAY
        days += 1
    assert 3 <= days <= 10


@given(st.lists(st.tuples(st.floats(0.0, 2 * DAY) | st.floats(0.0, DAY / 30), st.integers(0, 300)), max_size=40))
def test_the_window_holds_a_day_or_enough(steps: list[tuple[float, int]]) -> None:
    """All of the last day, never less than 200, and not a piece more, of which a day has 48."""
    clock = Clock()
    watch = DriftWatch("m", KNOWN, clock=clock)
    sent: list[tuple[float, int]] = []

    def since(start: float, end: float = np.inf) -> int:
        return sum(images for when, images in sent if start <= when < end)

    for wait, images in steps:
        clock.now += wait
        watch.add(DriftCounts(images=images))
        sent.append((clock.now, images))
        held, largest_piece = watch.window().images, max(since(when, when + DAY / 48) for when, _ in sent)
        assert held >= since(clock.now - DAY)
        assert held >= min(since(0.0), 200)
        assert held <= max(since(clock.now - DAY * (1 + 1 / 48)), 200 + largest_piece)


def test_days_of_reports_take_little_memory() -> None:
    clock = Clock()
    watch = DriftWatch("m", KNOWN, clock=clock)
    one = replace(PLAIN, images=1)
    for _ in range(20_000):
        watch.add(one)
        clock.now += 10.0
    assert len(pickle.dumps(watch._pieces)) < 40_000
    assert DAY <= 10 * watch.window().images <= DAY * (1 + 1 / 48)


def test_gauges_are_read_by_an_alert() -> None:
    """A served name has two watches while a new version of its model takes over."""
    watch, other = (DriftWatch("m", KNOWN, bundle=bundle, clock=Clock()) for bundle in ("old", "new"))
    watch.add(RED + RED)
    page = merge({"hub": [*pickle.loads(pickle.dumps(watch.gauges())), *other.gauges()]})
    found = {
        (sample.name, *(sample.labels.get(label) for label in ("bundle", "statistic", "of", "task"))): sample.value
        for family in text_string_to_metric_families(page)
        for sample in family.samples
    }
    assert found["retina_ray_drift_alarm", "old", None, None, None] == 1.0
    assert found["retina_ray_drift_alarm", "new", None, None, None] == 0.0
    assert found["retina_ray_drift_photographs", "old", None, None, None] == 200.0
    assert found["retina_ray_drift_value", "old", "channel_shift", "red", None] == 5.0
    assert found["retina_ray_drift_value", "old", "confidence_psi", "dr", None] == 0.0
    assert found["retina_ray_drift_limit", "old", "quality_failures", "any", None] > 0.04
    assert found["retina_ray_abstained_share", "old", None, None, "dr"] == 0.2
    assert page.count("# TYPE retina_ray_drift_alarm gauge") == 1
