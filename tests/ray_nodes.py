"""Several Ray nodes on this machine, as ``ray start`` makes them, that tests can take away; and what runs on them."""

import contextlib
import os
import secrets
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import requests

from serve_apps.local import free_port
from tests.helpers import descendants
from tests.killing import MARK, family, send

BIN = Path(sys.executable).parent
COMMAND = [sys.executable, "-m", "retina_ray"]
STARTS_S = 120

FAST_HEALTH_CHECKS = {
    "RAY_health_check_initial_delay_ms": "3000",
    "RAY_health_check_period_ms": "1000",
    "RAY_health_check_timeout_ms": "2000",
    "RAY_health_check_failure_threshold": "8",
}
"""A node that is gone is known after seconds; quicker ones take a busy node of this machine for a dead one."""


@dataclass
class Node:
    """A ``ray start`` and all that it started.

    Attributes:
        process: the command itself.
        mark: by which all that it started are known, whoever their parent is.
    """

    process: subprocess.Popen[bytes]
    mark: str

    @property
    def processes(self) -> set[int]:
        return {*family(self.mark), *([self.process.pid] if self.process.poll() is None else [])}

    def kill(self) -> None:
        """End it at once with all that runs on it, as a machine that loses its power."""
        while left := self.processes:
            send(left, signal.SIGKILL)
            self.process.poll()
            time.sleep(0.05)

    def give_notice(self) -> None:
        """Tell it that it will be taken away, as Kubernetes and spot machines do."""
        self.process.terminate()

    def find(self, title: str) -> list[int]:
        """Return its processes whose command line has a text in it."""
        found = []
        for pid in self.processes:
            with contextlib.suppress(OSError):
                if title in Path(f"/proc/{pid}/cmdline").read_bytes().decode(errors="replace"):
                    found.append(pid)
        return found


@dataclass
class Nodes:
    """A cluster of such nodes.

    Attributes:
        folder: short, since Ray puts sockets below it.
        environment: of its nodes and of the commands that use it.
        address: of its head, ``HOST:PORT``.
        dashboard: its address.
    """

    folder: Path
    environment: dict[str, str]
    port: int
    dashboard_port: int
    nodes: list[Node] = field(default_factory=list)

    @property
    def address(self) -> str:
        return f"127.0.0.1:{self.port}"

    @property
    def dashboard(self) -> str:
        return f"http://127.0.0.1:{self.dashboard_port}"

    def start_head(self, *, cpus: int, watched: bool) -> Node:
        """Start the head; one that is watched ends when any of its processes does."""
        own = ["--head", f"--port={self.port}", f"--dashboard-port={self.dashboard_port}", "--dashboard-host=127.0.0.1"]
        more = [f"--num-cpus={cpus}", f"--ray-client-server-port={free_port()}", *(["--block"] if watched else [])]
        node = self._start([*own, *more])
        wait_for(self._answers, STARTS_S, "a dashboard that answers")
        return node

    def add(self, *, cpus: int = 1) -> Node:
        """Start another node, and wait until the cluster has it."""
        before = self._living()
        node = self._start([f"--address={self.address}", f"--num-cpus={cpus}", "--block"])
        # One that has just been lost may still count as alive.
        wait_for(lambda: bool(self._living() - before), STARTS_S, "another node")
        return node

    def living(self) -> int:
        """Return how many nodes the cluster takes for alive."""
        return len(self._living())

    def _living(self) -> set[str]:
        answer = requests.get(f"{self.dashboard}/api/v0/nodes?limit=1000", headers=self._headers(), timeout=10)
        answer.raise_for_status()
        return {node["node_id"] for node in answer.json()["data"]["result"]["result"] if node["state"] == "ALIVE"}

    def command(self, *words: str, code: int | None = 0, seconds: float = 300.0) -> subprocess.CompletedProcess[str]:
        """Run one of the product's commands to its end."""
        done = subprocess.run(
            [*COMMAND, *words],
            env=self.environment,
            cwd=self.folder,
            capture_output=True,
            text=True,
            check=False,
            timeout=seconds,
        )
        assert code is None or done.returncode == code, f"{done.returncode}\n{done.stdout}\n{done.stderr}"
        return done

    def end(self) -> None:
        for node in reversed(self.nodes):
            node.kill()

    def _start(self, arguments: list[str]) -> Node:
        mark = secrets.token_hex(8)
        log = (self.folder / f"{mark}.log").open("wb")
        process = subprocess.Popen(
            [
                str(BIN / "ray"),
                "start",
                "--disable-usage-stats",
                f"--dashboard-agent-listen-port={free_port()}",
                f"--object-store-memory={100 * 2**20}",
                *arguments,
            ],
            env={**self.environment, MARK: mark},
            stdin=subprocess.DEVNULL,
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        log.close()
        self.nodes.append(Node(process, mark))
        return self.nodes[-1]

    def _answers(self) -> bool:
        with contextlib.suppress(requests.RequestException):
            return bool(self._living())
        return False

    def _headers(self) -> dict[str, str]:
        return {"Authorization": f"Bearer {self.environment['RAY_AUTH_TOKEN']}"}


@contextlib.contextmanager
def ray_nodes(
    *, head_cpus: int, watched: bool = True, kind: type[Nodes] = Nodes, **environment: str
) -> Iterator[Nodes]:
    """Run a cluster for the length of a block, its head alone at first; nothing of it is left afterwards.

    Args:
        head_cpus: logical CPUs of the head.
        watched: whether the head ends when one of its processes does.
        kind: how the cluster starts its nodes.
        environment: more variables for its nodes and commands.
    """
    with tempfile.TemporaryDirectory(prefix="rrn-", dir="/tmp", ignore_cleanup_errors=True) as folder:
        own = {
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": secrets.token_hex(32),
            "RAY_TMPDIR": folder,
            "RAY_USAGE_STATS_ENABLED": "0",
            "XDG_STATE_HOME": f"{folder}/state",
            "PATH": f"{BIN}:{os.environ['PATH']}",
            "OMP_NUM_THREADS": "1",
            # Names of machines are looked up nowhere.
            "GLOO_SOCKET_IFNAME": "lo",
            **FAST_HEALTH_CHECKS,
            **environment,
        }
        kept = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
        nodes = kind(Path(folder), {**kept, **own}, port=free_port(), dashboard_port=free_port())
        try:
            nodes.start_head(cpus=head_cpus, watched=watched)
            yield nodes
        finally:
            nodes.end()


class Running:
    """A command of the product that runs, whose lines can be waited for.

    Args:
        nodes: the cluster that it uses.
        words: of the command.
        within: words of a program that runs the command.
    """

    def __init__(self, nodes: Nodes, *words: str, within: Sequence[str] = ()) -> None:
        self.lines: list[str] = []
        self.process = subprocess.Popen(
            [*within, *COMMAND, *words],
            env=nodes.environment,
            cwd=nodes.folder,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            start_new_session=True,
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def wait_for_line(self, *texts: str, seconds: float = 180.0) -> str:
        """Return the first line that has all these texts in it."""

        def found() -> list[str]:
            return [line for line in self.lines if all(text in line for text in texts)]

        try:
            wait_for(lambda: bool(found()) or self.process.poll() is not None, seconds, f"line with {texts}")
        except AssertionError as error:
            raise AssertionError(f"{error}:\n{self.text}") from None
        assert found(), f"ended with {self.process.returncode} without {texts}:\n{self.text}"
        return found()[0]

    def wait(self, *, code: int = 0, seconds: float = 300.0) -> str:
        """Return what it wrote, when it has ended."""
        try:
            self.process.wait(seconds)
        except subprocess.TimeoutExpired:
            raise AssertionError(f"still runs after {seconds:g} s:\n{self.text}") from None
        self._reader.join(10)
        assert self.process.returncode == code, self.text
        return self.text

    @property
    def text(self) -> str:
        return "".join(self.lines)

    def end(self) -> None:
        for pid in [*descendants(self.process.pid), self.process.pid]:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        self.process.wait()
        self._reader.join(10)
        assert self.process.stdout is not None
        self.process.stdout.close()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):  # closed meanwhile
            for line in self.process.stdout:
                self.lines.append(line)


@contextlib.contextmanager
def running(nodes: Nodes, *words: str, within: Sequence[str] = ()) -> Iterator[Running]:
    """Run a command for the length of a block at most."""
    command = Running(nodes, *words, within=within)
    try:
        yield command
    finally:
        command.end()


def wait_for(condition: Callable[[], bool], seconds: float, what: str) -> float:
    """Wait for a condition, and return for how long."""
    begun = time.monotonic()
    while not condition():
        if time.monotonic() > begun + seconds:
            raise AssertionError(f"no {what} within {seconds:g} s")
        time.sleep(0.05)
    return time.monotonic() - begun
