"""Whole searches on a real local Ray: trials, what they share, what they leave behind, and their winner."""

import json
import shutil
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import optuna
import pytest
import ray

from retina_ray import yaml_dialect
from retina_ray.cli.main import run
from retina_ray.config import RunConfig, from_mapping, override
from retina_ray.data.store import locked
from retina_ray.errors import ConfigError, ResourceError
from retina_ray.mlflow_access import connect
from retina_ray.model_versions import list_models
from retina_ray.orchestration.tune_driver import SearchOptions, SearchResult, run_search
from retina_ray.orchestration.tune_winner import Winner, publish_winner
from retina_ray.registry import MLFLOW_PARENT
from retina_ray.search.winner import best_trial, pareto_front, winner_config
from tests.helpers import ONE_STAGE, tiny_config

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("ray_cluster")]

TEACHING = ("teacher-dr", "teacher-amd", "cross-labels")


def rates(trial: optuna.Trial) -> dict[str, Any]:
    """A space whose second point diverges."""
    return {"optim.lr": trial.suggest_float("optim.lr", 1e-9, 1e30, log=True)}


RATES = f"{__name__}:rates"


def a_config(data: Path, storage: Path, **changes: Any) -> RunConfig:
    return tiny_config(data, storage, **{"name": "search", "runtime__cpus_per_worker": 1, **changes})


def all_free() -> bool:
    """Return whether every CPU is free, if need be within seconds: processes end when they are told to."""
    for _ in range(100):
        if ray.available_resources().get("CPU") == ray.cluster_resources()["CPU"]:
            return True
        time.sleep(0.1)
    return False


@pytest.fixture(scope="module")
def site(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunConfig:
    storage = tmp_path_factory.mktemp("runs")
    uri = f"sqlite:///{storage}/mlflow.db"
    return a_config(data, storage, train__epochs=3, tracking__enabled=True, tracking__uri=uri)


OPTIONS = SearchOptions("sall", trials=6, concurrent=2)


@pytest.fixture(scope="module")
def searched(site: RunConfig, ray_cluster: None) -> tuple[SearchResult, Winner, list[dict[str, Any]]]:
    records: list[dict[str, Any]] = []
    result = run_search(site, OPTIONS, listener=records.append)
    return result, publish_winner(result), records


def test_teachers_are_trained_once_for_all_trials(
    searched: tuple[SearchResult, Winner, list[dict[str, Any]]],
) -> None:
    result, _, records = searched
    assert {record["stage"] for record in records if record["kind"] == "started"} == set(TEACHING)
    assert len(result.trials) == 6
    for record in result.trials:
        assert record.state in ("complete", "stopped")
        assert record.stages == {**dict.fromkeys(TEACHING, "reused"), "student-dr-amd": "trained"}
        assert [report.epoch for report in record.reports] == [1.0, 2.0, 3.0][: len(record.reports)]
        assert record.state == "stopped" or len(record.reports) == 3
    # the paper's own setting first
    assert result.trials[0].params["method.temperature"] == 3.0


def test_the_best_trial_is_trained_to_its_end_tested_and_registered(
    searched: tuple[SearchResult, Winner, list[dict[str, Any]]],
) -> None:
    result, winner, _ = searched
    values = [record.value("accuracy") for record in result.trials]
    assert winner.trial.value("accuracy") == max(value for value in values if value is not None)
    folder = winner.published.result.folder
    history = [json.loads(line) for line in folder.store.read_bytes("history.jsonl").splitlines()]
    assert [record["epoch"] for record in history if record["stage"] == "student-dr-amd"] == [1.0, 2.0, 3.0]
    described = result.folder.describe()
    assert described["winner"] == winner.trial.number
    assert described["bundle"] == winner.published.bundle_uri
    stored = from_mapping(yaml_dialect.load(result.folder.store.read_bytes("winner.yaml").decode()))
    assert stored == folder.config() == winner_config(result.config, winner.trial)
    (model,) = list_models(result.config)
    assert model.version == winner.published.version
    assert "candidate" in model.aliases


def test_each_trial_is_a_nested_mlflow_run(searched: tuple[SearchResult, Winner, list[dict[str, Any]]]) -> None:
    result, _, _ = searched
    client = connect(result.config)
    experiment = client.get_experiment_by_name(result.config.tracking.experiment)
    runs = client.search_runs([experiment.experiment_id])
    nested = [each for each in runs if each.data.tags.get(MLFLOW_PARENT) == result.mlflow_run]
    assert len(nested) == 6 + 1, "six trials and the winner's run"
    trials = {each.info.run_name: each for each in nested}
    for record in result.trials:
        found = trials[f"search/trials/{record.number:05}"]
        assert found.info.status == "FINISHED"
        assert found.data.metrics["accuracy"] == record.value("accuracy")
        assert found.data.params["method.temperature"] == str(record.overrides["method.temperature"])
        assert len(client.get_metric_history(found.info.run_id, "accuracy")) == len(record.reports)


def test_the_search_run_again_trains_nothing(
    site: RunConfig, searched: tuple[SearchResult, Winner, list[dict[str, Any]]]
) -> None:
    before, winner, _ = searched
    with pytest.raises(ConfigError, match="the search exists"):
        run_search(site, OPTIONS)
    again = run_search(site, OPTIONS, resume=True)
    assert again.trials == before.trials
    assert publish_winner(again).published.version == winner.published.version
    with pytest.raises(ConfigError, match="the search to resume had another goals"):
        run_search(site, SearchOptions("sall", trials=6, metric="kappa"), resume=True)


def test_a_search_goes_on_only_as_it_began_and_alone(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for trains in ("train_shared", "_tune"):
        monkeypatch.setattr(f"retina_ray.orchestration.tune_driver.{trains}", lambda *_, **__: None)
    uri = f"sqlite:///{tmp_path}/mlflow.db"
    config = a_config(data, tmp_path, tracking__enabled=True, tracking__uri=uri)
    first = run_search(config, OPTIONS)
    first.folder.update(finished=True, started="before")
    before = first.folder.store.read_bytes("search.json")
    changed = "teacher-dr, teacher-amd, cross-labels, student-dr-amd"
    with pytest.raises(ConfigError, match=f"begun under other conditions, which concern: {changed}"):
        run_search(override(config, {"runtime.loader": "dali"}), OPTIONS, resume=True)
    with locked(tmp_path / "search" / ".lock"), pytest.raises(ConfigError, match="the search is running"):
        run_search(config, OPTIONS, resume=True)
    assert first.folder.store.read_bytes("search.json") == before
    again = run_search(config, replace(OPTIONS, trials=9), resume=True)
    assert (again.mlflow_run, again.folder.describe()["finished"]) == (first.mlflow_run, False)
    shutil.rmtree(tmp_path / "search")
    anew = run_search(config, OPTIONS, resume=True)
    assert anew.mlflow_run != first.mlflow_run, "a search that was deleted is not the one that goes on"


def test_everything_is_free_again(searched: tuple[SearchResult, Winner, list[dict[str, Any]]]) -> None:
    assert all_free()


def test_a_trial_that_diverges_fails_alone(data: Path, tmp_path: Path) -> None:
    points = ({"optim.lr": 1e-3}, {"optim.lr": 1e30}, {"optim.lr": 1e-2})
    options = SearchOptions(RATES, trials=3, metric="accuracy,ece", points=points, concurrent=1)
    config = a_config(data, tmp_path, **ONE_STAGE)
    result = run_search(config, options)
    first, second, third = result.trials
    assert (first.state, second.state, third.state) == ("complete", "failed", "complete")
    assert "is not finite" in second.reason
    assert {record.number for record in pareto_front(result.trials, result.goals)} <= {0, 2}
    assert best_trial(result.trials, result.goals).number in (0, 2)


def test_a_metric_that_nobody_reports_ends_the_search_with_those_there_are(data: Path, tmp_path: Path) -> None:
    options = SearchOptions("sall", trials=2, metric="acuracy", concurrent=1)
    with pytest.raises(ConfigError, match="no trial reports the metric: acuracy; did you mean accuracy"):
        run_search(a_config(data, tmp_path), options)
    assert all_free()


def test_a_search_out_of_time_ends_and_can_go_on(data: Path, tmp_path: Path) -> None:
    config = a_config(data, tmp_path, train__epochs=1, **ONE_STAGE)
    late = SearchOptions("sall", trials=3, concurrent=1, time_budget_s=0.1)  # less than a process takes to start
    before = run_search(config, late)
    assert len(before.trials) < 3
    assert {record.state for record in before.trials} <= {"running"}
    assert all_free()
    with pytest.raises(ConfigError, match="no trial of the search has a result"):
        best_trial(before.trials, before.goals)
    after = run_search(config, replace(late, time_budget_s=None), resume=True)
    assert [record.state for record in after.trials] == ["complete"] * 3
    assert [record.params for record in before.trials] == [record.params for record in after.trials][
        : len(before.trials)
    ]


def test_what_one_trial_needs_is_missed_at_once(data: Path, tmp_path: Path) -> None:
    with pytest.raises(ResourceError, match="not enough CPUs: 3 workers x 2 CPUs asked for, 4 CPUs there"):
        run_search(
            a_config(data, tmp_path, runtime__workers=3, runtime__cpus_per_worker=2, train__global_batch_size=9),
            OPTIONS,
        )
    with pytest.raises(ResourceError, match=r"not enough GPUs for a trial: --gpus-per-trial 0\.5, 0 there"):
        run_search(a_config(data, tmp_path), SearchOptions("sall", trials=2, gpus_per_trial=0.5))
    stopping = (SearchOptions("sall", trials=2), SearchOptions("sall", trials=2, scheduler="none", time_budget_s=9.0))
    for options in stopping:
        with pytest.raises(ResourceError, match=r"no dashboard, so trials .* --include-dashboard=true"):
            run_search(a_config(data, tmp_path, runtime__workers=1), options)
    assert not (tmp_path / "search").exists()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["salt"], "unknown search space: salt; did you mean sall"),
        (["sall", "--points", "nowhere.yaml"], "cannot read the points: nowhere.yaml"),
        (["sall", "--time-budget", "soon"], "not a time: 'soon'; write seconds, or a number with m, h or d"),
        (["sall", "--trials", "0"], "0"),
        (["sall", "--gpus-per-trial", "0"], "not a number of GPUs: --gpus-per-trial 0; give more than 0"),
        (["sall", "--gpus-per-trial", "2"], "--gpus-per-trial 2 with runtime.workers=1; set runtime.workers=2"),
        (["sall", "--recipe", "sal"], "unknown recipe: sal"),
        (["sall"], "no data set given"),
        (["deepmt_dr", "--recipe", "sall_debug"], "the search space fails: deepmt_dr"),
    ],
)
def test_wrong_input_is_one_line(
    arguments: list[str], message: str, data: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    extra = [] if arguments == ["sall"] else ["--data", str(data)]
    assert run(["tune", *arguments, *extra, "--storage", str(tmp_path)]) == 2
    error = capfd.readouterr().err.strip().splitlines()[-1]
    assert error.startswith("error: ")
    assert message in error
