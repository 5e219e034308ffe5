"""What is served, declared: files are checked, changes touch what they are about, and nothing else."""

import json
import os
import signal
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

from retina_ray import model_versions
from retina_ray.bundle import Bundle
from retina_ray.cli import serve as commands
from retina_ray.errors import ConfigError, ResourceError
from retina_ray.orchestration.dashboard import ADDRESS_VARIABLE
from retina_ray.serving import model_host
from retina_ray.serving.model_host import HostSettings
from serve_apps.arguments import ModelSettings, TrialSettings
from serve_apps.control import Cluster, Serving
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
    assert after.models["grading"].attempt == 0
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
    assert serving.with_model("grading", "/bundles/new", previous=None, attempt=3).models["grading"].attempt == 3
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


@pytest.mark.parametrize("options", [None, {}, {"port": 9000}])
def test_a_file_without_a_host_is_taken_as_serve_takes_it_but_up_stays_on_this_machine(options: object) -> None:
    from ray.serve.schema import ServeDeploySchema

    silent = {**config(), "http_options": options}
    if options is None:
        del silent["http_options"]
    serving = Serving(silent)
    declared = {**serving.config, "applications": []}
    assert serving.host == ServeDeploySchema.model_validate(declared).http_options.host == "0.0.0.0"
    with pytest.raises(ConfigError, match="--keys"):
        check_host(serving.host, keys=False, behind_firewall=True)
    here = serving.with_address(None, None)
    assert here.host == here.config["http_options"]["host"] == "127.0.0.1"
    assert serving.with_address("10.1.2.3", None).host == "10.1.2.3"
    assert Serving({**config(), "http_options": {"host": "::1"}}).with_address(None, 1).host == "::1"


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
    monkeypatch.delenv(ADDRESS_VARIABLE, raising=False)
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


@pytest.mark.skipif(not Path("/proc/self/stat").exists(), reason="no start times without /proc")
def test_another_process_that_has_the_number_since_counts_for_nothing(state: Path) -> None:
    with announced(Local("http://127.0.0.1:8265", "secret", "http://127.0.0.1:8000")):
        said = json.loads(state.read_text())
        assert announced_process() == os.getpid()
        for other in ({**said, "started": said["started"] - 1}, {**said, "pid": 1}, {**said, "started": None}):
            state.write_text(json.dumps(other))
            assert announced_process() is None
            with pytest.raises(ResourceError, match="serve up"):
                find(None)


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


class FakeServe:
    """What Serve is told through its dashboard, in the place of Ray's client for it."""

    def __init__(self, *others: dict[str, object]) -> None:
        applications = [Serving(config()).config["applications"][0], *others]
        self.details: dict[str, Any] = {
            "http_options": {"host": "127.0.0.1", "port": 9000},
            "applications": {
                each["name"]: {"status": "RUNNING", "deployed_app_config": each if "import_path" in each else None}
                for each in applications
            },
        }
        self.told: list[Any] = []

    def get_serve_details(self) -> dict[str, object]:
        return self.details

    def deploy_applications(self, declared: dict[str, object]) -> None:
        self.told.append(declared)

    def delete_applications(self) -> None:
        self.told.append("end all")


@pytest.fixture
def serve(monkeypatch: pytest.MonkeyPatch) -> Callable[..., FakeServe]:
    """Return a cluster's Serve on which this application runs, and those that are given."""
    from ray.dashboard.modules.serve import sdk

    def make(*others: dict[str, object]) -> FakeServe:
        fake = FakeServe(*others)
        monkeypatch.setattr(sdk, "ServeSubmissionClient", lambda address: fake)
        return fake

    return make


OTHER = {"name": "other", "import_path": "other:app", "route_prefix": "/other"}


def test_this_application_is_ended_and_no_other(serve: Callable[..., FakeServe]) -> None:
    fake = serve(OTHER)
    assert Cluster("http://head:8265").remove() == ["other"]
    assert fake.told == [{"http_options": fake.details["http_options"], "applications": [OTHER]}]
    fake = serve({"name": "by a program"})
    assert Cluster("http://head:8265").remove() == ["by a program"]
    assert fake.told == [{"http_options": fake.details["http_options"], "applications": []}]
    fake = serve()
    assert Cluster("http://head:8265").remove() == []
    assert fake.told == ["end all"]
    fake = serve(OTHER)
    del fake.details["applications"]["retina_ray"]
    assert Cluster("http://head:8265").remove() == ["other"]
    assert fake.told == []


@pytest.mark.parametrize("words", [["--address", "http://head:8265"], []])
def test_down_ends_what_the_user_names_rather_than_what_is_announced(
    serve: Callable[..., FakeServe],
    state: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
    words: list[str],
) -> None:
    fake = serve(OTHER)
    killed: list[tuple[int, int]] = []
    with announced(Local("http://127.0.0.1:8265", "secret", "http://127.0.0.1:8000")):
        monkeypatch.setattr(os, "kill", lambda *told: killed.append(told) if told[1] else None)
        commands.down(None)
        assert killed == [(os.getpid(), signal.SIGTERM)]
        if not words:
            monkeypatch.setenv(ADDRESS_VARIABLE, "http://head:8265")
        commands.down(*words[1:])
    assert len(killed) == len(fake.told) == 1
    assert "what else runs there stays: other" in " ".join(capsys.readouterr().out.split())


@pytest.fixture
def checked(monkeypatch: pytest.MonkeyPatch) -> list[HostSettings]:
    """Return the settings that bundles are checked with, none of which is read."""
    found: list[HostSettings] = []
    monkeypatch.setattr(Bundle, "load", lambda address: address)
    monkeypatch.setattr(model_versions, "resolve_model", lambda address, *, config: address)
    monkeypatch.setattr(model_host, "LoadedModel", lambda bundle, settings: found.append(settings))
    return found


def test_a_bundle_is_checked_as_it_is_served(checked: list[HostSettings]) -> None:
    serving = Serving(config(models={"grading": {"precision": "bfloat16"}, "lesions": {}}))
    commands._check(serving, "grading", "/bundles/new")
    commands._check(serving, "lesions", "/bundles/new")
    assert [(each.precision, each.device) for each in checked] == [("bfloat16", "cpu"), ("float32", "cpu")]
    with pytest.raises(ConfigError, match="nothing is served as"):
        commands._check(serving, "glaucoma", "/bundles/new")


def test_a_bundle_that_is_declared_already_is_tried_again(
    serve: Callable[..., FakeServe],
    checked: list[HostSettings],
    state: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    fake = serve()
    fake.details["applications"]["retina_ray"]["deployed_app_config"] = (
        Serving(config()).with_model("grading", "/bundles/new", previous="/bundles/old").config["applications"][0]
    )
    for attempt in (1, 2):
        commands.promote("grading", "/bundles/new", "http://head:8265")
        (declared,) = fake.told[attempt - 1 :]
        settings = Serving(declared).models["grading"]
        assert settings == ModelSettings(bundle="/bundles/new", previous="/bundles/old", attempt=attempt)
        assert Serving(declared).models["lesions"].attempt == 0
        fake.details["applications"]["retina_ray"]["deployed_app_config"] = declared["applications"][0]
        assert f"(attempt {attempt})" in " ".join(capsys.readouterr().out.split())
    commands.promote("grading", "/bundles/newer", "http://head:8265")
    settings = Serving(fake.told[-1]).models["grading"]
    assert settings == ModelSettings(bundle="/bundles/newer", previous="/bundles/new")
    assert len(checked) == 3
