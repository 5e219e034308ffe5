"""Which trial wins: by the last value, among finished ones, wherever its parameters lie."""

import pytest
from optuna.distributions import FloatDistribution, distribution_to_json

from retina_ray.config import RunConfig
from retina_ray.errors import ConfigError
from retina_ray.search.goals import Goal
from retina_ray.search.journal import Report, State, TrialRecord
from retina_ray.search.study import finished_study
from retina_ray.search.winner import best_trial, pareto_front, winner_config

ACCURACY, ECE = Goal("accuracy", "max"), Goal("ece", "min")
RANGE = distribution_to_json(FloatDistribution(0.0, 1.0))


def trial(
    number: int, *, state: State = "complete", x: float = 0.5, epoch: float = 1.0, **figures: float | None
) -> TrialRecord:
    reports = [Report(number, epoch, figures, False, 1.0)] if figures else []
    return TrialRecord(number, {"x": x}, {"x": RANGE}, {"seed": number}, number, state=state, reports=reports)


def test_the_best_value_wins_and_the_earlier_of_two() -> None:
    trials = [trial(0, accuracy=0.5), trial(1, state="stopped", accuracy=0.8), trial(2, accuracy=0.8)]
    assert best_trial(trials, [ACCURACY]).number == 1
    assert best_trial(trials, [Goal("accuracy", "min")]).number == 0


@pytest.mark.parametrize("state", ["running", "failed"])
def test_what_has_not_ended_well_does_not_win(state: State) -> None:
    trials = [trial(0, accuracy=0.5), trial(1, state=state, accuracy=0.5), trial(2, state=state, accuracy=0.9)]
    assert [each.number for each in pareto_front(trials, [ACCURACY])] == [0]


def test_where_a_time_budget_cut_every_trial_the_best_of_them_wins() -> None:
    cut = [trial(0, state="running", accuracy=0.5), trial(1, state="running", accuracy=0.9), trial(2, state="running")]
    assert best_trial(cut, [ACCURACY]).number == 1
    assert best_trial([*cut, trial(3, state="stopped", accuracy=0.1)], [ACCURACY]).number == 3


def test_a_mean_over_fewer_folds_does_not_win_over_one_of_all() -> None:
    lucky = trial(0, state="stopped", epoch=1.0, accuracy=0.9)
    trials = [lucky, trial(1, epoch=3.0, accuracy=0.6), trial(2, epoch=3.0, accuracy=0.7)]
    assert best_trial(trials, [ACCURACY], folds=3).number == 2
    assert [each.number for each in pareto_front(trials, [ACCURACY], folds=3)] == [2]
    assert best_trial(trials, [ACCURACY]).number == 0, "of epochs, the winner is trained those that it lacks"


def test_where_no_trial_saw_all_folds_those_that_saw_most_compete() -> None:
    trials = [
        trial(0, state="stopped", epoch=1.0, accuracy=0.9),
        trial(1, state="stopped", epoch=3.0, accuracy=0.5),
        trial(2, state="stopped", epoch=3.0, accuracy=0.6),
        trial(3, state="running", epoch=4.0, accuracy=0.8),
        trial(4, epoch=9.0, accuracy=None),
    ]
    assert best_trial(trials, [ACCURACY], folds=9).number == 2


def test_of_two_goals_nothing_on_the_front_is_beaten_in_both() -> None:
    trials = [
        trial(0, accuracy=0.7, ece=0.1),
        trial(1, accuracy=0.8, ece=0.2),
        trial(2, accuracy=0.7, ece=0.2),
        trial(3, accuracy=0.9, ece=None),
    ]
    assert [each.number for each in pareto_front(trials, [ACCURACY, ECE])] == [0, 1]
    assert best_trial(trials, [ACCURACY, ECE]).number == 1
    assert best_trial(trials, [ECE, ACCURACY]).number == 0


def test_a_point_beyond_its_range_can_win_and_is_not_analysed() -> None:
    trials = [trial(0, accuracy=0.5), trial(1, x=3.0, accuracy=0.9)]
    assert best_trial(trials, [ACCURACY]).number == 1
    assert [each.params for each in finished_study(trials, [ACCURACY]).trials] == [{"x": 0.5}]


def test_without_a_value_the_error_says_why() -> None:
    lost = trial(1, state="failed")
    lost.reason = "too many images"
    with pytest.raises(ConfigError, match="trial 1: too many images"):
        best_trial([trial(0, state="running"), lost], [ACCURACY])
    with pytest.raises(ConfigError, match="of 0 none reported"):
        best_trial([], [ACCURACY])


def test_the_winner_is_a_run_named_after_its_search() -> None:
    config = winner_config(RunConfig(name="search"), trial(12, accuracy=0.5))
    assert (config.name, config.seed) == ("search-trial-00012", 12)
