"""What is served, declared: files are checked, changes touch what they are about, and nothing else."""

import json
import os
import socket
from pathlib import Path

import pytest
import yaml

from retina_ray.errors import ConfigError, ResourceError
from serve_apps import local
from serve_apps.arguments import TrialSettings
from serve_apps.control import Serving
from serve_apps.local import Local, announced, announced_process, announced_url, check_host, find, serve_environment

pytestmark = pytest.mark.serving

ROOT = Path(__file__).parents[2]


def config(**args: object) -> dict[str, object]:
    arguments = {"models": {"grading": {}, "lesions": {}}, **args}
    deployments = [
        {"name": f"Model-{name}", "user_config": {"bundle": f"/bundles/{name}"}} for name in ("grading", "lesions")
    ]
    application = {"import_path": "serve_apps.app:build", "args": arguments, "deployments": deployments}
    return {
        "http_options": {"host": "127.0.0.1", "port": 9000},
        "applications": [application, {"import_path": "other:app"}],
    }


def deployments(serving: Serving) -> dict[str, dict[str, object]]:
    return {each["name"]: each for each in serving.config["applications"][0]["deployments"]}


@pytest.mark.parametrize("name", ["local.yaml", "cluster.yaml"])
def test_the_files_that_come_along_are_right(name: str) -> None:
    from ray.serve.schema import ServeDeploySchema

    serving = Serving.read(ROOT / "serve_apps" / name)
    assert serving.models
    ServeDeploySchema.model_validate(serving.config)
    for model in serving.arguments.models:
        named = serving.models[model].bundle
        assert name == "local.yaml" or str(named).startswith("models:/")


def test_another_bundle_changes_one_user_config_alone() -> None:
    before = Serving(config())
    after = before.with_model("grading", "models:/dr/2", previous="models:/dr/1")
    assert after.models["grading"].bundle == "models:/dr/2"
    assert after.models["grading"].previous == "models:/dr/1"
    assert before.models["grading"].bundle == "/bundles/grading"
    one, two = deployments(before), deployments(after)
    assert one.pop("Model-grading") != two.pop("Model-grading")
    assert one == two
    assert after.config["applications"][0]["args"] == before.config["applications"][0]["args"]
    assert after.config["applications"][1] == {"import_path": "other:app"}


def test_a_trial_leaves_what_restarts_replicas_as_it_is() -> None:
    before = Serving(config())
    after = before.with_trial("grading", "/bundles/new", TrialSettings(canary_percent=5.0, shadow=True))
    assert after.http.trials["grading"].canary_percent == 5.0
    candidate = deployments(after)["Candidate-grading"]
    assert candidate["user_config"]["bundle"] == "/bundles/new"
    assert candidate["autoscaling_config"]["min_replicas"] == 1
    assert deployments(before)["Candidate-grading"]["autoscaling_config"]["min_replicas"] == 0
    # Serve restarts everything when the number of deployments with a declared autoscaling changes.
    scaled = [
        {name for name, each in deployments(one).items() if "autoscaling_config" in each} for one in (before, after)
    ]
    assert scaled[0] == scaled[1]
    assert after.config["applications"][0]["args"] == before.config["applications"][0]["args"]
    ended = after.with_trial("grading", None, TrialSettings())
    assert "grading" not in ended.http.trials
    assert deployments(ended)["Candidate-grading"]["autoscaling_config"]["min_replicas"] == 0
    assert deployments(ended)["Candidate-grading"]["user_config"]["bundle"] is None


def test_in_one_hop_bundles_are_the_endpoints_own() -> None:
    serving = Serving(config(layout="one_hop")).with_model("grading", "/bundles/new", previous=None)
    assert serving.http.models["grading"].bundle == "/bundles/new"
    assert serving.models["grading"].bundle == "/bundles/new"
    with pytest.raises(ConfigError, match="no candidates"):
        serving.with_trial("grading", "/bundles/x", TrialSettings(shadow=True))
    with pytest.raises(ConfigError, match="has no bundle: lesions"):
        serving.pinned()


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"models": {}}, "models"),
        ({"model": {}}, "model"),
        ({"http": {"in_flight": 0}}, "http.in_flight"),
        ({"models": {"grading": {"scaling": {"least": 3, "most": 2}}}}, "least = 3"),
        ({"layout": "three_hop"}, "layout"),
    ],
)
def test_a_wrong_value_is_named(change: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        Serving(config(**change))


def test_a_file_that_is_none_is_named(tmp_path: Path) -> None:
    for text, message in (("a: [", "no YAML"), ("- 1", "no configuration"), ("applications: []", "such applications")):
        (tmp_path / "file.yaml").write_text(text)
        with pytest.raises(ConfigError, match=message):
            Serving.read(tmp_path / "file.yaml")
    with pytest.raises(ConfigError, match="No such file"):
        Serving.read(tmp_path / "missing.yaml")


def test_a_name_that_is_not_served_is_an_error_that_names_those_that_are() -> None:
    with pytest.raises(ConfigError, match="grading, lesions"):
        Serving(config()).with_model("glaucoma", "/x", previous=None)


def test_the_cpus_leave_room_for_candidates() -> None:
    models = {"grading": {"num_cpus": 0.5, "scaling": {"least": 1, "most": 3}}}
    http = {"num_cpus": 0.25, "scaling": {"least": 1, "most": 2}}
    changed = config(models=models, http=http)
    changed["applications"][0]["deployments"] = []  # type: ignore[index]
    assert Serving(changed).cpus == 3  # 2 x 0.25 + (3 + 1) x 0.5, rounded up


def test_without_keys_only_this_machine_is_served() -> None:
    for host in ("127.0.0.1", "::1", "localhost", "127.8.8.8"):
        check_host(host, keys=False, behind_firewall=False)
    for host in ("0.0.0.0", "::", "10.1.2.3", "example.org"):
        with pytest.raises(ConfigError, match="--keys"):
            check_host(host, keys=False, behind_firewall=True)
        with pytest.raises(ConfigError, match="--behind-firewall"):
            check_host(host, keys=True, behind_firewall=False)
        check_host(host, keys=True, behind_firewall=True)


def test_haproxys_socket_lies_where_nobody_else_gets_to(tmp_path: Path) -> None:
    environment = serve_environment(str(tmp_path))
    paths = [value for name, value in environment.items() if name.endswith(("_PATH", "_LOC", "_FILE", "_BASE"))]
    assert len(paths) >= 5
    assert all(path.startswith(f"{tmp_path}/") for path in paths)
    assert environment["RAY_SERVE_HAPROXY_STATS_PORT"] != environment["RAY_SERVE_HAPROXY_METRICS_PORT"]
    from retina_ray.orchestration.scratch import scratch_folder

    with scratch_folder() as folder:
        assert os.stat(folder).st_mode & 0o777 == 0o700


@pytest.fixture
def state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path))
    monkeypatch.delenv(local.ADDRESS_VARIABLE, raising=False)
    for name in ("RAY_AUTH_MODE", "RAY_AUTH_TOKEN"):
        monkeypatch.setenv(name, "")
    return tmp_path / "retina-ray/serve.json"


def test_other_commands_find_what_is_announced(state: Path) -> None:
    with pytest.raises(ResourceError, match="serve up"):
        find(None)
    with announced(Local("http://127.0.0.1:8265", "secret", "http://127.0.0.1:8000")):
        assert find(None) == "http://127.0.0.1:8265"
        assert os.environ["RAY_AUTH_TOKEN"] == "secret"
        assert state.stat().st_mode & 0o777 == 0o600
        assert announced_process() == os.getpid()
        assert announced_url() == "http://127.0.0.1:8000"
        assert find("http://head:8265") == "http://head:8265"
        with (
            pytest.raises(ResourceError, match="serves already"),
            announced(Local("http://127.0.0.1:1", "t", "http://127.0.0.1:2")),
        ):
            pass
    assert not state.exists()


def test_what_a_killed_process_announced_counts_for_nothing(state: Path) -> None:
    state.parent.mkdir(parents=True)
    dead = {"pid": 2**22 + 1, "dashboard": "http://x", "token": "t", "url": "http://y"}
    state.write_text(json.dumps(dead))
    with pytest.raises(ResourceError, match="serve up"):
        find(None)
    with announced(Local("http://127.0.0.1:8265", "secret", "http://127.0.0.1:8000")):
        assert announced_process() == os.getpid()


def test_a_port_is_taken_from_the_file_or_the_command(tmp_path: Path) -> None:
    serving = Serving(config())
    assert (serving.host, serving.port) == ("127.0.0.1", 9000)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    changed = serving.with_address(None, port)
    assert (changed.host, changed.port) == ("127.0.0.1", port)
    (tmp_path / "out.yaml").write_text(yaml.safe_dump(changed.config))
    assert Serving.read(tmp_path / "out.yaml").port == port
