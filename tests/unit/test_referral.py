"""The referral curve against a slow one that refers image by image, and what must hold of any."""

import math
from itertools import permutations

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_ray.metrics.bootstrap import draw_group_counts, percentile_interval
from retina_ray.metrics.grading import grading_metrics
from retina_ray.metrics.referral import SHARES, ReferralCurve, referral_curve, uncertainty_of

Cohort = tuple[np.ndarray, np.ndarray, np.ndarray]


def draw(num_images: int, num_grades: int, seed: int, *, steps: int = 0) -> Cohort:
    """Return probabilities, truth and two-image patients; with ``steps``, coarse probabilities, which tie."""
    rng = np.random.default_rng(seed)
    probabilities = rng.dirichlet(np.full(num_grades, 0.5), size=num_images)
    if steps:
        probabilities = np.round(probabilities * steps) + 1e-6
        probabilities /= probabilities.sum(axis=1, keepdims=True)
    truth = np.array([rng.choice(num_grades, p=row) for row in probabilities])
    return probabilities, truth, np.arange(num_images) // 2


def curve(cohort: Cohort, **changes: object) -> ReferralCurve:
    return referral_curve(*cohort, **{"resamples": 0, "seed": 0, **changes})


cohorts = st.builds(
    draw, st.integers(4, 40), st.integers(2, 5), st.integers(0, 10_000), steps=st.sampled_from([0, 2, 5])
)


@pytest.mark.parametrize("uncertainty", ["max", "entropy"])
def test_equals_referring_image_by_image(uncertainty: str) -> None:
    probabilities, truth, groups = draw(100, 4, 0)
    found = curve((probabilities, truth, groups), uncertainty=uncertainty)
    if uncertainty == "max":
        unsure = [1.0 - max(row) for row in probabilities]
    else:
        unsure = [-sum(value * math.log(value) for value in row if value) for row in probabilities]
    surest_first = sorted(range(100), key=lambda image: unsure[image])
    for share in range(0, 100, 9):  # of 100 images, whole ones
        kept = surest_first[: 100 - share]
        expected = grading_metrics(probabilities[kept], truth[kept])
        for name in ("accuracy", "kappa_quadratic"):
            value = found.values[name][share]
            assert value == pytest.approx(expected[name], abs=2e-6, nan_ok=True), (share, name)


@given(cohort=cohorts)
@settings(max_examples=40, deadline=None)
def test_nothing_referred_is_the_plain_figure(cohort: Cohort) -> None:
    plain = grading_metrics(*cohort[:2])
    at_none = curve(cohort).at(0.0)
    assert at_none["accuracy"] == pytest.approx(plain["accuracy"])
    assert at_none["kappa_quadratic"] == pytest.approx(plain["kappa_quadratic"], abs=2e-6, nan_ok=True)


@given(cohort=cohorts, seed=st.integers(0, 100))
@settings(max_examples=40, deadline=None)
def test_the_order_of_the_images_plays_no_part(cohort: Cohort, seed: int) -> None:
    order = np.random.default_rng(seed).permutation(len(cohort[1]))
    one, other = curve(cohort), curve((cohort[0][order], cohort[1][order], cohort[2][order]))
    for name, values in one.values.items():
        np.testing.assert_allclose(values, other.values[name], atol=1e-9)


def test_ties_give_the_mean_over_all_their_orders() -> None:
    probabilities = np.array([[0.9, 0.1]] + [[0.7, 0.3]] * 4)
    truth = np.array([0, 0, 1, 1, 0])
    found = curve((probabilities, truth, np.arange(5))).values["accuracy"]
    right = (truth == 0).tolist()
    for kept, share in ((2, 60), (3, 40), (4, 20)):
        orders = [[right[0], *(right[image] for image in order)][:kept] for order in permutations(range(1, 5))]
        assert found[share] == pytest.approx(np.mean([np.mean(order) for order in orders]))


def test_a_model_that_knows_when_it_errs_gains_and_one_that_does_not_stays() -> None:
    right = np.arange(200) % 5 > 0
    sure = np.where(right, 0.95, 0.6)
    knows = np.stack([sure, 1.0 - sure], axis=1)
    truth = np.where(right, 0, 1)
    found = curve((knows, truth, np.arange(200)))
    assert found.at(0.0)["accuracy"] == pytest.approx(0.8)
    assert found.at(0.1)["accuracy"] == pytest.approx(160 / 180)
    assert found.at(0.2)["accuracy"] == found.at(0.9)["accuracy"] == 1.0
    equally_sure = np.tile([[0.8, 0.2]], (200, 1))
    flat = curve((equally_sure, truth, np.arange(200)))
    np.testing.assert_allclose(flat.values["accuracy"], 0.8)
    assert flat.areas["accuracy"] == pytest.approx(0.8)
    assert flat.areas["accuracy"] < found.areas["accuracy"] == pytest.approx(found.values["accuracy"].mean())


def test_bands_are_those_of_curves_over_resampled_patients() -> None:
    probabilities, truth, groups = draw(30, 3, 4, steps=5)
    found = curve((probabilities, truth, groups), resamples=20, level=0.8, seed=3)
    rng = np.random.default_rng(3)
    curves = []
    for _ in range(20):
        (counts,) = draw_group_counts(rng, 15, 1)
        rows = np.concatenate([np.tile(np.flatnonzero(groups == patient), counts[patient]) for patient in range(15)])
        curves.append(curve((probabilities[rows], truth[rows], groups[rows])))
    for name in ("accuracy", "kappa_quadratic"):
        for place in (0, 30, 77, 99):
            expected = percentile_interval(np.array([each.values[name][place] for each in curves]), 0.8)
            assert found.bands[name][place] == pytest.approx(expected, abs=1e-6, nan_ok=True)
        expected = percentile_interval(np.array([each.areas[name] for each in curves]), 0.8)
        assert found.area_intervals[name] == pytest.approx(expected, abs=1e-6)


def test_kappa_is_undefined_where_one_grade_is_left() -> None:
    probabilities = np.array([[0.99, 0.01]] * 6 + [[0.4, 0.6], [0.6, 0.4]])
    found = curve((probabilities, np.array([0] * 6 + [1, 1]), np.arange(8)))
    assert np.isfinite(found.values["kappa_quadratic"][:25]).all()
    assert np.isnan(found.values["kappa_quadratic"][25:]).all()
    assert found.areas["kappa_quadratic"] == pytest.approx(found.values["kappa_quadratic"][:25].mean())


def test_one_patient_has_no_band() -> None:
    found = curve((*draw(6, 3, 0)[:2], np.full(6, "only")), resamples=10)
    assert np.isnan(found.bands["accuracy"]).all()
    assert curve(draw(6, 3, 0)).bands == {}


def test_the_most_uncertain_is_the_even_one() -> None:
    values = np.array([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0], [1 / 3, 1 / 3, 1 / 3]])
    assert uncertainty_of(values) == pytest.approx([0.5, 0.0, 2 / 3])
    assert uncertainty_of(values, "entropy") == pytest.approx([math.log(2), 0.0, math.log(3)])
    assert len(SHARES) == 100
