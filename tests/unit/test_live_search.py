"""A search that is killed at any event goes on as if it had not been; trials follow a formula, without Ray."""

import shutil
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_ray.data.store import Store
from retina_ray.errors import ConfigError
from retina_ray.orchestration.halving import Halving
from retina_ray.orchestration.live_search import LiveSearch
from retina_ray.search.goals import Goal
from retina_ray.search.journal import Journal, TrialRecord, events, read_trials
from retina_ray.search.study import SearchStudy, finished_study
from tests.search import ACCURACY, ECE, EPOCHS, POINTS, SPACE, a_search, run_through

TRIALS = 14


class Killed(BaseException):
    """Ends a search in the middle of an event."""


def killed_after(count: int, folder: Path, goals: tuple[Goal, ...]) -> bool:
    """Run a search until it has written that many events; return whether it came so far."""
    left = count

    def listener(record: TrialRecord) -> None:
        nonlocal left
        left -= 1
        if not left:
            raise Killed

    try:
        run_through(a_search(folder, trials=TRIALS, goals=goals, listener=listener))
    except Killed:
        return True
    return False


def begun(search: LiveSearch) -> int:
    """Begin the next trial; return its number."""
    following = search.next()
    assert isinstance(following, tuple)
    return following[0]


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
    study = SearchStudy(SPACE, (ACCURACY,), config={"any": 1}, points=POINTS, seed=0, parallel=False)
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
    study = SearchStudy(SPACE, (ACCURACY,), config={}, points=[*POINTS, *POINTS], seed=0, parallel=True)
    search = LiveSearch(Journal(Store(str(tmp_path))), study, (ACCURACY,), halving=None, trials=3)
    first = begun(search)
    assert search.next() == "later"
    search.end(first, "complete")
    assert [begun(search), begun(search), search.next()] == [1, 2, None]


def test_another_space_cannot_take_over(tmp_path: Path) -> None:
    run_through(a_search(tmp_path, trials=3))
    with pytest.raises(ConfigError, match="would go on otherwise than it began, from trial: 1 with"):
        a_search(tmp_path, trials=4, seed=1)


def test_halving_keeps_the_best_third_at_each_rung() -> None:
    halving = Halving(9)
    decisions = []
    for number, gain in enumerate([0.5, 0.6, 0.4, 0.7, 0.1, 0.9]):
        halving.add(number)
        decisions.append(halving.stops(number, 1.0, gain))
    # the first is never stopped; after that whoever is below the two-thirds percentile of those before
    assert decisions == [False, False, True, False, True, False]
    assert not halving.stops(0, 2.0, 0.0), "between the rungs nobody is stopped"
    assert not halving.stops(5, 9.0, 0.9), "the last epoch stops nobody, whose weights would be lost"


def test_a_journal_on_disk_is_whole_after_every_event(tmp_path: Path) -> None:
    seen: list[int] = []

    def listener(record: TrialRecord) -> None:
        (stored,) = [each for each in read_trials(Store(str(tmp_path))) if each.number == record.number]
        assert stored == record
        seen.append(record.number)

    journal = Journal(Store(str(tmp_path)), listener=listener)
    study = SearchStudy(SPACE, (ACCURACY,), config={"any": 1}, points=POINTS, seed=0, parallel=False)
    run_through(LiveSearch(journal, study, (ACCURACY,), halving=None, trials=2))
    assert len(seen) == 2 * (EPOCHS + 2)
