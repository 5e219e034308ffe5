"""Servers under measurement, each in processes of its own, which stand still while another is measured."""

import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from benchmarks.http_load import Measured, Question, load
from serve_apps.local import free_port

STARTS_S = 180.0
SETTLES_S = 1.5
"""Of load that does not count, after a server stood still."""

OURS = [sys.executable, "-c", "from retina_ray.cli.main import main; main()", "serve", "up", "--no-announce"]
RIVALS = [sys.executable, "-m", "benchmarks.serving_rivals"]


class Server:
    """A server that runs only while it is measured.

    Args:
        process: its first one.
        url: its address.
        questions: what it is asked.
    """

    def __init__(self, process: subprocess.Popen[str], url: str, questions: Sequence[Question]) -> None:
        self._process = process
        self._url = url
        self._questions = questions

    def measure(self, *, clients: int, seconds: float, only: str = "") -> Measured:
        """Let it run, ask it for some seconds, and let it stand still again.

        Args:
            clients: that ask at a time.
            seconds: for how long.
            only: appended to the questions' paths.
        """
        questions = [Question(each.path + only, each.content_type, each.body) for each in self._questions]
        self._signal(signal.SIGCONT)
        load(self._url, questions, clients=clients, seconds=SETTLES_S)
        found = load(self._url, questions, clients=clients, seconds=seconds)
        self._signal(signal.SIGSTOP)
        return found

    def wait(self) -> None:
        """Wait until it answers, then let it stand still."""
        until = time.monotonic() + STARTS_S
        while True:
            if load(self._url, self._questions, clients=1, seconds=0.001).latencies_ms:
                break
            if time.monotonic() > until or self._process.poll() is not None:
                raise RuntimeError(f"the server does not answer: {self._process.args!r}")
            time.sleep(0.2)
        self._signal(signal.SIGSTOP)

    def end(self) -> None:
        """End it and everything that it started."""
        below = _tree(self._process.pid)
        self._signal(signal.SIGCONT)
        self._process.terminate()
        with suppress(subprocess.TimeoutExpired):
            self._process.wait(60)
        for pid in below:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self._process.wait()

    def _signal(self, number: int) -> None:
        for pid in _tree(self._process.pid):
            with suppress(ProcessLookupError):
                os.kill(pid, number)


@contextmanager
def ours(work: Path, bundle: str, questions: Sequence[Question], **arguments: Any) -> Iterator[Server]:
    """Serve a bundle by `retina-ray serve up` for the length of a block.

    Args:
        work: folder for its configuration.
        bundle: the model's address.
        questions: what it is asked.
        arguments: of `serve_apps.arguments.Arguments`.
    """
    application = {
        "name": "retina_ray",
        "route_prefix": "/",
        "import_path": "serve_apps.app:build",
        "args": arguments,
    }
    port = free_port()
    config = work / "serve.yaml"
    config.write_text(json.dumps({"applications": [application]}))
    models = [word for name in arguments["models"] for word in ("--model", f"{name}={bundle}")]
    with running([*OURS, str(config), "--port", str(port), *models], f"http://127.0.0.1:{port}", questions) as server:
        yield server


@contextmanager
def rival(name: str, bundle: str, question: Sequence[Question], *, workers: int = 1) -> Iterator[Server]:
    """Serve a bundle by another server for the length of a block."""
    port = free_port()
    command = [*RIVALS, name, bundle, "--port", str(port), "--workers", str(workers)]
    with running(command, f"http://127.0.0.1:{port}", question) as server:
        yield server


@contextmanager
def running(command: Sequence[str], url: str, questions: Sequence[Question]) -> Iterator[Server]:
    """Run a server for the length of a block, which begins when it answers."""
    process = subprocess.Popen(
        command, stdout=subprocess.DEVNULL, text=True, env={**os.environ, "OMP_NUM_THREADS": "1"}
    )
    server = Server(process, url, questions)
    try:
        server.wait()
        yield server
    finally:
        server.end()


class Loop:
    """A loop over batches in a process of its own, which runs while it is asked.

    Args:
        name: of `serving_rivals`.
        bundle: the model's address.
        photographs: folder of the files that it grades.
    """

    def __init__(self, name: str, bundle: str, photographs: Path) -> None:
        command = [*RIVALS, name, bundle, "--photographs", str(photographs)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self._process = subprocess.Popen(
            command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, env=environment
        )
        self._read()

    def ask(self, what: str) -> None:
        """Have it work: ``batches`` or ``singly``."""
        assert self._process.stdin is not None
        self._process.stdin.write(what + "\n")
        self._process.stdin.flush()

    def answer(self) -> list[float]:
        """Wait until it has, and return its figures."""
        return [float(value) for value in self._read().split()]

    def end(self) -> None:
        """End it."""
        self._process.kill()
        self._process.wait()

    def _read(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline()
        if not line:
            raise RuntimeError(f"the loop ended: {self._process.args!r}")
        return line


@contextmanager
def loops(name: str, bundle: str, photographs: Path, *, count: int) -> Iterator[list[Loop]]:
    """Run loops for the length of a block."""
    found: list[Loop] = []
    try:
        for _ in range(count):
            found.append(Loop(name, bundle, photographs))
        yield found
    finally:
        for each in found:
            each.end()


def _tree(process: int) -> set[int]:
    """Return a process and all below it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found, waiting = {process}, [process]
    while waiting:
        below = [child for child in children.get(waiting.pop(), []) if child not in found]
        found.update(below)
        waiting += below
    return found
