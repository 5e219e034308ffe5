"""Thresholds reach what they were chosen for with the fewest false positives, and their figures are counted right."""

import math

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_ray.errors import DataError
from retina_ray.metrics.bootstrap import draw_group_counts, percentile_interval
from retina_ray.metrics.operating_points import (
    SCREENING_METRICS,
    choose_threshold,
    decide_at_sensitivity,
    decide_at_threshold,
    referable_scores,
    screening_figures,
)
from retina_ray.metrics.table import Predictions


def predictions(num_images: int, seed: int, *, num_grades: int = 5, name: str = "image") -> Predictions:
    rng = np.random.default_rng(seed)
    truth = rng.integers(num_grades, size=num_images)
    powers = np.exp(rng.normal(size=(num_images, num_grades)) + 1.5 * np.eye(num_grades)[truth])
    return Predictions(
        probabilities=(powers / powers.sum(axis=1, keepdims=True)).astype(np.float32),
        truth=truth.astype(np.int64),
        groups=np.array([f"{name} {index // 2}" for index in range(num_images)]),
        image_ids=np.array([f"{name}-{index}" for index in range(num_images)]),
    )


scored = st.lists(
    st.tuples(st.sampled_from([0.0, 0.1, 0.25, 0.3, 0.5, 0.7, 0.9, 1.0]), st.booleans()), min_size=1, max_size=30
).filter(lambda images: any(referable for _, referable in images))


@given(images=scored, sensitivity=st.floats(0.0, 1.0, exclude_min=True))
@settings(max_examples=80)
def test_a_threshold_reaches_its_sensitivity_and_no_higher_one_does(
    images: list[tuple[float, bool]], sensitivity: float
) -> None:
    scores, referable = (np.array(column) for column in zip(*images, strict=True))
    threshold = choose_threshold(scores, referable, sensitivity=sensitivity)

    def measured(at: float) -> tuple[float, int]:
        flagged = [score >= at for score in scores]
        found = sum(flag and ill for flag, ill in zip(flagged, referable, strict=True))
        false = sum(flag and not ill for flag, ill in zip(flagged, referable, strict=True))
        return found / sum(referable), false

    reached, false_positives = measured(threshold)
    assert reached >= sensitivity
    others = [measured(at) for at in (*scores, math.inf)]
    assert false_positives == min(false for found, false in others if found >= sensitivity)
    assert all(found < sensitivity for at in scores if at > threshold for found, _ in [measured(at)])


def test_scores_add_up_the_referable_grades() -> None:
    made = predictions(20, 0)
    scores, referable = referable_scores(made, referable_from=2)
    assert scores == pytest.approx([sum(map(float, row[2:])) for row in made.probabilities], abs=1e-6)
    assert referable.tolist() == [grade >= 2 for grade in made.truth]


@pytest.mark.parametrize("grade", [0, 5, -1])
def test_a_grade_that_divides_nothing_is_refused(grade: int) -> None:
    with pytest.raises(DataError, match="use one from 1 to 4"):
        referable_scores(predictions(5, 0), referable_from=grade)


def test_without_a_referable_validation_image_there_is_no_threshold() -> None:
    with pytest.raises(DataError, match="no validation image is referable"):
        choose_threshold(np.array([0.2, 0.9]), np.array([False, False]), sensitivity=0.9)
    with pytest.raises(ValueError, match="sensitivity must lie"):
        choose_threshold(np.array([0.2]), np.array([True]), sensitivity=90.0)


def test_the_threshold_comes_from_validation_images_and_the_figures_from_test_images() -> None:
    validation, test = predictions(60, 1), predictions(80, 2)
    decisions = decide_at_sensitivity([(validation, test)], referable_from=2, sensitivity=0.9)
    (threshold,), (reached,) = decisions.thresholds, decisions.reached
    scores, referable = referable_scores(validation, referable_from=2)
    assert threshold == choose_threshold(scores, referable, sensitivity=0.9)
    assert reached == np.mean(scores[referable] >= threshold) >= 0.9
    flagged = [float(row[2:].sum()) >= threshold for row in test.probabilities.astype(np.float64)]
    ill = [grade >= 2 for grade in test.truth]
    both = sum(f and i for f, i in zip(flagged, ill, strict=True))
    neither = sum(not f and not i for f, i in zip(flagged, ill, strict=True))
    figures = screening_figures(decisions, resamples=0, seed=0)
    assert (figures.n, figures.num_referable) == (80, sum(ill))
    assert figures.metrics == pytest.approx(
        {
            "sensitivity": both / sum(ill),
            "specificity": neither / (80 - sum(ill)),
            "ppv": both / sum(flagged),
            "npv": neither / (80 - sum(flagged)),
            "flagged": sum(flagged) / 80,
        }
    )
    assert figures.intervals == {}


def test_pooled_models_decide_each_by_its_own_threshold() -> None:
    models = [(predictions(50, 3), predictions(30, 4, name="a")), (predictions(50, 5), predictions(40, 6, name="b"))]
    pooled = decide_at_sensitivity(models, referable_from=2, sensitivity=0.8)
    alone = [decide_at_sensitivity([model], referable_from=2, sensitivity=0.8) for model in models]
    assert pooled.thresholds == tuple(each.thresholds[0] for each in alone)
    assert pooled.thresholds[0] != pooled.thresholds[1]
    assert pooled.flagged.tolist() == [*alone[0].flagged, *alone[1].flagged]
    assert pooled.image_ids.tolist() == [*alone[0].image_ids, *alone[1].image_ids]
    of_second = np.arange(70) >= 30
    figures = screening_figures(pooled, rows=of_second, resamples=30, seed=1)
    assert figures == screening_figures(alone[1], resamples=30, seed=1)


def test_a_given_threshold_needs_no_validation_images() -> None:
    test = predictions(30, 7)
    decisions = decide_at_threshold([test], referable_from=1, threshold=0.5)
    assert (decisions.stated, decisions.reached, decisions.thresholds) == (None, (), (0.5,))
    assert decisions.flagged.tolist() == (referable_scores(test, referable_from=1)[0] >= 0.5).tolist()


def test_intervals_are_those_of_resampled_patients() -> None:
    decisions = decide_at_threshold([predictions(24, 8)], referable_from=2, threshold=0.4)
    figures = screening_figures(decisions, resamples=40, level=0.8, seed=5)
    names = np.unique(decisions.groups)
    samples: dict[str, list[float]] = {name: [] for name in SCREENING_METRICS}
    for counts in draw_group_counts(np.random.default_rng(5), len(names), 40):
        flagged, ill = [], []
        for name, count in zip(names, counts, strict=True):
            flagged += decisions.flagged[decisions.groups == name].tolist() * count
            ill += decisions.referable[decisions.groups == name].tolist() * count
        cells = [(f, i) for f, i in zip(flagged, ill, strict=True)]
        both, only_flagged, only_ill = cells.count((True, True)), cells.count((True, False)), cells.count((False, True))
        neither = cells.count((False, False))
        nan = math.nan
        samples["sensitivity"].append(both / (both + only_ill) if both + only_ill else nan)
        samples["specificity"].append(neither / (neither + only_flagged) if neither + only_flagged else nan)
        samples["ppv"].append(both / (both + only_flagged) if both + only_flagged else nan)
        samples["npv"].append(neither / (neither + only_ill) if neither + only_ill else nan)
        samples["flagged"].append((both + only_flagged) / len(cells))
    assert not {0.0, 1.0} & set(figures.metrics.values())
    for name, values in samples.items():
        assert figures.intervals[name] == pytest.approx(percentile_interval(np.array(values), 0.8)), name


def test_shares_of_nothing_are_undefined() -> None:
    test = predictions(6, 9)
    nobody = decide_at_threshold([test], referable_from=1, threshold=2.0)
    figures = screening_figures(nobody, rows=np.zeros(6, dtype=bool), resamples=5, seed=0)
    assert figures.n == 0
    assert all(math.isnan(value) for value in figures.metrics.values())
    assert all(math.isnan(bound) for interval in figures.intervals.values() for bound in interval)
    flagged_none = screening_figures(nobody, resamples=0, seed=0)
    assert flagged_none.metrics["flagged"] == 0.0
    assert math.isnan(flagged_none.metrics["ppv"])


def test_a_share_of_all_is_not_certain() -> None:
    everybody = decide_at_threshold([predictions(20, 10)], referable_from=1, threshold=0.0)
    figures = screening_figures(everybody, resamples=20, level=0.95, seed=0)
    patients = {
        name: set(everybody.groups[rows]) for name, rows in (("ill", everybody.referable), ("all", slice(None)))
    }
    assert figures.metrics["sensitivity"] == 1.0
    # Were the bound true, all of the patients would be flagged in one of forty such tests.
    for name, who in (("sensitivity", "ill"), ("flagged", "all")):
        low, high = figures.intervals[name]
        assert (low ** len(patients[who]), high) == (pytest.approx(0.025), 1.0)
    assert figures.intervals["specificity"][0] == 0.0 < figures.intervals["specificity"][1] < 1.0
    assert figures.intervals["ppv"][1] < 1.0
