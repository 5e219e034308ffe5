"""Whether a cluster can do what a job asks for: data, storage and room, looked at from its nodes.

Run there as a small job of its own (``python -m retina_ray.orchestration.job_check FILE``), before the real one is
sent. Its last line is a JSON list of what is wrong.
"""

import json
import os
import secrets
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from retina_ray.config_runtime import RuntimeConfig
from retina_ray.data.store import Store
from retina_ray.errors import RetinaRayError
from retina_ray.orchestration.ray_settings import connected
from retina_ray.orchestration.resources import cluster_resources, share_out

_NODE_TIMEOUT_S = 60.0

FILE = "needs.json"
"""Of the check's working folder."""

_RESULT = "problems: "
"""What the line with the result begins with."""


@dataclass(frozen=True)
class Needs:
    """What a job needs, as JSON-like values.

    Attributes:
        datasets: addresses of data sets that are read.
        folders: addresses of runs, bundles or sources that are read.
        storage: addresses below which it writes.
        runtime: the configured workers; None where there are none.
        registry: whether a model registry must be named, since the storage cannot hold one.
    """

    datasets: Sequence[str] = ()
    folders: Sequence[str] = ()
    storage: Sequence[str] = ()
    runtime: dict[str, Any] | None = None
    registry: bool = False

    def to_json(self) -> bytes:
        """Return it for a file."""
        return json.dumps(asdict(self)).encode()


def problems(needs: Needs) -> list[str]:
    """Return what is missing on the cluster that this process is connected to, a sentence each."""
    found = _room(needs) + _registry(needs)
    with _marked(needs.storage) as marks:
        look = ray.remote(num_cpus=0, max_retries=0)(_seen_from_here)
        nodes = [node for node in ray.nodes() if node["Alive"]]
        looks = {
            node["NodeManagerAddress"]: look.options(
                scheduling_strategy=NodeAffinitySchedulingStrategy(node["NodeID"], soft=False)
            ).remote(needs, marks)
            for node in nodes
        }
        ray.wait(list(looks.values()), num_returns=len(looks), timeout=_NODE_TIMEOUT_S)
        seen: dict[str, list[str]] = {}
        for node, reference in looks.items():
            try:
                said = ray.get(reference, timeout=0)
            except Exception as error:  # a node that cannot answer is one that cannot train
                said = [f"the node cannot be used ({' '.join(str(error).split())[:200]})"]
            for sentence in said:
                seen.setdefault(sentence, []).append(node)
    # What every node says is said once.
    everywhere = {sentence for sentence, where in seen.items() if len(where) == len(nodes)}
    return found + [
        sentence if sentence in everywhere else f"{sentence} (seen from {', '.join(where)})"
        for sentence, where in seen.items()
    ]


def _room(needs: Needs) -> list[str]:
    if needs.runtime is None:
        return []
    try:
        runtime = RuntimeConfig.model_validate(needs.runtime)
        share_out(runtime, cluster_resources(runtime))
    except RetinaRayError as error:
        return [str(error)]
    return []


def _registry(needs: Needs) -> list[str]:
    if not needs.registry or os.environ.get("MLFLOW_TRACKING_URI"):
        return []
    fix = "set MLFLOW_TRACKING_URI on the cluster or tracking.uri, or tracking.enabled=false"
    return [f"no model registry is named, and storage on S3 cannot hold one: MLFLOW_TRACKING_URI; {fix}"]


@contextmanager
def _marked(storage: Sequence[str]) -> Iterator[dict[str, str]]:
    """Write a file below each storage address for a block, and yield its name by address; none where that fails."""
    name = f".retina-ray-check-{secrets.token_hex(8)}"
    marks = {}
    for address in storage:
        with suppress(RetinaRayError, OSError):
            Store(address).write_bytes(name, b"")
            marks[address] = name
    try:
        yield marks
    finally:
        for address in marks:
            with suppress(RetinaRayError, OSError):
                Store(address).remove(name)


def _seen_from_here(needs: Needs, marks: dict[str, str]) -> list[str]:
    """Return what is wrong as seen from this node."""
    found = []
    for address in needs.datasets:
        found += _tried(address, lambda store: store.read_bytes("dataset.json"), "no data set can be read")
    for address in needs.folders:
        found += _tried(address, _require_something, "nothing can be read")
    for address in needs.storage:
        found += _tried(address, _write_and_remove, "nothing can be written")
        if address in marks and not Store(address).exists(marks[address]):
            fix = "choose a folder that all nodes share, or s3://"
            found.append(f"the nodes do not share the storage: {address}; {fix}")
    return found


def _tried(address: str, look: Any, what: str) -> list[str]:
    try:
        look(Store(address))
    except (RetinaRayError, OSError) as error:
        return [f"{what}: {address} ({' '.join(str(error).split())[:300]})"]
    return []


def _require_something(store: Store) -> None:
    if store.is_local:
        if not store.local_path.exists():
            raise FileNotFoundError("there is nothing")
    elif not store.list():
        raise FileNotFoundError("there is nothing")


def _write_and_remove(store: Store) -> None:
    name = f".retina-ray-check-{secrets.token_hex(8)}"
    store.write_bytes(name, b"")
    store.remove(name)


def findings(log: str) -> list[str] | None:
    """Return what a check has written that is wrong; None where it came to no end."""
    lines = [line for line in log.splitlines() if line.startswith(_RESULT)]
    return json.loads(lines[-1].removeprefix(_RESULT)) if lines else None


def main() -> None:
    """Check what a file says, on the cluster of this machine."""
    needs = Needs(**json.loads(Path(sys.argv[1]).read_text()))
    with connected(RuntimeConfig(address="auto")):
        print(_RESULT + json.dumps(problems(needs)), flush=True)


if __name__ == "__main__":
    main()
