"""Where the time goes, measured with a clock that the test winds."""

import pytest

from retina_ray.training import clock as module
from retina_ray.training.clock import Clock


class Time:
    now = 0.0

    def perf_counter(self) -> float:
        return self.now


@pytest.fixture
def time(monkeypatch: pytest.MonkeyPatch) -> Time:
    fake = Time()
    monkeypatch.setattr(module, "time", fake)
    return fake


def test_phases_add_up(time: Time) -> None:
    clock = Clock()
    for seconds in (2.0, 3.0):
        with clock.phase("validation"):
            time.now += seconds
    assert clock.summary()["validation_s"] == 5.0


def test_a_phase_counts_when_its_block_raises(time: Time) -> None:
    clock = Clock()

    def fail() -> None:
        with clock.phase("checkpoint"):
            time.now += 4.0
            raise KeyError

    with pytest.raises(KeyError):
        fail()
    assert clock.seconds == {"checkpoint": 4.0}


def test_waiting_is_told_from_working_and_the_first_batch_apart(time: Time) -> None:
    def batches() -> object:
        for seconds in (7.0, 1.0, 2.0):
            time.now += seconds
            yield seconds

    clock = Clock()
    for _ in clock.waiting(batches()):
        with clock.phase("compute"):
            time.now += 3.0
        clock.images += 8
    summary = clock.summary()
    assert summary["first_batch_s"] == 7.0
    assert summary["data_wait_s"] == 3.0
    assert summary["compute_s"] == 9.0
    assert summary["data_wait_share"] == pytest.approx(3 / 12)
    assert summary["images_per_second"] == pytest.approx(24 / 12)


def test_only_one_batch_of_a_training_is_its_first(time: Time) -> None:
    clock = Clock()
    for _ in range(2):
        assert list(clock.waiting([1, 2])) == [1, 2]
    assert set(clock.seconds) == {"first_batch", "data_wait"}


def test_nothing_done_is_no_division_by_zero() -> None:
    assert Clock().summary() == {"images_per_second": 0.0, "data_wait_share": 0.0}
