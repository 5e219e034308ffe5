"""Trainings on several nodes to which something happens, and what must hold of them afterwards."""

import json
import re
from pathlib import Path
from typing import Any

from retina_ray.config import RunConfig, to_yaml
from tests.helpers import ONE_STAGE, tiny_config
from tests.ray_nodes import Node, Nodes, Running, wait_for

EPOCHS = 12
STEPS_PER_EPOCH = 2
SETTLES_S = 60.0
TWO = {"runtime__workers": 2, "runtime__cpus_per_worker": 1, "runtime__log_every": 1}


def a_config(data: Path, storage: Path, **changes: Any) -> RunConfig:
    return tiny_config(data, storage, **{**ONE_STAGE, **TWO, "train__epochs": EPOCHS, **changes})


def command(config: RunConfig, nodes: Nodes, *more: str) -> list[str]:
    """Return the words of a run on the cluster."""
    file = nodes.folder / f"{config.name}.yaml"
    file.write_text(to_yaml(config), encoding="utf-8")
    return ["train", "--config", str(file), "--set", f"runtime.address={nodes.address}", *more]


def weights(storage: Path) -> bytes:
    (file,) = storage.glob("artifacts/train-*/weights.safetensors")
    return file.read_bytes()


def history(storage: Path) -> list[dict[str, Any]]:
    (file,) = storage.glob("artifacts/train-*/history.json")
    found: list[dict[str, Any]] = json.loads(file.read_text())
    return found


def train_to_the_end(run: Running) -> None:
    """Wait for the end of the training's stage, and leave out those behind it."""
    run.wait_for_line("finished in")
    run.end()


def resumed_at(run: Running) -> list[int]:
    return [int(step) for line in run.lines for step in re.findall(r"resumed at step (\d+)", line)]


def last_checkpoint(storage: Path) -> tuple[str, int]:
    """Return the name of the newest complete one, and the step it was made at."""
    (snapshot,) = storage.glob("artifacts/train-*/checkpoint_manager_snapshot.json")
    newest = json.loads(snapshot.read_text())["latest_checkpoint_result"]
    return newest["checkpoint_dir_name"], newest["metrics"]["step"]


def is_whole(storage: Path) -> None:
    """Assert that every epoch was trained once in the lineage that survived."""
    assert len(history(storage)) == EPOCHS
    are_in_order(history(storage))


def are_in_order(records: list[dict[str, Any]]) -> None:
    """Assert that these are epochs from the first on, all of as many steps of the global batch."""
    assert [(round(record["epoch"]), record["step"]) for record in records] == [
        (epoch, STEPS_PER_EPOCH * epoch) for epoch in range(1, len(records) + 1)
    ]


def one_that_trains(nodes: Nodes) -> Node:
    return next(node for node in nodes.nodes[1:] if node.find("RayTrainWorker"))


def nothing_is_left(nodes: Nodes) -> None:
    """Wait for the end of all processes of all trainings and searches."""
    titles = ("RayTrainWorker", "TrainController", "ProgressRelay", "ray::ImplicitFunc")

    def left() -> list[str]:
        return [title for title in titles for node in nodes.nodes if node.find(title)]

    wait_for(lambda: not left(), SETTLES_S, "end of what trains")


def saved_at(storage: Path) -> float:
    """Return when the newest checkpoint was complete and counted, in seconds since 1970."""
    (snapshot,) = storage.glob("artifacts/train-*/checkpoint_manager_snapshot.json")
    return snapshot.stat().st_mtime
