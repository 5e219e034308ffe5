"""A training on Ray whose storage fails: what passes is ridden out, what stays costs the steps since a checkpoint."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from retina_ray.config import RunConfig
from retina_ray.data.store import Store
from tests.helpers import ONE_STAGE, tiny_config, write_dataset
from tests.ray_nodes import Nodes, ray_nodes, running
from tests.s3.faults import Fault, Proxy
from tests.survival import EPOCHS, TWO, command, nothing_is_left, resumed_at

pytestmark = [pytest.mark.long, pytest.mark.cluster, pytest.mark.timeout(600)]

CHECKPOINT_FILES = r"/checkpoint_[^/]+/\w+\.(pt|safetensors|json)"


@pytest.fixture
def nodes(proxy: Proxy) -> Iterator[Nodes]:
    """A cluster whose S3 lies behind a proxy that can be told to spoil answers."""
    with ray_nodes(head_cpus=2) as found:
        yield found


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    """The weights of a run on a disk to which nothing happens."""
    folder = tmp_path_factory.mktemp("undisturbed")
    write_dataset(folder / "data")
    with ray_nodes(head_cpus=2) as found:
        found.command(*command(a_config(str(folder / "data"), str(folder / "runs"), folder), found))
    return weights(str(folder / "runs"))


def a_config(data: str, storage: str, folder: Path) -> RunConfig:
    changes = {
        **ONE_STAGE,
        **TWO,
        "train__epochs": EPOCHS,
        "data__path": data,
        "runtime__storage": storage,
        "runtime__cache": str(folder / "cache"),
        "runtime__checkpoint__every_steps": 2,
    }
    return tiny_config(Path(), Path(), **changes)


def trained(storage: str) -> Store:
    artifacts = Store(f"{storage}/artifacts")
    (name,) = (name for name in artifacts.list() if name.startswith("train-"))
    return artifacts.child(name)


def weights(storage: str) -> bytes:
    return trained(storage).read_bytes("weights.safetensors")


def is_whole(storage: str) -> bool:
    history = json.loads(trained(storage).read_bytes("history.json"))
    return [round(record["epoch"]) for record in history] == list(range(1, EPOCHS + 1))


def test_what_passes_is_ridden_out(
    nodes: Nodes, undisturbed: bytes, bucket: str, proxy: Proxy, data: str, tmp_path: Path
) -> None:
    runs = f"s3://{bucket}/runs"
    with running(nodes, *command(a_config(data, runs, tmp_path), nodes)) as run:
        run.wait_for_line(f"epoch 2/{EPOCHS}")
        faults = [
            Fault("status", method="PUT", path=CHECKPOINT_FILES, code=500, times=3),
            Fault("drop", method="PUT", path=CHECKPOINT_FILES, times=2),
            Fault("drop_after", method="PUT", path=CHECKPOINT_FILES, times=2),
            Fault("stall", method="GET", times=1),
            Fault("status", method="DELETE", times=2),
        ]
        proxy.faults += faults
        run.wait()
    assert all(fault.hits for fault in faults[:3]), [(fault.kind, fault.hits) for fault in faults]
    assert not resumed_at(run), "no process had to be started anew"
    assert weights(runs) == undisturbed
    assert is_whole(runs)


def test_what_stays_costs_the_steps_since_the_last_checkpoint(
    nodes: Nodes, undisturbed: bytes, bucket: str, proxy: Proxy, data: str, tmp_path: Path
) -> None:
    """Storage that takes nothing for longer than anybody repeats."""
    runs = f"s3://{bucket}/runs"
    with running(nodes, *command(a_config(data, runs, tmp_path), nodes)) as run:
        run.wait_for_line(f"epoch 4/{EPOCHS}")
        outage = Fault("status", method="PUT", path=CHECKPOINT_FILES, code=500, times=10**6)
        proxy.faults.append(outage)
        assert "the storage is out of order" in run.wait_for_line("failed on rank", seconds=240)
        proxy.faults.remove(outage)
        run.wait()
    assert outage.hits >= 8
    assert resumed_at(run)
    assert weights(runs) == undisturbed
    assert is_whole(runs)
    nothing_is_left(nodes)
