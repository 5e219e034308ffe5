"""The rest of what clusters do to a training; `test_survival` has the core. How long each takes is printed."""

import json
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from statistics import median
from typing import Any

import pytest
import requests

from tests.killing import send
from tests.ray_nodes import Node, Nodes, Running, ray_nodes, running, wait_for
from tests.survival import (
    EPOCHS,
    SETTLES_S,
    STEPS_PER_EPOCH,
    a_config,
    are_in_order,
    command,
    is_whole,
    last_checkpoint,
    nothing_is_left,
    one_that_trains,
    resumed_at,
    train_to_the_end,
    weights,
)

SAMPLES = 5

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]


def workers(nodes: Nodes) -> list[int]:
    return [pid for node in nodes.nodes for pid in node.find("RayTrainWorker")]


def disturbed(nodes: Nodes, data: Path, storage: Path, happens: Callable[[Running], None], **changes: Any) -> Running:
    """Run a training to its end, to which something happens in its fourth epoch; return what it said."""
    changes = {"runtime__checkpoint__every_steps": 2, **changes}
    with running(nodes, *command(a_config(data, storage, name="disturbed", **changes), nodes)) as run:
        run.wait_for_line(f"epoch 4/{EPOCHS}")
        begun = time.monotonic()
        happens(run)
        run.wait_for_line("failed on rank")
        known = time.monotonic() - begun
        run.wait_for_line("resumed at step")
        print(f"known after {known:.1f} s, training again after {time.monotonic() - begun:.1f} s")
        train_to_the_end(run)
    nothing_is_left(nodes)
    return run


def test_a_killed_worker(nodes: Nodes, undisturbed: bytes, data: Path, tmp_path: Path) -> None:
    run = disturbed(nodes, data, tmp_path, lambda run: kill(workers(nodes)[0]))
    assert re.search("failed on rank [01]: its process has gone", run.text)
    assert weights(tmp_path) == undisturbed
    is_whole(tmp_path)


def kill(pid: int, number: int = signal.SIGKILL) -> None:
    os.kill(pid, number)


def test_a_worker_that_stands_still(nodes: Nodes, undisturbed: bytes, data: Path, tmp_path: Path) -> None:
    stopped: list[int] = []

    def stop(run: Running) -> None:
        stopped.append(workers(nodes)[0])
        kill(stopped[0], signal.SIGSTOP)

    run = disturbed(nodes, data, tmp_path, stop, runtime__stall_s=8.0)
    with pytest.raises(ProcessLookupError):
        kill(stopped[0], 0)
    assert weights(tmp_path) == undisturbed
    (stacks,) = tmp_path.glob("artifacts/train-*/stacks-*.txt")
    assert "train_step" in stacks.read_text(), "the other one waits in the step's collectives"
    assert "no step for 8 s" in run.text


def test_too_many_stalls_end_it_with_a_message(nodes: Nodes, data: Path, tmp_path: Path) -> None:
    changes = {"runtime__stall_s": 8.0, "runtime__max_failures": 0}
    with running(nodes, *command(a_config(data, tmp_path, name="stalled", **changes), nodes)) as run:
        run.wait_for_line(f"epoch 2/{EPOCHS}")
        kill(workers(nodes)[0], signal.SIGSTOP)
        text = run.wait(code=2, seconds=120)
    assert re.search(r"error: no step for 8 s on rank [01]: stacks-\*.txt in \S+; see there", text)
    nothing_is_left(nodes)


def test_a_killed_driver(nodes: Nodes, undisturbed: bytes, data: Path, tmp_path: Path) -> None:
    config = a_config(data, tmp_path, name="driver", runtime__checkpoint__every_steps=2)
    with running(nodes, *command(config, nodes)) as run:
        run.wait_for_line(f"epoch 4/{EPOCHS}")
        kill(run.process.pid)
    nothing_is_left(nodes)
    with running(nodes, *command(config, nodes, "--resume")) as run:
        train_to_the_end(run)
    assert resumed_at(run)[0] >= 4 * STEPS_PER_EPOCH - 2
    assert weights(tmp_path) == undisturbed
    is_whole(tmp_path)


def test_a_truncated_newest_checkpoint(nodes: Nodes, undisturbed: bytes, data: Path, tmp_path: Path) -> None:
    config = a_config(data, tmp_path, name="truncated", runtime__checkpoint__every_steps=2)
    with running(nodes, *command(config, nodes)) as run:
        run.wait_for_line(f"epoch 4/{EPOCHS}")
        run.process.terminate()
        run.wait(code=143, seconds=90)
    newest, step = last_checkpoint(tmp_path)
    (file,) = tmp_path.glob(f"artifacts/train-*/{newest}/optimizer.pt")
    file.write_bytes(file.read_bytes()[:1000])
    with running(nodes, *command(config, nodes, "--resume")) as run:
        line = run.wait_for_line("resumed at step")
        train_to_the_end(run)
    assert newest in line, "the one that is passed over is named"
    assert resumed_at(run)[0] == step - 2
    assert weights(tmp_path) == undisturbed


def test_a_partition(nodes: Nodes, undisturbed: bytes, data: Path, tmp_path: Path) -> None:
    """A node that no longer answers anybody, and does not know that it is taken for dead."""
    away: list[Node] = []
    processes: set[int] = set()

    def cut(run: Running) -> None:
        away.append(one_that_trains(nodes))
        processes.update(away[0].processes)
        send(processes, signal.SIGSTOP)
        nodes.nodes.remove(away[0])
        nodes.add()

    try:
        disturbed(nodes, data, tmp_path, cut)
        assert weights(tmp_path) == undisturbed
        is_whole(tmp_path)
        send(processes, signal.SIGCONT)
        # It learns that it was given up, and ends by itself: nothing that it still does counts.
        wait_for(lambda: not away[0].find("RayTrainWorker"), SETTLES_S, "end of the partitioned worker")
        assert weights(tmp_path) == undisturbed
    finally:
        for node in away:
            node.kill()


def test_a_straggler_shows(nodes: Nodes, data: Path, tmp_path: Path) -> None:
    """A rank that stands still four fifths of the time."""
    config = a_config(data, tmp_path, name="straggler", train__epochs=4000)
    with running(nodes, *command(config, nodes)) as run:
        run.wait_for_line("epoch 2/4000")
        seen: list[dict[str, float]] = []
        with slowed_down(workers(nodes)[0]):
            until = time.monotonic() + 120
            while len(seen) < SAMPLES and time.monotonic() < until:
                time.sleep(0.2)
                now = exported(nodes, "ray_retina_ray_own_step_seconds")
                seen += [now] if len(now) == 2 and now not in seen else []
        run.process.terminate()
        run.wait(code=143, seconds=90)
    own = [median(each[rank] for each in seen) for rank in ("0", "1")]
    print(f"seconds of their own in a step: {own[0]:.3f} and {own[1]:.3f}")
    assert max(own) > 2 * min(own)


@contextmanager
def slowed_down(process: int) -> Iterator[None]:
    """Stop a process for 20 of each 25 ms."""
    over = threading.Event()

    def stop_and_go() -> None:
        while not over.is_set():
            for number, seconds in ((signal.SIGSTOP, 0.02), (signal.SIGCONT, 0.005)):
                kill(process, number)
                over.wait(seconds)
        kill(process, signal.SIGCONT)

    thread = threading.Thread(target=stop_and_go)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()


def exported(nodes: Nodes, name: str) -> dict[str, float]:
    """Return what the nodes export under a name, by rank."""
    found = {}
    for target in json.loads((nodes.folder / "ray" / "prom_metrics_service_discovery.json").read_text())[0]["targets"]:
        with suppress(requests.ConnectionError):  # of a node that was lost
            for line in requests.get(f"http://{target}/metrics", timeout=10).text.splitlines():
                if line.startswith(name + "{"):
                    (rank,) = re.findall(r'rank="(\d+)"', line)
                    found[rank] = float(line.rpartition(" ")[2])
    return found


def test_an_elastic_run_shrinks_and_grows(nodes: Nodes, data: Path, tmp_path: Path) -> None:
    often = {"runtime__checkpoint__every_steps": 2, "runtime__checkpoint__every_s": 10.0}
    config = a_config(data, tmp_path, name="elastic", runtime__workers=(1, 2), train__epochs=400, **often)
    with running(nodes, *command(config, nodes)) as run:
        run.wait_for_line("epoch 4/400")
        assert len(workers(nodes)) == 2
        lost = one_that_trains(nodes)
        lost.kill()
        nodes.nodes.remove(lost)
        begun = time.monotonic()
        wait_for(lambda: len(resumed_at(run)) == 1, 240, "training on one node")
        print(f"went on with one worker after {time.monotonic() - begun:.1f} s")
        assert len(workers(nodes)) == 1
        nodes.add()
        begun = time.monotonic()
        wait_for(lambda: len(resumed_at(run)) == 2, 240, "training on two nodes")
        print(f"went on with two workers {time.monotonic() - begun:.1f} s after a node had joined")
        assert len(workers(nodes)) == 2
        run.process.terminate()
        run.wait(code=143, seconds=90)
    nothing_is_left(nodes)
    steps = resumed_at(run)
    assert steps == sorted(steps)
    (progress,) = tmp_path.glob(f"artifacts/train-*/{last_checkpoint(tmp_path)[0]}/progress.json")
    are_in_order(json.loads(progress.read_text())["history"])


def test_the_heads_store_is_killed_and_restarted(data: Path, undisturbed: bytes, tmp_path: Path) -> None:
    """The process that knows the cluster, away for five seconds; what it knew is on its disk."""
    (tmp_path / "store").mkdir()
    fault_tolerance = {"RAY_gcs_storage": "rocksdb", "RAY_gcs_storage_path": str(tmp_path / "store")}
    with ray_nodes(head_cpus=0, watched=False, **fault_tolerance) as nodes:
        nodes.add()
        nodes.add()
        config = a_config(data, tmp_path, name="head", runtime__checkpoint__every_steps=2)
        with running(nodes, *command(config, nodes)) as run:
            run.wait_for_line(f"epoch 4/{EPOCHS}")
            (store,) = nodes.nodes[0].find("gcs_server")
            words = Path(f"/proc/{store}/cmdline").read_bytes().decode().split("\0")[:-1]
            lines = Path(f"/proc/{store}/environ").read_bytes().decode().split("\0")[:-1]
            environment = dict(line.split("=", 1) for line in lines)
            kill(store)
            time.sleep(5)
            with subprocess.Popen(
                words, env=environment, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL
            ) as again:
                train_to_the_end(run)
                assert weights(tmp_path) == undisturbed
                is_whole(tmp_path)
                assert nodes.living() == 3
                with running(nodes, *command(a_config(data, tmp_path / "after", name="after"), nodes)) as after:
                    after.wait_for_line("epoch 1/")
                nothing_is_left(nodes)
                again.kill()
