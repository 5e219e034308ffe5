"""`retina-ray serve up` as its user has it, for the tests of endpoints on clusters."""

import contextlib
import os
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import requests
import yaml

from retina_ray.client import Client
from retina_ray.serving.keys import add, issue
from retina_ray.serving.schema import GradeResponse
from serve_apps.local import free_port
from tests.helpers import descendants
from tests.serving_photographs import photograph

COMMAND = [sys.executable, "-c", "from retina_ray.cli.main import main; main()", "serve"]


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


@contextlib.contextmanager
def endpoint_of(
    folder: Path, bundles: dict[str, str], arguments: dict[str, Any], deployments: list[dict[str, Any]]
) -> Iterator[Endpoint]:
    """Run an endpoint with a key for the length of a block; what it started is gone afterwards.

    Args:
        folder: for its files.
        bundles: what tests call them -> where they are.
        arguments: of the application.
        deployments: of Serve's configuration.
    """
    text, key = issue("clinic", 100_000, ["grade", "metrics"])
    add(folder / "keys.yaml", key)
    application = {
        "name": "retina_ray",
        "import_path": "serve_apps.app:build",
        "route_prefix": "/",
        "args": {"keys": str(folder / "keys.yaml"), **arguments},
        "deployments": deployments,
    }
    config = {"http_options": {"host": "127.0.0.1", "port": free_port()}, "applications": [application]}
    (folder / "config.yaml").write_text(yaml.safe_dump(config, sort_keys=False))
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
        yield Endpoint(process, folder, url, text, environment, bundles)
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
        endpoint: the one that is asked.
        clients: that ask at a time.
        pause_s: between an answer and the next request.
        models: answers by the hash of the model that gave them.
        failures: what was raised.
        wrong: answers with other grades than the same model gave to the same photograph before.
        bare: statuses that one more client got, which repeats nothing; 0 where it got none.
    """

    endpoint: Endpoint
    clients: int = 3
    pause_s: float = 0.0
    models: Counter[str] = field(default_factory=Counter)
    failures: list[Exception] = field(default_factory=list)
    wrong: list[str] = field(default_factory=list)
    bare: Counter[int] = field(default_factory=Counter)
    _grades: dict[tuple[str, int], object] = field(default_factory=dict)
    _ended: threading.Event = field(default_factory=threading.Event)

    def __enter__(self) -> "Load":
        self._threads = [threading.Thread(target=self._send, args=(number,)) for number in range(self.clients)]
        self._threads.append(threading.Thread(target=self._send_once_each))
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ended.set()
        for thread in self._threads:
            thread.join()

    def _send(self, number: int) -> None:
        with self.endpoint.client() as client:
            while not self._ended.wait(self.pause_s):
                try:
                    answer = client.grade(photograph(number))
                except Exception as error:
                    self.failures.append(error)
                else:
                    self._check(number, answer)

    def _check(self, number: int, answer: GradeResponse) -> None:
        found = {task: (grade.grade, round(grade.confidence, 3)) for task, grade in answer.tasks.items()}
        if self._grades.setdefault((answer.model.hash, number), found) != found:
            self.wrong.append(f"photograph {number}: {found}")
        self.models[answer.model.hash] += 1

    def _send_once_each(self) -> None:
        headers = {"Authorization": f"Bearer {self.endpoint.key}", "Content-Type": "image/jpeg"}
        while not self._ended.wait(max(self.pause_s, 0.1)):
            try:
                url = f"{self.endpoint.url}/v1/grade"
                self.bare[requests.post(url, data=photograph(), headers=headers, timeout=30).status_code] += 1
            except requests.RequestException:
                self.bare[0] += 1

    def answered(self, model: str, times: int = 5) -> None:
        """Wait until a model has answered so often from now on."""
        before = self.models[model]
        wait_for(lambda: self.failures or self.models[model] >= before + times)


def wait_for(what: Callable[[], object], seconds: float = 60.0) -> None:
    until = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < until, "it did not happen in time"
        time.sleep(0.1)
