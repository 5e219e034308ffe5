"""A search that is killed at any event goes on as if it had not been; trials follow a formula, without Ray."""

import shutil
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import optuna
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_ray.data.store import Store
from retina_ray.errors import ConfigError
from retina_ray.orchestration.halving import Halving
from retina_ray.orchestration.live_search import MAX_DEATHS, JournalSearcher, LiveSearch
from retina_ray.search.goals import Goal
from retina_ray.search.journal import Journal, TrialRecord, events, read_trials
from retina_ray.search.space import SearchSpace
from retina_ray.search.study import SearchStudy, finished_study
from tests.search import ACCURACY, ECE, EPOCHS, POINTS, SPACE, a_search, run_through

TRIALS = 14


class Killed(BaseException):
    """Ends a search in the middle of an event."""


def killed_after(count: int, folder: Path, goals: tuple[Goal, ...]) -> bool:
    """Run a search until it has written that many events; return whether it came so far."""
    return killed_at(partial(a_search, folder, trials=TRIALS, goals=goals), count)


def killed_at(search: Callable[..., LiveSearch], count: int) -> bool:
    """Run a search, made with a listener, until it has written that many events; return whether it came so far."""
    left = count

    def listener(record: TrialRecord) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Killed

    try:
        run_through(search(listener=listener))
    except Killed:
        return True
    return False


def begun(search: LiveSearch) -> int:
    """Begin the next trial; return its number."""
    following = search.next()
    assert isinstance(following, tuple)
    return following[0]


def end_at_once(search: LiveSearch, number: int) -> None:
    """Complete a trial that reaches something."""
    search.report(number, {"epoch": 1.0, "figures": {"accuracy": 0.5}, "stages": {}, "seconds": 1.0})
    search.end(number, "complete")


@pytest.fixture(scope="module", params=[(ACCURACY,), (ACCURACY, ECE)], ids=["halving", "pareto"])
def whole(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> tuple[tuple[Goal, ...], Path]:
    folder = tmp_path_factory.mktemp("whole")
    run_through(a_search(folder, trials=TRIALS, goals=request.param))
    return request.param, folder


def test_a_search_stops_some_trials_and_finishes_others(whole: tuple[tuple[Goal, ...], Path]) -> None:
    goals, folder = whole
    trials = read_trials(Store(str(folder)))
    assert [record.number for record in trials] == list(range(TRIALS))
    assert trials[0].params == POINTS[0]
    states = {record.state for record in trials}
    assert states == ({"complete", "stopped"} if len(goals) == 1 else {"complete"})
    for record in trials:
        assert record.reports[-1].stopped == (record.state == "stopped")
        assert len(record.reports) == EPOCHS if record.state == "complete" else len(record.reports) < EPOCHS
    numbers = [event.number for event in events(trials)]
    assert numbers == list(range(len(numbers)))


@settings(max_examples=20)
@given(kills=st.lists(st.integers(1, 60), min_size=1, max_size=6))
def test_killed_at_any_events_it_goes_on_as_if_nothing_had_happened(
    whole: tuple[tuple[Goal, ...], Path], tmp_path_factory: pytest.TempPathFactory, kills: list[int]
) -> None:
    goals, expected = whole
    folder = tmp_path_factory.mktemp("killed")
    for count in kills:
        killed_after(count, folder, goals)
    run_through(a_search(folder, trials=TRIALS, goals=goals))
    assert read_trials(Store(str(folder))) == read_trials(Store(str(expected)))
    shutil.rmtree(folder)


def test_the_study_of_a_resumed_search_knows_every_result(tmp_path: Path) -> None:
    killed_after(40, tmp_path, (ACCURACY,))
    known = read_trials(Store(str(tmp_path)))
    study = SearchStudy(SPACE, (ACCURACY,), config={"any": 1}, points=POINTS, seed=0)
    study.replay(known)
    told = {trial.number: trial for trial in study._study.trials}
    assert told.keys() == {record.number for record in known}
    states = {"complete": "COMPLETE", "stopped": "PRUNED", "running": "RUNNING"}
    for record in known:
        assert told[record.number].params == record.params
        values = [report.figures["accuracy"] for report in record.reports]
        assert list(told[record.number].intermediate_values.values()) == values
        assert told[record.number].state.name == states[record.state]


def test_more_trials_can_be_asked_for_later(tmp_path: Path, whole: tuple[tuple[Goal, ...], Path]) -> None:
    goals, expected = whole
    run_through(a_search(tmp_path, trials=5, goals=goals))
    assert a_search(tmp_path, trials=5, goals=goals).left == 0
    run_through(a_search(tmp_path, trials=TRIALS, goals=goals))
    assert read_trials(Store(str(tmp_path))) == read_trials(Store(str(expected)))


def test_a_trial_that_runs_again_reports_nothing_twice(tmp_path: Path) -> None:
    search = a_search(tmp_path, trials=2)
    number = begun(search)
    result = {"epoch": 1.0, "figures": {"accuracy": 0.5}, "stages": {}, "seconds": 1.0}
    search.report(number, result)
    search.report(number, {**result, "epoch": 2.0})
    for epoch in (1.0, 2.0):  # its process died, and a new one tells it all again
        search.report(number, {**result, "epoch": epoch})
    search.report(number, {**result, "epoch": 3.0})
    (record,) = read_trials(Store(str(tmp_path)))
    assert [report.epoch for report in record.reports] == [1.0, 2.0, 3.0]


def test_a_failed_trial_and_one_without_a_number_do_not_stop_the_search(tmp_path: Path) -> None:
    search = a_search(tmp_path, trials=3)
    first = begun(search)
    search.end(first, "failed", reason="loss term 'dr' is not finite")
    second = begun(search)
    search.report(second, {"epoch": 1.0, "figures": {"accuracy": float("nan")}, "stages": {}, "seconds": 1.0})
    search.end(second, "complete")
    run_through(search)
    trials = read_trials(Store(str(tmp_path)))
    assert [record.state for record in trials][:2] == ["failed", "complete"]
    assert trials[1].value("accuracy") is None
    assert len(finished_study(trials, (ACCURACY,)).trials) == 1
    assert a_search(tmp_path, trials=3).left == 0


def test_the_same_configuration_never_runs_twice_at_a_time(tmp_path: Path) -> None:
    search = a_search(tmp_path, trials=3, points=[*POINTS, *POINTS])
    first = begun(search)
    assert search.next() == "later"
    search.end(first, "complete")
    assert [begun(search), begun(search), search.next()] == [1, 2, "later"]


def test_another_space_cannot_take_over(tmp_path: Path) -> None:
    run_through(a_search(tmp_path, trials=3))
    with pytest.raises(ConfigError, match="would go on otherwise than it began, from trial: 1 with"):
        a_search(tmp_path, trials=4, seed=1)


@pytest.mark.parametrize("goals", [(ACCURACY,), (ACCURACY, ECE)], ids=["halving", "pareto"])
def test_one_by_one_trials_are_those_of_a_sampler_that_reckons_with_no_others(
    goals: tuple[Goal, ...], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    run_through(a_search(tmp_path / "ours", trials=30, goals=goals))
    sampler = optuna.samplers.TPESampler
    monkeypatch.setattr(optuna.samplers, "TPESampler", lambda **options: sampler(**options | {"constant_liar": False}))
    run_through(a_search(tmp_path / "plain", trials=30, goals=goals))
    assert read_trials(Store(str(tmp_path / "ours"))) == read_trials(Store(str(tmp_path / "plain")))


def test_a_search_begun_two_at_a_time_goes_on_one_by_one(tmp_path: Path) -> None:
    search = a_search(tmp_path, trials=30)
    for _ in range(12):  # beyond those that are drawn without regard to the results
        pair = begun(search), begun(search)
        for number in pair:
            end_at_once(search, number)
    left = a_search(tmp_path, trials=30)
    assert left.left == 6
    run_through(left)
    assert len(read_trials(Store(str(tmp_path)))) == 30


LOW, MIDDLE, HIGH = ({"method.temperature": 8.0, "method.dropout": dropout} for dropout in (0.9, 0.4, 0.0))


def test_whoever_repeats_a_finished_trial_is_not_stopped(tmp_path: Path) -> None:
    search = partial(a_search, trials=5, points=[MIDDLE, HIGH, LOW, MIDDLE, LOW])
    run_through(search(tmp_path / "whole"))
    trials = read_trials(Store(str(tmp_path / "whole")))
    assert [record.state for record in trials] == ["complete", "complete", "stopped", "complete", "stopped"]
    assert trials[3].reports[-1].figures == trials[0].reports[-1].figures
    for event in range(24, 34, 2):  # of the repetition
        folder = tmp_path / f"killed-{event}"
        assert killed_at(partial(search, folder), event)
        run_through(search(folder))
        assert read_trials(Store(str(folder))) == trials


def cool(overrides: dict[str, Any]) -> None:
    """Refuse half of the space, as the configuration refuses values that do not go together."""
    if overrides["method.temperature"] > 4.5:
        raise ConfigError("too hot", overrides["method.temperature"], "cool it")


def test_what_is_no_configuration_fails_before_anybody_runs_it(tmp_path: Path) -> None:
    search = partial(a_search, trials=TRIALS, check=cool, points=[HIGH, *POINTS])
    run_through(search(tmp_path / "whole"))
    trials = read_trials(Store(str(tmp_path / "whole")))
    assert trials[0].reason == "too hot: 8.0; cool it"
    for record in trials:
        failed = record.params["method.temperature"] > 4.5
        assert (record.state == "failed") == failed == (not record.reports)
    assert len(trials) == TRIALS
    assert {record.state for record in trials} == {"complete", "stopped", "failed"}
    for event in (1, 2, 3):  # asked, failed, the next one asked
        folder = tmp_path / f"killed-{event}"
        assert killed_at(partial(search, folder), event)
        run_through(search(folder))
        assert read_trials(Store(str(folder))) == trials


def test_ray_tune_never_sees_what_is_no_configuration(tmp_path: Path) -> None:
    hot = {**HIGH, "method.dropout": 0.1}
    search = a_search(tmp_path, trials=3, check=cool, points=[HIGH, *POINTS, hot])
    searcher = JournalSearcher(search)
    assert searcher.suggest("first") == {"number": 1, "overrides": POINTS[0]}
    assert searcher.suggest("second") is None, "the first may have to be run again"
    searcher.on_trial_complete("first", {"done": True})
    assert searcher.suggest("second") == "FINISHED"
    assert search.left == 0


def pairs(trial: optuna.Trial) -> dict[str, Any]:
    """A space of pairs."""
    return {"data.shape": trial.suggest_categorical("shape", [(1, 2), (3, 4)])}


def test_choices_may_be_tuples(tmp_path: Path) -> None:
    space = SearchSpace("pairs", pairs, lambda config: [], "accuracy", "max")
    search = a_search(tmp_path, trials=20, points=[], space=space)
    told = []
    for _ in range(15):
        number = begun(search)
        told.append(search._journal.trials[number])
        end_at_once(search, number)
    assert read_trials(Store(str(tmp_path))) == told
    assert a_search(tmp_path, trials=20, points=[], space=space).left == 5
    assert len(finished_study(told, (ACCURACY,)).trials) == 15


@pytest.mark.parametrize(
    ("point", "message"),
    [
        ({"method.temprature": 3.0, "method.dropout": 0.5}, "method.temprature; did you mean method.temperature"),
        ({**POINTS[0], "method.ratio": 1.0}, "With this point it draws method.dropout, method.temperature"),
    ],
)
def test_a_point_with_a_misspelt_name_is_refused(point: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=f"a point names what the search space does not draw: .*{message}"):
        SearchStudy(SPACE, (ACCURACY,), config={}, points=[*POINTS, point], seed=0)


def test_halving_keeps_the_best_third_at_each_rung() -> None:
    halving = Halving(9)
    decisions = []
    for number, gain in enumerate([0.5, 0.6, 0.4, 0.7, 0.1, 0.9]):
        halving.add(number)
        decisions.append(halving.stops(number, 1.0, gain))
    # the first is never stopped; after that whoever is below the two-thirds percentile of those before
    assert decisions == [False, False, True, False, True, False]
    assert not halving.stops(0, 2.0, 0.0), "between the rungs nobody is stopped"


@pytest.mark.parametrize(
    ("budget", "rungs"), [(1, []), (2, [1]), (3, [1]), (9, [1, 3]), (12, [1, 3]), (32, [3, 9]), (300, [33, 99])]
)
def test_halving_judges_after_a_ninth_and_a_third_and_never_in_the_last_epoch(budget: int, rungs: list[int]) -> None:
    stopped = []
    for last in range(1, budget + 1):
        halving = Halving(budget)
        for number in (0, 1):
            halving.add(number)
        for epoch in range(1, budget + 1):
            assert not halving.stops(0, float(epoch), 0.5)
        for epoch in range(1, last):
            assert not halving.stops(1, float(epoch), 0.9)
        if halving.stops(1, float(last), 0.1):
            stopped.append(last)
    assert stopped == rungs


def test_a_journal_on_disk_is_whole_after_every_event(tmp_path: Path) -> None:
    seen: list[int] = []

    def listener(record: TrialRecord) -> None:
        (stored,) = [each for each in read_trials(Store(str(tmp_path))) if each.number == record.number]
        assert stored == record
        seen.append(record.number)

    journal = Journal(Store(str(tmp_path)), listener=listener)
    study = SearchStudy(SPACE, (ACCURACY,), config={"any": 1}, points=POINTS, seed=0)
    run_through(LiveSearch(journal, study, (ACCURACY,), halving=None, trials=2))
    assert len(seen) == 2 * (EPOCHS + 2)


def test_a_trial_whose_process_died_is_run_again_and_fails_if_it_does_so_again_and_again(tmp_path: Path) -> None:
    search = a_search(tmp_path, trials=2)
    first = search.next()
    assert isinstance(first, tuple)
    for _ in range(MAX_DEATHS):
        search.lose(0)
        assert search.next() == first
    second = search.next()
    assert isinstance(second, tuple)
    search.end(1, "complete")
    assert search.next() == "later", "the one that runs may have to be run again"
    search.lose(0)
    assert search.next() is None
    assert [record.state for record in read_trials(Store(str(tmp_path)))] == ["failed", "complete"]
