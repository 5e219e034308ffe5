"""`retina-ray serve`: a real cluster, real HTTP, replicas that are killed, models that are replaced under load."""

import contextlib
import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

import pytest
import requests
import yaml

from retina_ray.bundle import Bundle
from retina_ray.client import Client
from retina_ray.serving.keys import add, issue
from retina_ray.serving.shadow_log import read_shadow_logs
from tests.bundles import make_everything
from tests.helpers import descendants
from tests.serving.test_model_host import broken
from tests.serving_photographs import photograph

STARTS_S = 120
"""A cluster and its replicas, on a busy machine."""

COMMAND = [sys.executable, "-c", "from retina_ray.cli.main import main; main()", "serve"]

DECLARE = """
import sys
from serve_apps.local import find
address = find(None)
from serve_apps.control import Cluster
cluster = Cluster(address)
cluster.apply(cluster.serving().with_model("grading", sys.argv[1], previous=None))
"""
"""Puts a bundle in the model's place without the command's own check."""


@dataclass
class Endpoint:
    """A `retina-ray serve up`, as its user has it."""

    process: subprocess.Popen[str]
    folder: Path
    url: str
    key: str
    environment: dict[str, str]
    bundles: dict[str, str]

    def command(self, *words: str, code: int = 0) -> str:
        done = subprocess.run(
            [*COMMAND, *words],
            env=self.environment,
            capture_output=True,
            text=True,
            check=False,
            timeout=100,
        )
        assert done.returncode == code, done.stderr
        return done.stdout if code == 0 else done.stderr

    def client(self, **options: float) -> Client:
        return Client(self.url, self.key, **options)

    def replicas(self, deployment: str) -> list[int]:
        """Return the processes of a deployment's replicas."""
        found = []
        for pid in descendants(self.process.pid):
            with contextlib.suppress(OSError):
                if f":retina_ray:{deployment}" in Path(f"/proc/{pid}/cmdline").read_text():
                    found.append(pid)
        return found


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.1)


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("endpoint")
    made = make_everything(folder / "dataset")
    bundles = {name: made.build(folder / name, name=name).store.uri for name in ("first", "second")}
    bundles["broken"] = broken(Bundle.load(bundles["first"]), folder / "broken").store.uri
    text, key = issue("clinic", 100_000, ["grade", "metrics"])
    add(folder / "keys.yaml", key)
    config = {
        "http_options": {"host": "127.0.0.1", "port": free_port()},
        "applications": [
            {
                "name": "retina_ray",
                "import_path": "serve_apps.app:build",
                "route_prefix": "/",
                "args": {
                    "models": {"grading": {"num_cpus": 0.5}},
                    "http": {"num_cpus": 0.5, "scaling": {"least": 3, "most": 3}},
                    "keys": str(folder / "keys.yaml"),
                    "audit": str(folder / "audit"),
                    "shadow": str(folder / "shadow"),
                },
                "deployments": [{"name": "Model-grading", "user_config": {"bundle": bundles["first"]}}],
            }
        ],
    }
    (folder / "config.yaml").write_text(yaml.safe_dump(config))
    environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    environment |= {"XDG_STATE_HOME": str(folder / "state"), "RAY_USAGE_STATS_ENABLED": "0"}
    with (folder / "stderr").open("w") as log:
        process = subprocess.Popen(
            [*COMMAND, "up", str(folder / "config.yaml")],
            env=environment,
            stdout=subprocess.PIPE,
            stderr=log,
            text=True,
        )
    try:
        assert process.stdout is not None
        url = process.stdout.readline().strip()
        assert url, (folder / "stderr").read_text()
        found = Endpoint(process, folder, url, text, environment, bundles)
        yield found
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0, (folder / "stderr").read_text()
        assert not descendants(process.pid)
    finally:
        for pid in [*descendants(process.pid), process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        process.wait()
        if process.stdout is not None:
            process.stdout.close()


@dataclass
class Load:
    """Photographs that are sent one after the other by several clients as long as a block runs.

    Attributes:
        models: answers by the hash of the model that gave them.
        failures: what was raised.
    """

    endpoint: Endpoint
    models: Counter[str] = field(default_factory=Counter)
    failures: list[Exception] = field(default_factory=list)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(3)]
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _send(self, number: int) -> None:
        with self.endpoint.client() as client:
            while not self._ended.is_set():
                try:
                    answer = client.grade(photograph(number))
                except Exception as error:
                    self.failures.append(error)
                else:
                    self.models[answer.model.hash] += 1

    def answered(self, model: str, times: int = 5) -> None:
        """Wait until a model has answered so often from now on."""
        before = self.models[model]
        wait_for(lambda: self.failures or self.models[model] >= before + times)


@pytest.mark.timeout(STARTS_S + 60)
def test_a_photograph_is_graded(endpoint: Endpoint) -> None:
    with endpoint.client() as client:
        answer = client.grade(photograph(), explain="gradcam")
        assert set(answer.tasks) == {"dr", "amd"}
        assert answer.explanation is not None
        assert answer.model.hash == Bundle.load(endpoint.bundles["first"]).hash
        batch = client.grade_batch([photograph(), b"no image", photograph(1)])
        assert [item.problem is None for item in batch.photographs] == [True, False, True]


def test_who_has_no_key_gets_nothing(endpoint: Endpoint) -> None:
    answer = requests.post(f"{endpoint.url}/v1/grade", data=photograph(), timeout=10)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert requests.get(f"{endpoint.url}/metrics", timeout=10).status_code == 401
    assert requests.get(f"{endpoint.url}/healthz", timeout=10).status_code == 200


def test_status_names_what_is_deployed(endpoint: Endpoint) -> None:
    found = json.loads(endpoint.command("status", "--json"))
    assert found["status"] == "RUNNING"
    assert found["models"]["grading"]["bundle"] == endpoint.bundles["first"]
    assert found["deployments"]["Http"]["replicas"] == 3
    assert "nothing is served as" in endpoint.command("promote", "glaucoma", "x", code=2)


def test_a_model_is_replaced_and_returned_to_under_load(endpoint: Endpoint) -> None:
    first, second = (Bundle.load(endpoint.bundles[name]).hash for name in ("first", "second"))
    pids = endpoint.replicas("Model-grading")
    with Load(endpoint) as load:
        load.answered(first)
        endpoint.command("promote", "grading", endpoint.bundles["second"])
        load.answered(second)
        with endpoint.client() as client:
            wait_for(lambda: client.models().models[0].model.hash == second)
        endpoint.command("rollback", "grading")
        load.answered(first, 10)
    assert not load.failures
    assert set(load.models) == {first, second}
    assert endpoint.replicas("Model-grading") == pids  # nobody was restarted


def test_a_bundle_that_fails_its_check_is_refused_here_and_by_replicas(endpoint: Endpoint) -> None:
    first = Bundle.load(endpoint.bundles["first"]).hash
    assert "not finite" in endpoint.command("promote", "grading", endpoint.bundles["broken"], code=2)
    declare = [sys.executable, "-c", DECLARE]
    subprocess.run([*declare, endpoint.bundles["broken"]], env=endpoint.environment, check=True, timeout=60)
    with endpoint.client() as client:
        wait_for(lambda: (found := client.models().models[0].rollout) and found.state == "refused")
        assert client.grade(photograph()).model.hash == first
    subprocess.run([*declare, endpoint.bundles["first"]], env=endpoint.environment, check=True, timeout=60)
    with endpoint.client() as client:
        wait_for(lambda: client.models().models[0].rollout is None)


def test_a_candidate_is_tried_on_a_share_and_on_copies(endpoint: Endpoint) -> None:
    first, second = (Bundle.load(endpoint.bundles[name]).hash for name in ("first", "second"))
    endpoint.command("try", "grading", endpoint.bundles["second"], "--canary", "50", "--shadow")
    with endpoint.client() as client:
        seen: Counter[str] = Counter()

        def both() -> bool:
            seen.update(client.grade(photograph(index)).model.hash for index in range(8))
            return {first, second} <= set(seen)

        wait_for(both)
    shadow = endpoint.folder / "shadow"
    wait_for(lambda: read_shadow_logs(shadow).records)
    compared = json.loads(endpoint.command("compare", str(shadow), "--json"))["comparisons"]
    assert list(compared[0]["pair"]) == ["grading", first, second]
    endpoint.command("try", "grading")
    assert "a candidate" not in endpoint.command("status")
    with endpoint.client() as client:
        wait_for(lambda: all(client.grade(photograph(index)).model.hash == first for index in range(8)))


@pytest.mark.parametrize("deployment", ["Model-grading", "Http"])
def test_replicas_are_killed_under_load(endpoint: Endpoint, deployment: str) -> None:
    first = Bundle.load(endpoint.bundles["first"]).hash
    with Load(endpoint) as load:
        load.answered(first)
        victim = endpoint.replicas(deployment)[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: victim not in endpoint.replicas(deployment))
        load.answered(first, 20)
    assert not load.failures
    assert set(load.models) == {first}
    wait_for(lambda: json.loads(endpoint.command("status", "--json"))["status"] == "RUNNING")


def test_the_metrics_of_all_replicas_are_on_one_page(endpoint: Endpoint) -> None:
    headers = {"Authorization": f"Bearer {endpoint.key}"}

    def replicas() -> set[str]:
        text = requests.get(f"{endpoint.url}/metrics", headers=headers, timeout=10).text
        return set(re.findall(r'retina_ray_photographs_in_flight\{replica="(\w+)"', text))

    wait_for(lambda: len(replicas()) >= 3)


def test_the_audit_log_is_whole_after_all_that(endpoint: Endpoint) -> None:
    audit = endpoint.folder / "audit"
    # Of three replicas, and of the one in a killed one's place.
    wait_for(lambda: len(list(audit.glob("*.audit.jsonl"))) >= 4)
    assert json.loads(endpoint.command("audit", "verify", str(audit), "--json"))["ok"]


def free_port() -> int:
    import socket

    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        return int(found.getsockname()[1])
