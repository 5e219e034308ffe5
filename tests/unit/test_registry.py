"""Runs and bundles in a real MLflow on sqlite: nothing is recorded or registered twice, nothing talks too much.

One database serves the file, since making one takes MLflow seconds.
"""

import logging
from pathlib import Path

import pytest

from retina_ray.bundle import MANIFEST, Bundle
from retina_ray.config import RunConfig, override
from retina_ray.errors import BundleError, ResourceError
from retina_ray.metrics.summary import TaskSummary
from retina_ray.mlflow_access import connect, in_one_line
from retina_ray.registry import RegisteredModel, Tracker, list_models, resolve_model, show_model, tracking_uri
from tests.bundles import Made, make_config, make_everything

pytestmark = pytest.mark.timeout(300)  # MLflow's import and first migration, on a busy machine


@pytest.fixture
def config(storage: Path, request: pytest.FixtureRequest) -> RunConfig:
    """A run of the shared database, with a registered model of its own."""
    name = request.node.name.partition("[")[0]
    return override(
        RunConfig(name="run"),
        {
            "runtime.storage": str(storage / name[:40]),
            "tracking.uri": f"sqlite:///{storage / 'mlflow.db'}",
            "tracking.model_name": name,
            "tracking.experiment": name,
        },
    )


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_everything(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def bundles(made: Made, tmp_path_factory: pytest.TempPathFactory) -> list[Bundle]:
    return [made.build(tmp_path_factory.mktemp(name), name=name) for name in ("first", "second")]


def folder_of(bundle: Bundle) -> Path:
    return bundle.store.local_path


def only_run(config: RunConfig) -> object:
    client = connect(config)
    [run] = client.search_runs([client.get_experiment_by_name(config.tracking.experiment).experiment_id])
    return run


def history(config: RunConfig, key: str) -> list[tuple[int, float]]:
    client = connect(config)
    return [(metric.step, metric.value) for metric in client.get_metric_history(only_run(config).info.run_id, key)]


def versions_of(config: RunConfig) -> list[RegisteredModel]:
    """Those of this test alone, though all tests share the registry."""
    return [model for model in list_models(config) if model.name == config.tracking.model_name]


def test_a_run_is_recorded(config: RunConfig, tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    summary = TaskSummary("sall", "dr", 9, {"accuracy": 0.7, "auroc": float("nan")}, {"accuracy": (0.6, 0.8)})
    with Tracker(config, run_name="run", resume=False) as tracker:
        tracker.log_params(config)
        tracker.log_record({"kind": "step", "step": 3, "train_dr": 1.5, "ok": True, "names": ["a"]}, "student-dr-amd")
        tracker.log_summary([summary])
        assert only_run(config).info.status == "RUNNING"
    run = only_run(config)
    assert run.info.status == "FINISHED"
    assert run.data.params["method.temperature"] == "3.0"
    assert "tracking.uri" not in run.data.params
    assert run.data.metrics == {
        "student-dr-amd/train_dr": 1.5,
        "test/sall/dr/accuracy": 0.7,
        "test/sall/dr/accuracy_low": 0.6,
        "test/sall/dr/accuracy_high": 0.8,
    }
    assert history(config, "student-dr-amd/train_dr") == [(3, 1.5)]
    assert run.info.artifact_uri.startswith(f"{config.runtime.storage}/.mlflow/artifacts/")
    assert capfd.readouterr().err == ""


def test_a_resumed_run_continues_its_record(config: RunConfig) -> None:
    def train(resolved: RunConfig, losses: dict[int, float], *, resume: bool) -> None:
        with Tracker(config, run_name="run", resume=resume) as tracker:
            tracker.log_params(resolved)
            for step, loss in losses.items():
                tracker.log_record({"step": step, "loss": loss, "inverse": 1 / loss}, "teacher-dr")

    with pytest.raises(ZeroDivisionError):
        train(config, {0: 5.0, 1: 4.0, 2: 3.0, 3: 0.0}, resume=False)
    assert only_run(config).info.status == "FAILED"
    # from the checkpoint on
    train(override(config, ["runtime.max_failures=9"]), {1: 4.0, 2: 3.0, 3: 2.0, 4: 1.0}, resume=True)
    assert only_run(config).info.status == "FINISHED"
    assert history(config, "teacher-dr/loss") == [(0, 5.0), (1, 4.0), (2, 3.0), (3, 2.0), (4, 1.0)]
    assert only_run(config).data.params["runtime.max_failures"] == "3"


def test_a_run_that_begins_anew_leaves_the_old_record_alone(config: RunConfig) -> None:
    for loss in (5.0, 6.0):
        with Tracker(config, run_name="run", resume=False) as tracker:
            tracker.log_record({"step": 0, "loss": loss}, "teacher-dr")
    client = connect(config)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    runs = client.search_runs([experiment.experiment_id])
    assert {run.data.metrics["teacher-dr/loss"] for run in runs} == {5.0, 6.0}
    assert {run.info.status for run in runs} == {"FINISHED"}


def test_runs_of_one_name_in_two_places_are_two(config: RunConfig) -> None:
    for place in ("a", "b"):
        elsewhere = override(config, {"runtime.storage": f"{config.runtime.storage}/{place}"})
        with Tracker(elsewhere, run_name="run", resume=False):
            pass
    client = connect(config)
    experiment = client.get_experiment_by_name(config.tracking.experiment)
    assert len(client.search_runs([experiment.experiment_id])) == 2


def test_a_bundle_is_registered_once(config: RunConfig, bundles: list[Bundle]) -> None:
    first, second = bundles
    with Tracker(config, run_name="run", resume=False) as tracker:
        assert tracker.register(first, folder_of(first)) == 1
        assert tracker.register(second, folder_of(second)) == 2
        assert tracker.register(first, folder_of(first)) == 1
    newest, oldest = versions_of(config)
    assert (newest.version, newest.aliases) == (2, ("candidate",))
    assert (oldest.version, oldest.aliases) == (1, ("champion",))
    assert newest.tags["retina_ray.hash"] == second.hash
    assert newest.tags["retina_ray.method"] == "sall"
    assert float(newest.tags["test.dr.accuracy"]) == pytest.approx(
        second.manifest.metrics["dr"].metrics["accuracy"], abs=1e-4
    )
    assert newest.run_id == only_run(config).info.run_id


def test_a_model_is_found_by_number_alias_and_path(config: RunConfig, bundles: list[Bundle]) -> None:
    name = config.tracking.model_name
    with Tracker(config, run_name="run", resume=False) as tracker:
        for bundle in bundles:
            tracker.register(bundle, folder_of(bundle))
    assert show_model(config, name, "1").version == show_model(config, name, "champion").version == 1
    assert resolve_model(f"models:/{name}/2", config=config) == folder_of(bundles[1])
    assert resolve_model(f"models:/{name}@champion", config=config) == folder_of(bundles[0])
    assert resolve_model(folder_of(bundles[0])) == folder_of(bundles[0])


def test_what_is_not_there_is_named(config: RunConfig, bundles: list[Bundle]) -> None:
    name = config.tracking.model_name
    assert versions_of(config) == []
    with pytest.raises(BundleError, match="registered under this name: nothing"):
        show_model(config, name, "champion")
    with Tracker(config, run_name="run", resume=False) as tracker:
        tracker.register(bundles[0], folder_of(bundles[0]))
    with pytest.raises(BundleError, match="registered under this name: 1, candidate, champion"):
        resolve_model(f"models:/{name}/7", config=config)
    with pytest.raises(BundleError, match="models:/<name>@<alias>"):
        resolve_model("models:/no version", config=config)


def test_disabled_tracking_does_nothing(config: RunConfig, bundles: list[Bundle]) -> None:
    with Tracker(override(config, ["tracking.enabled=false"]), run_name="run", resume=False) as tracker:
        tracker.log_params(config)
        tracker.log_record({"step": 0, "loss": 1.0}, "teacher-dr")
        tracker.log_summary([])
        assert tracker.register(bundles[0], folder_of(bundles[0])) is None
    assert connect(config).get_experiment_by_name(config.tracking.experiment) is None


def test_a_record_that_fails_costs_a_warning_and_not_the_run(
    config: RunConfig, caplog: pytest.LogCaptureFixture
) -> None:
    bad = {"step": 0, "loss": 1.0}
    with Tracker(config, run_name="run", resume=False) as tracker, caplog.at_level(logging.WARNING):
        for _ in range(2):
            tracker.log_record(bad, "a name?")  # MLflow takes no question marks
        tracker.log_record({"step": 0, "loss": 1.0}, "a")
        for _ in range(4):
            tracker.log_record(bad, "a name?")
    assert len(caplog.messages) == 5
    assert caplog.messages[-1].endswith("no more is recorded")
    assert history(config, "a/loss") == [(0, 1.0)]


def test_an_mlflow_that_cannot_be_reached_stops_the_run_at_once(config: RunConfig, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    unreachable = override(config, {"tracking.uri": f"sqlite:///{tmp_path / 'file' / 'mlflow.db'}"})
    tracker = Tracker(unreachable, run_name="run", resume=False)
    with pytest.raises(ResourceError, match=r"tracking\.enabled=false"), tracker:
        pass


def test_passwords_stay_out_of_messages() -> None:
    assert in_one_line(OSError("no route to\nhttp://me:pass@host/x")) == "no route to http://host/x"


def test_where_the_records_are(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    config = override(make_config(), {"runtime.storage": str(tmp_path / "runs"), "tracking.uri": None})
    monkeypatch.delenv("MLFLOW_TRACKING_URI")
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    assert tracking_uri(config) == f"sqlite:///{tmp_path}/runs/.mlflow/mlflow.db"
    assert (tmp_path / "runs" / ".mlflow").is_dir()
    on_s3 = override(config, {"runtime.storage": "s3://bucket/runs"})
    assert tracking_uri(on_s3) == f"sqlite:///{tmp_path}/state/retina-ray/mlflow.db"
    monkeypatch.setenv("MLFLOW_TRACKING_URI", "http://server")
    assert tracking_uri(on_s3) == "http://server"
    assert tracking_uri(override(config, {"tracking.uri": "http://other"})) == "http://other"


def test_a_bundle_lies_where_it_was_resolved(config: RunConfig, bundles: list[Bundle]) -> None:
    with Tracker(config, run_name="run", resume=False) as tracker:
        tracker.register(bundles[0], folder_of(bundles[0]))
    found = resolve_model(f"models:/{config.tracking.model_name}@candidate", config=config)
    assert (found / MANIFEST).exists()
    assert Bundle.load(found).hash == bundles[0].hash
