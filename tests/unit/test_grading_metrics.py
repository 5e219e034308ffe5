"""Grading metrics against scikit-learn and hand-worked cases, and their behaviour at the edges."""

import math

import numpy as np
import pytest
from sklearn import metrics as reference

from retina_ray.errors import DataError
from retina_ray.metrics.grading import METRICS, confusion_matrix, grading_metrics


def draw(num_images: int, num_grades: int, seed: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(num_grades, 0.4), size=num_images)
    truth = np.array([rng.choice(num_grades, p=row) for row in probabilities])
    return probabilities, truth


def test_conf_and_err_as_the_paper_defines_them() -> None:
    probabilities = np.array([[0.9, 0.1], [0.2, 0.8], [0.6, 0.4], [0.3, 0.7]])
    values = grading_metrics(probabilities, np.array([0, 1, 1, 0]))
    assert values["accuracy"] == 0.5
    assert values["confidence"] == pytest.approx(0.85)
    assert values["error"] == pytest.approx(0.65)


@pytest.mark.parametrize(("num_images", "num_grades", "seed"), [(300, 5, 0), (41, 4, 1), (60, 2, 2)])
def test_equals_scikit_learn(num_images: int, num_grades: int, seed: int) -> None:
    probabilities, truth = draw(num_images, num_grades, seed)
    predicted = probabilities.argmax(axis=1)
    values = grading_metrics(probabilities, truth)
    scores = probabilities[:, 1] if num_grades == 2 else probabilities
    expected = {
        "accuracy": reference.accuracy_score(truth, predicted),
        "auroc": reference.roc_auc_score(truth, scores, multi_class="ovr"),
        "kappa": reference.cohen_kappa_score(truth, predicted),
        "kappa_linear": reference.cohen_kappa_score(truth, predicted, weights="linear"),
        "kappa_quadratic": reference.cohen_kappa_score(truth, predicted, weights="quadratic"),
        "f1_macro": reference.f1_score(truth, predicted, average="macro"),
        "f1_weighted": reference.f1_score(truth, predicted, average="weighted"),
        "precision_macro": reference.precision_score(truth, predicted, average="macro", zero_division=0),
        "precision_weighted": reference.precision_score(truth, predicted, average="weighted", zero_division=0),
        "nll": reference.log_loss(truth, probabilities),
        "brier": ((probabilities - np.eye(num_grades)[truth]) ** 2).sum(axis=1).mean(),
    }
    for name, value in expected.items():
        assert values[name] == pytest.approx(value, abs=1e-5), name


def test_keys_are_the_published_names_in_order() -> None:
    assert tuple(grading_metrics(*draw(20, 3, 0))) == METRICS


def test_calibration_errors_from_bins() -> None:
    # One bin of confidence 0.9 that is right half of the time, one of 0.6 that is always right.
    probabilities = np.array([[0.9, 0.1]] * 4 + [[0.6, 0.4]] * 4)
    values = grading_metrics(probabilities, np.array([0, 0, 1, 1, 0, 0, 0, 0]), bins=10)
    assert values["ece"] == pytest.approx((0.4 + 0.4) / 2)
    assert values["mce"] == pytest.approx(0.4)


def test_saturated_confidence_shares_the_last_bin() -> None:
    # In a bin of its own the saturated wrong prediction would give an error of (1 + 0.01) / 2.
    probabilities = np.array([[1.0, 0.0], [0.99, 0.01]])
    assert grading_metrics(probabilities, np.array([1, 0]))["ece"] == pytest.approx(0.995 - 0.5)


def test_absent_grade_counts_in_no_average() -> None:
    probabilities, truth = draw(200, 4, 3)
    probabilities[:, 2] = 0.0
    probabilities /= probabilities.sum(axis=1, keepdims=True)
    kept = truth != 2
    values = grading_metrics(probabilities[kept], truth[kept])
    without = grading_metrics(np.delete(probabilities[kept], 2, axis=1), np.array([0, 1, 1, 2])[truth[kept]])
    for name in ("auroc", "f1_macro", "precision_macro"):
        assert values[name] == pytest.approx(without[name]), name


def test_single_image_gives_nan_not_an_error() -> None:
    values = grading_metrics(np.array([[0.2, 0.8]]), np.array([1]))
    undefined = {name for name, value in values.items() if math.isnan(value)}
    assert undefined == {"error", "auroc", "kappa", "kappa_linear", "kappa_quadratic"}
    assert values["accuracy"] == 1.0


def test_probability_of_zero_for_the_truth_stays_finite() -> None:
    assert math.isfinite(grading_metrics(np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([1, 1]))["nll"])


def test_float32_rounding_above_one_changes_nothing() -> None:
    probabilities, truth = draw(50, 3, 4)
    probabilities[0] = [1.0 + 1e-6, 0.0, 0.0]
    exact = probabilities.copy()
    exact[0, 0] = 1.0
    assert grading_metrics(probabilities, truth) == pytest.approx(grading_metrics(exact, truth))


def test_confusion_matrix_has_truth_in_rows() -> None:
    probabilities = np.array([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.7, 0.2, 0.1]])
    counts = confusion_matrix(probabilities, np.array([2, 0, 1]))
    assert counts.tolist() == [[1, 0, 0], [1, 0, 0], [0, 1, 0]]


def test_no_rows_is_an_error() -> None:
    with pytest.raises(ValueError, match="0 rows"):
        grading_metrics(np.zeros((0, 5)), np.zeros(0, dtype=int))


@pytest.mark.parametrize("bad", [[0.4, 0.4], [1.5, -0.5], [np.nan, 1.0]])
def test_not_a_distribution_is_named_with_its_row(bad: list[float]) -> None:
    with pytest.raises(DataError, match="row 1"):
        grading_metrics(np.array([[0.5, 0.5], bad]), np.array([0, 1]))


def test_grade_beyond_the_outputs_is_named() -> None:
    with pytest.raises(DataError, match=r"outside 0\.\.1: 4"):
        grading_metrics(np.array([[0.5, 0.5]]), np.array([4]))
