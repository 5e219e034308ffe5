"""Reliability bins, the calibration temperature and conformal sets keep what they promise."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_ray.metrics.calibration import (
    TEMPERATURE_RANGE,
    apply_temperature,
    conformal_quantile,
    fit_temperature,
    prediction_set,
    reliability_bins,
)
from retina_ray.metrics.grading import grading_metrics


def draw(num_images: int, seed: int, num_grades: int = 4) -> tuple[np.ndarray, np.ndarray]:
    """Return probabilities that are calibrated by construction, and a truth drawn from them."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(num_grades, 0.6), size=num_images)
    truth = (probabilities.cumsum(axis=1) < rng.random((num_images, 1))).sum(axis=1).clip(max=num_grades - 1)
    return probabilities, truth


@pytest.mark.parametrize("bins", [1, 10, 15])
def test_bins_reproduce_accuracy_and_calibration_error(bins: int) -> None:
    probabilities, truth = draw(400, 0)
    grouped = reliability_bins(probabilities, truth, bins)
    values = grading_metrics(probabilities, truth, bins=bins)
    filled = grouped.count > 0
    share = grouped.count[filled] / 400
    gap = np.abs(grouped.accuracy - grouped.confidence)[filled]
    assert grouped.edges[[0, -1]].tolist() == [0.0, 1.0]
    assert (share * grouped.accuracy[filled]).sum() == pytest.approx(values["accuracy"])
    assert (share * gap).sum() == pytest.approx(values["ece"])
    assert gap.max() == pytest.approx(values["mce"])


def test_bin_edges_and_saturation_fall_into_bins() -> None:
    # Confidences on edges (0.6 = 9/15 exactly) and of exactly 1.
    probabilities = np.array([[0.6, 0.4], [1.0, 0.0], [0.5, 0.5]])
    grouped = reliability_bins(probabilities, np.array([0, 0, 0]), 10)
    assert grouped.count.tolist() == [0, 0, 0, 0, 0, 1, 1, 0, 0, 1]
    assert np.isnan(grouped.accuracy[0])
    assert grouped.confidence[9] == pytest.approx(1.0)


@pytest.mark.parametrize("sharpening", [0.4, 1.0, 2.5])
def test_fitted_temperature_undoes_a_known_sharpening(sharpening: float) -> None:
    calibrated, truth = draw(6000, 1)
    shown = apply_temperature(calibrated, 1.0 / sharpening)
    assert fit_temperature(shown, truth) == pytest.approx(sharpening, rel=0.06)
    fitted = apply_temperature(shown, fit_temperature(shown, truth))
    assert grading_metrics(fitted, truth)["nll"] <= grading_metrics(shown, truth)["nll"]


def test_separable_data_stops_at_the_bound() -> None:
    probabilities = np.array([[0.7, 0.3], [0.3, 0.7]])
    low, high = TEMPERATURE_RANGE
    assert fit_temperature(probabilities, np.array([0, 1])) == pytest.approx(low, rel=1e-3)
    assert fit_temperature(probabilities, np.array([1, 0])) == pytest.approx(high, rel=1e-3)


@given(seed=st.integers(0, 2**16), temperature=st.floats(0.1, 10.0))
@settings(max_examples=30, deadline=None)
def test_temperature_keeps_order_and_sums(seed: int, temperature: float) -> None:
    probabilities, _ = draw(8, seed)
    scaled = apply_temperature(probabilities, temperature)
    assert np.allclose(scaled.sum(axis=1), 1.0)
    assert (scaled.argmax(axis=1) == probabilities.argmax(axis=1)).all()


def test_temperature_one_is_the_identity_and_matches_scaled_logits() -> None:
    rng = np.random.default_rng(0)
    logits = rng.normal(size=(20, 5)) * 3
    softmax = np.exp(logits) / np.exp(logits).sum(axis=1, keepdims=True)
    warm = np.exp(logits / 3) / np.exp(logits / 3).sum(axis=1, keepdims=True)
    assert np.allclose(apply_temperature(softmax, 1.0), softmax)
    assert np.allclose(apply_temperature(softmax, 3.0), warm)


@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan"), float("inf")])
def test_impossible_temperature_is_refused(temperature: float) -> None:
    with pytest.raises(ValueError, match="temperature must be positive"):
        apply_temperature(np.array([[0.5, 0.5]]), temperature)


@pytest.mark.parametrize("coverage", [0.8, 0.9, 0.95])
def test_sets_cover_new_images_as_often_as_promised(coverage: float) -> None:
    covered = []
    for seed in range(40):
        probabilities, truth = draw(600, seed)
        quantile = conformal_quantile(probabilities[:200], truth[:200], coverage=coverage)
        sets = prediction_set(probabilities[200:], quantile)
        covered.append(sets[np.arange(400), truth[200:]].mean())
    assert coverage - 0.01 <= np.mean(covered) <= coverage + 0.02


def test_finite_sample_rank() -> None:
    # Scores 0.1 .. 0.9: rank ceil(10 * 0.8) = 8 is 0.8; coverage 0.95 needs rank 10 of 9, hence every grade.
    of_truth = 1.0 - np.arange(1, 10) / 10
    probabilities = np.stack([of_truth, 1.0 - of_truth], axis=1)
    truth = np.zeros(9, dtype=int)
    assert conformal_quantile(probabilities, truth, coverage=0.8) == pytest.approx(0.8)
    assert conformal_quantile(probabilities, truth, coverage=0.95) == 1.0


def test_set_is_never_empty() -> None:
    sets = prediction_set(np.array([[0.4, 0.35, 0.25], [0.98, 0.01, 0.01]]), 0.05)
    assert sets.tolist() == [[True, False, False], [True, False, False]]
    assert prediction_set(np.array([[0.4, 0.6, 0.0]]), 1.0).all()


def test_records_of_reliability_have_no_values_for_an_empty_bin() -> None:
    probabilities = np.array([[0.9, 0.1], [0.9, 0.1], [0.4, 0.6]])
    records = reliability_bins(probabilities, np.array([0, 1, 1]), 4).as_records()
    empty = {"count": 0, "confidence": None, "accuracy": None}
    assert records == [
        empty,
        empty,
        {"count": 1, "confidence": pytest.approx(0.6), "accuracy": 1.0},
        {"count": 2, "confidence": pytest.approx(0.9), "accuracy": 0.5},
    ]
