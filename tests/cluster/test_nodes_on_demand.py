"""A cluster whose nodes do not exist yet: a training waits for those that its autoscaler starts, and none is kept.

The autoscaler is Ray's own; the machines that it starts are pretended ones, on this machine.
"""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.autoscaler._private.fake_multi_node.node_provider import FAKE_HEAD_NODE_ID, FAKE_HEAD_NODE_TYPE

from tests.ray_nodes import Node, Nodes, ray_nodes, running, wait_for
from tests.survival import a_config, command, is_whole, train_to_the_end

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]

IDLE_S = 6
MOST = 2
SETTLES_S = 120.0

NOTHING = ("setup_commands", "head_setup_commands", "worker_setup_commands", "cluster_synced_files")
"""Settings that an autoscaler insists on: what has to be done on machines that Ray sets up itself."""

ENVIRONMENT = {
    "RAY_enable_autoscaler_v2": "1",  # as `ray up` and cluster/kuberay have it
    "AUTOSCALER_UPDATE_INTERVAL_S": "1",
    "RAY_FAKE_CLUSTER": "1",
    "RAY_CLOUD_INSTANCE_ID": FAKE_HEAD_NODE_ID,
    "RAY_OVERRIDE_NODE_ID_FOR_TESTING": FAKE_HEAD_NODE_ID,
}


class Growing(Nodes):
    """A head with an autoscaler, which starts nodes of one CPU each."""

    def start_head(self, *, cpus: int, watched: bool) -> Node:
        self.autoscaling.write_text(yaml.safe_dump(autoscaling(self.address)), encoding="utf-8")
        return super().start_head(cpus=cpus, watched=watched)

    @property
    def autoscaling(self) -> Path:
        return self.folder / "autoscaling.yaml"

    def _start(self, arguments: list[str]) -> Node:
        return super()._start([*arguments, f"--autoscaling-config={self.autoscaling}"])


def autoscaling(address: str) -> dict[str, Any]:
    """Return the configuration of an autoscaler for the cluster at an address."""
    return {
        "cluster_name": "pretended",
        "provider": {
            "type": "external",  # since Ray's wheels lack the defaults of "fake_multinode"
            "module": "ray.autoscaler._private.fake_multi_node.node_provider.FakeMultiNodeProvider",
            "gcs_address": address,
            "head_node_id": FAKE_HEAD_NODE_ID,
            "launch_multiple": True,
            "disable_node_updaters": True,
            "disable_launch_config_check": True,
        },
        **{key: [] for key in NOTHING},
        "max_workers": MOST,
        "idle_timeout_minutes": IDLE_S / 60,
        "head_node_type": FAKE_HEAD_NODE_TYPE,
        "available_node_types": {
            FAKE_HEAD_NODE_TYPE: {"resources": {"CPU": 0}, "node_config": {}, "max_workers": 0},
            "worker": {
                "resources": {"CPU": 1, "object_store_memory": 100 * 2**20},
                "node_config": {},
                "min_workers": 0,
                "max_workers": MOST,
            },
        },
    }


@pytest.fixture
def nodes() -> Iterator[Nodes]:
    """A head without CPUs, alone."""
    with ray_nodes(head_cpus=0, kind=Growing, watched=True, **ENVIRONMENT) as found:
        yield found


def test_nodes_come_for_a_training_and_go_after_it(nodes: Nodes, data: Path, tmp_path: Path) -> None:
    refused = nodes.command(*command(a_config(data, tmp_path, name="refused"), nodes), code=2, seconds=120)
    assert "no node holds a worker: 1 CPUs needed, nodes there: 1 of 0 CPUs" in refused.stderr
    assert nodes.living() == 1, "nothing was started for it"
    storage = tmp_path / "waits"
    words = command(a_config(data, storage, name="waits"), nodes, "--set", "runtime.autoscaling=true")
    with running(nodes, *words) as run:
        came = wait_for(lambda: nodes.living() == 1 + MOST, SETTLES_S, "nodes")
        train_to_the_end(run)
    is_whole(storage)
    went = wait_for(lambda: nodes.living() == 1, SETTLES_S, "end of idle nodes")
    wait_for(lambda: len(nodes.nodes[0].find("raylet/raylet")) == 1, SETTLES_S, "end of their processes")
    print(f"nodes came after {came:.0f} s and went after {went:.0f} s")
