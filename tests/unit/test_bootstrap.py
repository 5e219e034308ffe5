"""The vectorised bootstrap gives what measuring each resample the slow way gives, and resamples patients."""

import math

import numpy as np
import pytest

from retina_ray.metrics.bootstrap import bootstrap_intervals, bootstrap_samples, draw_group_counts
from retina_ray.metrics.grading import METRICS, grading_metrics


def draw(num_images: int, num_grades: int, seed: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(num_grades, 0.4), size=num_images)
    # Coarse steps make ties between scores and confidences on bin edges likely.
    probabilities = np.round(probabilities * 20) + 1e-9
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(num_grades, p=row) for row in probabilities])
    groups = np.array([f"patient {index}" for index in rng.integers(max(2, num_images // 2), size=num_images)])
    return probabilities, truth, groups


@pytest.mark.parametrize(("num_images", "num_grades", "seed"), [(60, 5, 0), (40, 2, 1), (9, 4, 2)])
def test_equals_measuring_each_resample(num_images: int, num_grades: int, seed: int) -> None:
    probabilities, truth, groups = draw(num_images, num_grades, seed)
    samples = bootstrap_samples(probabilities, truth, groups, resamples=25, seed=7)
    names = np.unique(groups)
    counts = draw_group_counts(np.random.default_rng(7), len(names), 25)
    assert (counts.sum(axis=1) == len(names)).all()
    for resample, count in enumerate(counts):
        rows = np.concatenate([np.tile(np.flatnonzero(groups == names[at]), count[at]) for at in range(len(names))])
        expected = grading_metrics(probabilities[rows], truth[rows])
        for name in METRICS:
            assert samples[name][resample] == pytest.approx(expected[name], abs=2e-6, nan_ok=True), name


def test_chunks_do_not_change_the_result(monkeypatch: pytest.MonkeyPatch) -> None:
    probabilities, truth, groups = draw(50, 3, 3)
    whole = bootstrap_intervals(probabilities, truth, groups, resamples=64, seed=1)
    monkeypatch.setattr("retina_ray.metrics.bootstrap._CHUNK_VALUES", 8 * 50)
    chunked = bootstrap_intervals(probabilities, truth, groups, resamples=64, seed=1)
    for name in METRICS:
        assert chunked[name] == pytest.approx(whole[name], nan_ok=True), name


def test_duplicated_eyes_do_not_narrow_the_interval() -> None:
    probabilities, truth, _ = draw(80, 3, 4)
    patients = np.arange(80)
    alone = bootstrap_intervals(probabilities, truth, patients, metrics=["accuracy"], seed=0)
    twice = bootstrap_intervals(
        np.repeat(probabilities, 2, axis=0), np.repeat(truth, 2), np.repeat(patients, 2), metrics=["accuracy"], seed=0
    )
    assert twice["accuracy"] == pytest.approx(alone["accuracy"])


def test_interval_has_the_binomial_width_and_its_seed() -> None:
    rng = np.random.default_rng(0)
    right = rng.random(500) < 0.8
    probabilities = np.where(right[:, None], [[0.9, 0.1]], [[0.1, 0.9]])
    arguments = (probabilities, np.zeros(500, dtype=int), np.arange(500))
    low, high = bootstrap_intervals(*arguments, metrics=["accuracy"], seed=0)["accuracy"]
    assert high - low == pytest.approx(2 * 1.96 * math.sqrt(0.8 * 0.2 / 500), rel=0.15)
    assert low < right.mean() < high
    assert bootstrap_intervals(*arguments, metrics=["accuracy"], seed=0)["accuracy"] == (low, high)
    assert bootstrap_intervals(*arguments, metrics=["accuracy"], seed=1)["accuracy"] != (low, high)


def test_undefined_metric_has_an_undefined_interval() -> None:
    probabilities = np.tile([[0.9, 0.1]], (6, 1))
    intervals = bootstrap_intervals(probabilities, np.zeros(6, dtype=int), np.arange(6), resamples=20, seed=0)
    assert intervals["accuracy"] == (1.0, 1.0)
    assert all(math.isnan(bound) for name in ("error", "auroc", "kappa") for bound in intervals[name])


def test_one_patient_says_nothing_about_spread() -> None:
    probabilities, truth, _ = draw(10, 3, 5)
    intervals = bootstrap_intervals(probabilities, truth, np.full(10, "only"), resamples=20, seed=0)
    assert all(math.isnan(bound) for interval in intervals.values() for bound in interval)


def test_misuse_is_refused() -> None:
    probabilities, truth, groups = draw(10, 3, 6)
    with pytest.raises(ValueError, match="unknown metric 'acuracy'"):
        bootstrap_intervals(probabilities, truth, groups, metrics=["acuracy"], resamples=5, seed=0)
    with pytest.raises(ValueError, match="level"):
        bootstrap_intervals(probabilities, truth, groups, level=95.0, resamples=5, seed=0)
    with pytest.raises(ValueError, match="one group per image"):
        bootstrap_intervals(probabilities, truth, groups[:-1], resamples=5, seed=0)


def test_interval_of_the_calibration_error_holds_the_value() -> None:
    # Calibrated by construction: plain resampling would put the whole interval above the small true error.
    rng = np.random.default_rng(8)
    confidence = rng.uniform(0.5, 1.0, size=1500)
    probabilities = np.stack([confidence, 1.0 - confidence], axis=1)
    truth = (rng.random(1500) > confidence).astype(int)
    value = grading_metrics(probabilities, truth)["ece"]
    plain = bootstrap_samples(probabilities, truth, np.arange(1500), resamples=300, seed=0)["ece"]
    low, high = bootstrap_intervals(probabilities, truth, np.arange(1500), resamples=300, seed=0)["ece"]
    assert plain.mean() > value
    assert 0.0 <= low < value < high
