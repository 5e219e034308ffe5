"""Searches in a real MLflow on sqlite: each trial in the run of its own search, whatever ended, failed or was killed.

One database serves the file, since making one takes MLflow seconds.
"""

import logging
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from mlflow import MlflowClient
from mlflow.exceptions import MlflowException

from retina_ray.config import RunConfig, override
from retina_ray.mlflow_access import connect
from retina_ray.orchestration.search_tracking import SearchTracker
from retina_ray.registry import MLFLOW_PARENT
from retina_ray.search.journal import Report, State, TrialRecord

pytestmark = pytest.mark.timeout(300)  # MLflow's import and first migration, on a busy machine


@pytest.fixture
def config(storage: Path, request: pytest.FixtureRequest) -> RunConfig:
    """A search of the shared database, in an experiment of its own."""
    name = request.node.name
    return override(
        RunConfig(name="search"),
        {
            "runtime.storage": str(storage / name[:40]),
            "tracking.uri": f"sqlite:///{storage / 'mlflow.db'}",
            "tracking.experiment": name,
        },
    )


def trial(number: int, *values: float, state: State = "running", **changes: Any) -> TrialRecord:
    reports = [
        Report(step, float(step), {"kappa": value, "ece": None}, False, 1.0) for step, value in enumerate(values)
    ]
    temperature = {"method.temperature": 2.0 + number}
    return replace(TrialRecord(number, temperature, {}, temperature, 0, reports=reports, state=state), **changes)


def nested(config: RunConfig, parent: str) -> dict[int, Any]:
    """Return a search's MLflow runs of trials by number, each of which is there once."""
    client = connect(config)
    experiment = client.get_experiment_by_name(config.tracking.experiment).experiment_id
    runs = [run for run in client.search_runs([experiment]) if run.data.tags.get(MLFLOW_PARENT) == parent]
    by_number = {int(run.info.run_name.rpartition("/")[2]): run for run in runs}
    assert len(by_number) == len(runs)
    return by_number


def kappas(config: RunConfig, run: Any) -> list[tuple[int, float]]:
    history = connect(config).get_metric_history(run.info.run_id, "kappa")
    return [(metric.step, metric.value) for metric in history]


def test_a_new_search_of_a_deleted_ones_name_has_runs_of_its_own(config: RunConfig) -> None:
    parents = []
    for value in (0.1, 0.2):
        with SearchTracker(config, resume=False) as tracker:
            tracker.catch_up([])
            tracker(trial(0))
            tracker(trial(0, value))
            tracker(trial(0, value, state="complete"))
        parents.append(tracker.run_id)
    with SearchTracker(config, resume=True) as tracker:  # the newer one
        tracker.catch_up([trial(0, 0.2, state="complete"), trial(1)])
        tracker(trial(1, 0.3))
        tracker(trial(1, 0.3, state="stopped"))
    assert tracker.run_id == parents[1] != parents[0]
    old, new = (nested(config, parent) for parent in parents)
    assert {number: kappas(config, run) for number, run in old.items()} == {0: [(1, 0.1)]}
    assert {number: kappas(config, run) for number, run in new.items()} == {0: [(1, 0.2)], 1: [(1, 0.3)]}


def test_each_end_of_a_trial_has_its_status(config: RunConfig) -> None:
    with SearchTracker(config, resume=False) as tracker:
        for number, state in enumerate(("complete", "stopped", "failed")):
            tracker(trial(number, 0.5))
            tracker(trial(number, 0.5, state=state, reason="too few images" if state == "failed" else ""))
        tracker(trial(3))
    found = nested(config, tracker.run_id)
    assert [found[number].info.status for number in range(4)] == ["FINISHED", "FINISHED", "FAILED", "KILLED"]
    tags = [found[number].data.tags.get("retina_ray.state") for number in range(4)]
    assert tags == ["complete", "stopped", "failed", None]
    assert found[2].data.tags["retina_ray.reason"] == "too few images"


def test_what_a_kill_kept_from_mlflow_is_made_up_for(config: RunConfig) -> None:
    killed = SearchTracker(config, resume=False).__enter__()
    for number in range(4):
        killed(trial(number, 0.1))
    killed(trial(3, 0.1, state="complete"))
    # The journal knows two ends, a report and a trial that MLflow has not heard of; then the process was killed.
    journal = [
        trial(0, 0.1, 0.2, state="complete"),
        trial(1, 0.1, state="failed", reason="it diverged"),
        trial(2, 0.1, 0.4),
        trial(3, 0.1, state="complete"),
        trial(4, 0.6, state="stopped"),
    ]
    with SearchTracker(config, resume=True) as tracker:
        tracker.catch_up(journal)
        found = nested(config, tracker.run_id)
        statuses = ["FINISHED", "FAILED", "RUNNING", "FINISHED", "FINISHED"]
        assert [found[number].info.status for number in range(5)] == statuses
        tracker(trial(2, 0.1, 0.4, 0.5))
        tracker(trial(2, 0.1, 0.4, 0.5, state="complete"))
    found = nested(config, tracker.run_id)
    assert tracker.run_id == killed.run_id
    assert found[2].info.status == "FINISHED"
    assert [kappas(config, found[number]) for number in range(5)] == [
        [(1, 0.1), (2, 0.2)],
        [(1, 0.1)],
        [(1, 0.1), (2, 0.4), (3, 0.5)],
        [(1, 0.1)],
        [(1, 0.6)],
    ]


@pytest.mark.parametrize("enabled", [True, False])
def test_a_suggestion_that_is_no_configuration_is_recorded_as_it_is(config: RunConfig, enabled: bool) -> None:
    invalid = {"method.temperature": -1.0, "method.no_such": 3}
    with SearchTracker(override(config, {"tracking.enabled": enabled}), resume=False) as tracker:
        for state in ("running", "failed"):
            tracker(trial(0, state=state, overrides=invalid))
    if enabled:
        run = nested(config, tracker.run_id)[0]
        assert run.info.status == "FAILED"
        assert run.data.params == {"method.temperature": "-1.0", "method.no_such": "3"}


def hiccup(monkeypatch: pytest.MonkeyPatch, *, fails: Callable[[int], bool]) -> None:
    """Let MLflow fail at some of the runs that are created, by number from 0."""
    create, calls = MlflowClient.create_run, iter(range(1000))

    def create_run(*args: Any, **kwargs: Any) -> Any:
        if fails(next(calls)):
            raise MlflowException("database is locked")
        return create(*args, **kwargs)

    monkeypatch.setattr(MlflowClient, "create_run", create_run)


def test_a_hiccup_when_a_trial_begins_costs_a_warning(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hiccup(monkeypatch, fails=lambda call: call == 1)  # that of the first trial, when it begins
    with SearchTracker(config, resume=False) as tracker, caplog.at_level(logging.WARNING):
        for number in (0, 1):
            tracker(trial(number))
            tracker(trial(number, 0.5))
            tracker(trial(number, 0.5, state="complete"))
    assert len(caplog.messages) == 1
    assert "database is locked" in caplog.messages[0]
    found = nested(config, tracker.run_id)
    assert [kappas(config, found[number]) for number in (0, 1)] == [[(1, 0.5)]] * 2


def test_an_mlflow_that_stays_away_is_not_asked_for_every_trial(
    config: RunConfig, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    hiccup(monkeypatch, fails=lambda call: call > 0)
    with SearchTracker(config, resume=False) as tracker, caplog.at_level(logging.WARNING):
        for number in range(9):
            tracker(trial(number))
            tracker(trial(number, 0.5, state="complete"))
    assert len(caplog.messages) == 3
    assert caplog.messages[-1].endswith("no more is recorded")
    monkeypatch.undo()
    with SearchTracker(config, resume=True) as tracker:
        tracker.catch_up(trial(number, 0.5, state="complete") for number in range(9))
    assert {run.info.status for run in nested(config, tracker.run_id).values()} == {"FINISHED"}
    assert len(nested(config, tracker.run_id)) == 9
