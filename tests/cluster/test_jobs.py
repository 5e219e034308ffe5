"""`retina-ray jobs` against a real cluster with a token: what is sent, followed, lost, stopped and refused."""

import json
import signal
import socket
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from retina_ray.config import RunConfig, to_yaml
from serve_apps.local import free_port
from tests.clinic import photograph
from tests.helpers import ONE_STAGE, tiny_config
from tests.ray_nodes import Nodes, ray_nodes, running
from tests.survival import nothing_is_left


@pytest.fixture(scope="module")
def nodes() -> Iterator[Nodes]:
    with ray_nodes(head_cpus=2) as found:
        yield found


def written(config: RunConfig, nodes: Nodes) -> str:
    """Return the name of a file, in the folder where commands run, with a configuration."""
    name = f"{config.name}.yaml"
    (nodes.folder / name).write_text(to_yaml(config), encoding="utf-8")
    return name


def a_config(data: Path, storage: Path, **changes: object) -> RunConfig:
    return tiny_config(data, storage, **{**ONE_STAGE, **changes})


def jobs(nodes: Nodes, *words: str, code: int | None = 0) -> str:
    done = nodes.command("jobs", words[0], "--address", nodes.dashboard, *words[1:], code=code)
    return done.stdout if code == 0 else done.stderr


@pytest.mark.timeout(300)
def test_a_run_is_checked_sent_and_followed_to_its_end(nodes: Nodes, data: Path, tmp_path: Path) -> None:
    file = written(a_config(data, tmp_path / "runs", name="sent", runtime__workers=1), nodes)
    done = nodes.command(
        "jobs", "submit", "--address", nodes.dashboard, "--name", "sent-1", "--", "train", "--config", file
    )
    assert "submitted sent-1" in done.stderr
    assert "epoch 2/2" in done.stdout, "its progress"
    assert f"bundle  {tmp_path}/runs/sent/bundle" in done.stdout
    assert (tmp_path / "runs" / "sent" / "bundle" / "bundle.json").exists()
    state = json.loads(jobs(nodes, "status", "sent-1", "--json"))
    assert state["status"] == "SUCCEEDED"
    assert state["exit_code"] == 0
    assert state["command"].endswith(f"train --config {file}")
    run = json.loads((tmp_path / "runs" / "sent" / "run.json").read_text())
    assert state["commit"].split()[-1] == run["environment"]["commit"], "the version of this checkout ran there"
    assert jobs(nodes, "logs", "sent-1") == done.stdout
    assert [each["id"] for each in json.loads(jobs(nodes, "list", "--json"))] == ["sent-1"], "no trace of the check"
    refused = jobs(nodes, "submit", "--name", "sent-1", "--no-check", "--", "train", "--config", file, code=2)
    assert "a job of this name exists: sent-1" in refused


@pytest.mark.timeout(200)
def test_what_the_cluster_lacks_is_said_before_anything_is_queued(nodes: Nodes, tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    config = a_config(
        tmp_path / "nothing",
        tmp_path / "file" / "runs",
        name="lacking",
        runtime__workers=64,
        train__global_batch_size=64,
    )
    file = written(config, nodes)
    before = jobs(nodes, "list", "--json")
    said = jobs(nodes, "submit", "--", "train", "--config", file, code=2)
    for part in (
        "the cluster lacks what the job needs (3)",
        f"no data set can be read: {tmp_path}/nothing",
        f"nothing can be written: {tmp_path}/file/runs",
        "not enough CPUs: 64 workers",
        "--no-check",
    ):
        assert part in " ".join(said.split())
    assert jobs(nodes, "list", "--json") == before


@pytest.mark.timeout(200)
def test_ends_with_the_code_of_the_job(nodes: Nodes, tmp_path: Path) -> None:
    file = written(a_config(tmp_path / "nothing", tmp_path / "runs", name="failing"), nodes)
    words = ("submit", "--address", nodes.dashboard, "--name", "failing", "--no-check")
    done = nodes.command("jobs", *words, "--", "train", "--config", file, code=2)
    assert "nothing" in done.stdout, "what the command there says"
    assert "failing failed (2)" in done.stderr


class Line:
    """A forwarded port whose connections can be cut, or die without a word."""

    def __init__(self, target: int) -> None:
        self.port = free_port()
        self._target = target
        self._open: list[socket.socket] = []
        self._frozen: set[socket.socket] = set()
        self._is_down = False
        self._server = socket.create_server(("127.0.0.1", self.port))
        threading.Thread(target=self._accept, daemon=True).start()

    def cut(self, seconds: float) -> None:
        """Break all connections, and let none be made for a while."""
        self._is_down = True
        for each in self._open:
            with suppress(OSError):
                each.shutdown(socket.SHUT_RDWR)
        time.sleep(seconds)
        self._is_down = False

    def freeze(self) -> None:
        """Leave all connections open and forward nothing more on them; new ones can be made."""
        self._frozen.update(self._open)

    def close(self) -> None:
        self._server.close()
        self.cut(0.0)
        for each in self._open:
            each.close()

    def _accept(self) -> None:
        with suppress(OSError):
            while True:
                near, _ = self._server.accept()
                if self._is_down:
                    near.close()
                    continue
                far = socket.create_connection(("127.0.0.1", self._target))
                self._open += [near, far]
                for source, sink in ((near, far), (far, near)):
                    threading.Thread(target=self._pump, args=(source, sink), daemon=True).start()

    def _pump(self, source: socket.socket, sink: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                if source not in self._frozen:
                    sink.sendall(data)
        if source in self._frozen:  # not even its end is passed on
            return
        for each in (source, sink):
            with suppress(OSError):
                each.close()


WAKEFUL = """
import functools, sys
from retina_ray.orchestration.dashboard import authenticate
authenticate()
from retina_ray.orchestration import jobs
jobs.Jobs = functools.partial(jobs.Jobs, silence_s=3.0)
from retina_ray.cli.main import main
sys.argv = sys.argv[3:]  # less Python, -m and the package
main()
"""
"""Runs the command that follows it with less trust in a connection that says nothing."""


@contextmanager
def a_line(nodes: Nodes) -> Iterator[Line]:
    line = Line(nodes.dashboard_port)
    try:
        yield line
    finally:
        line.close()


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_lost_connection_loses_nothing(nodes: Nodes, data: Path, tmp_path: Path) -> None:
    file = written(a_config(data, tmp_path / "runs", name="cut", train__epochs=60), nodes)
    with a_line(nodes) as line:
        words = ("jobs", "submit", "--address", f"http://127.0.0.1:{line.port}", "--name", "cut", "--no-check")
        program = (sys.executable, "-c", WAKEFUL)
        with running(nodes, *words, "--", "train", "--config", file, within=program) as command:
            command.wait_for_line("epoch 3/60")
            line.cut(3.0)
            command.wait_for_line("epoch 10/60")
            line.cut(1.0)
            command.wait_for_line("epoch 20/60")
            line.freeze()
            text = command.wait()
    log = jobs(nodes, "logs", "cut")
    assert text.endswith(log), "each line once, whatever happened to the connection"
    assert all(sum(f"epoch {epoch}/60" in each for each in log.splitlines()) == 1 for epoch in range(1, 61))


@pytest.mark.long
@pytest.mark.timeout(300)
def test_ctrl_c_leaves_the_job_and_stop_has_it_save_what_it_has(nodes: Nodes, data: Path, tmp_path: Path) -> None:
    config = a_config(data, tmp_path / "runs", name="left", train__epochs=400)
    file = written(config, nodes)
    words = ("jobs", "submit", "--address", nodes.dashboard, "--no-check", "--name", "left")
    with running(nodes, *words, "--", "train", "--config", file) as command:
        command.wait_for_line("epoch 2/400")
        command.process.send_signal(signal.SIGINT)
        assert "retina-ray jobs logs -f left" in command.wait(code=130, seconds=30)
    with running(nodes, "jobs", "logs", "-f", "--address", nodes.dashboard, "left") as command:
        command.wait_for_line("epoch 4/400")
        assert "left stopped" in jobs(nodes, "stop", "left")
        text = command.wait(code=143, seconds=30)
    assert "told to stop: with a checkpoint at step" in text
    folders = (tmp_path / "runs" / "artifacts").glob("train-*/checkpoints/checkpoint_*")
    step = max(int(folder.name.removeprefix("checkpoint_")) for folder in folders)
    assert f"at step {step};" in text
    # The same command with --resume goes on where it was; a few epochs more are enough to see it.
    again = ("jobs", "submit", "--address", nodes.dashboard, "--no-check", "--name", "left-again")
    with running(nodes, *again, "--", "train", "--config", file, "--resume") as command:
        command.wait_for_line(f"resumed at step {step}")
        jobs(nodes, "stop", "left-again")


def test_without_the_token_nothing_is_said(nodes: Nodes) -> None:
    stranger = Nodes(nodes.folder, {**nodes.environment, "RAY_AUTH_TOKEN": "f" * 64}, nodes.port, nodes.dashboard_port)
    done = stranger.command("jobs", "list", "--address", nodes.dashboard, code=2)
    assert "cannot reach the dashboard" in done.stderr
    assert "RAY_AUTH_MODE and the token" in done.stderr
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_search_and_its_space_go_along(nodes: Nodes, data: Path, tmp_path: Path) -> None:
    (nodes.folder / "own_space.py").write_text(
        "METRIC, MODE = 'kappa', 'max'\n"
        "def suggest(trial):\n    return {'optim.lr': trial.suggest_float('lr', 1e-4, 1e-2, log=True)}\n"
    )
    file = written(a_config(data, tmp_path / "runs", name="search"), nodes)
    search = ("tune", "own_space:suggest", "--trials", "2", "--concurrent", "1", "--config", file, "--name", "far")
    done = nodes.command("jobs", "submit", "--address", nodes.dashboard, "--no-check", "--", *search)
    assert "winner" in done.stdout
    assert (tmp_path / "runs" / "far").is_dir()
    nothing_is_left(nodes)


@pytest.mark.long
@pytest.mark.timeout(300)
def test_a_data_set_is_ingested_and_a_run_evaluated_there(nodes: Nodes, data: Path, tmp_path: Path) -> None:
    photographs = tmp_path / "photographs"
    for grade in ("0", "1"):
        (photographs / grade).mkdir(parents=True)
        for number in range(4):
            (photographs / grade / f"{grade}{number}.jpg").write_bytes(photograph(10 * int(grade) + number))
    ingest = ("data", "ingest", str(photographs), str(tmp_path / "set"), "--adapter", "folder", "--task", "dr")
    done = nodes.command("jobs", "submit", "--address", nodes.dashboard, "--", *ingest, "--size", "64")
    assert f"8 of 8 images in {tmp_path}/set" in done.stdout
    assert (tmp_path / "set" / "dataset.json").exists()
    config = a_config(data, tmp_path / "runs", name="graded", train__epochs=1)
    nodes.command("train", "--config", written(config, nodes), "--set", f"runtime.address={nodes.address}")
    evaluate = ("evaluate", str(tmp_path / "runs" / "graded"), "--json")
    done = nodes.command("jobs", "submit", "--address", nodes.dashboard, "--", *evaluate)
    assert '"dr"' in done.stdout
    refused = jobs(nodes, "submit", "--", "evaluate", str(tmp_path / "no-run"), code=2)
    assert "nothing can be read" in refused or "no-run" in refused
