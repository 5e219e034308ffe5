"""How a cluster is shared out among workers; nodes are mappings here, no cluster is started."""

import os

import pytest
import ray
import torch

from retina_ray.config import RunConfig, override
from retina_ray.config_runtime import RuntimeConfig
from retina_ray.errors import ConfigError, ResourceError
from retina_ray.orchestration.resources import cluster_resources, local_resources, share_out


def a_runtime(**changes: object) -> RuntimeConfig:
    runtime = {f"runtime.{key}": value for key, value in changes.items()}
    return override(RunConfig(name="any"), {"train.global_batch_size": 24, **runtime}).runtime


@pytest.mark.parametrize(
    ("changes", "node", "expected"),
    [
        ({"workers": 0}, {"CPU": 2}, (2, False, 1)),
        ({"workers": 2}, {"CPU": 16}, (8, False, 1)),
        ({"workers": 2, "cpus_per_worker": 2}, {"CPU": 16}, (2, False, 4)),
        ({"workers": 2}, {"CPU": 16, "GPU": 4}, (8, True, 1)),
        ({"workers": 2, "cpus_per_worker": 1}, {"CPU": 16, "GPU": 4}, (1, True, 2)),
        ({"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0.25}, {"CPU": 16, "GPU": 1}, (1, True, 4)),
        ({"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0.3}, {"CPU": 16, "GPU": 1}, (1, True, 3)),
        ({"workers": 2, "use_gpu": False}, {"CPU": 4, "GPU": 8}, (2, False, 1)),
        # a part of a GPU is of one GPU
        ({"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0.6}, {"CPU": 16, "GPU": 2}, (1, True, 2)),
        ({"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0.4}, {"CPU": 32, "GPU": 8}, (1, True, 16)),
        ({"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 1 / 3}, {"CPU": 16, "GPU": 1}, (1, True, 3)),
        ({"workers": 3, "cpus_per_worker": 1, "gpus_per_worker": 0.6}, {"CPU": 16, "GPU": 2}, (1, False, 5)),
    ],
)
def test_a_worker_gets_its_share_and_groups_fit(
    changes: dict[str, object], node: dict[str, float], expected: tuple[int, bool, int]
) -> None:
    share = share_out(a_runtime(**changes), [node])
    assert (share.cpus, share.use_gpu, share.fit([node])) == expected


@pytest.mark.parametrize(
    ("changes", "nodes", "expected"),
    [
        # never more CPUs than a node has
        ({"workers": 1}, [{"CPU": 4}, {"CPU": 4}], (4, False, 2)),
        ({"workers": 2}, [{"CPU": 4}, {"CPU": 4}], (4, False, 1)),
        ({"workers": 3}, [{"CPU": 4}, {"CPU": 4}], (2, False, 1)),
        ({"workers": 1, "cpus_per_worker": 3}, [{"CPU": 4}, {"CPU": 5}], (3, False, 2)),
        # nor of a node that has no GPU, where workers have one
        ({"workers": 1}, [{"CPU": 4, "GPU": 1}, {"CPU": 32}], (4, True, 1)),
        ({"workers": 4}, [{"CPU": 16, "GPU": 2}, {"CPU": 4, "GPU": 2}, {}], (2, True, 1)),
        # a group may be spread over nodes
        ({"workers": 2, "cpus_per_worker": 2}, [{"CPU": 3}, {"CPU": 3}, {"CPU": 3}, {"CPU": 3}], (2, False, 2)),
    ],
)
def test_workers_are_of_one_node_each(
    changes: dict[str, object], nodes: list[dict[str, float]], expected: tuple[int, bool, int]
) -> None:
    share = share_out(a_runtime(**changes), nodes)
    assert (share.cpus, share.use_gpu, share.fit(nodes)) == expected


@pytest.mark.parametrize(
    ("workers", "nodes", "expected"),
    [
        # as many as there is room for, with what CPUs are left for all of them
        ((1, 4), [{"CPU": 8}], (2, 1)),
        ((2, 4), [{"CPU": 1}, {"CPU": 1}], (1, 1)),
        ((1, 2), [{"CPU": 2}, {"CPU": 2}], (2, 1)),
        ((1, 8), [{"CPU": 16, "GPU": 4}], (4, 1)),
    ],
)
def test_a_group_that_comes_and_goes_fits_where_its_fewest_workers_do(
    workers: tuple[int, int], nodes: list[dict[str, float]], expected: tuple[int, int]
) -> None:
    share = share_out(a_runtime(workers=workers), nodes)
    assert (share.fewest, share.workers) == workers
    assert share.is_elastic
    assert (share.cpus, share.fit(nodes)) == expected
    with pytest.raises(ResourceError, match="not enough CPUs: 9 workers"):
        share_out(a_runtime(workers=(9, 12)), [{"CPU": 8}])


@pytest.mark.parametrize(
    ("changes", "nodes", "message"),
    [
        ({"workers": 4}, [{"CPU": 2}], "not enough CPUs: 4 workers x 1 CPUs asked for, 2 CPUs there; lower"),
        ({"workers": 2, "use_gpu": True}, [{"CPU": 8, "GPU": 1}], "not enough GPUs: 2 asked for, 1 there; lower"),
        (
            {"workers": 3, "use_gpu": True, "gpus_per_worker": 0.6},
            [{"CPU": 8, "GPU": 2}],
            "not enough GPUs: 3 x 0.6 asked for, 2 there; lower",
        ),
        (
            {"workers": 3, "cpus_per_worker": 4},
            [{"CPU": 6}, {"CPU": 6}],
            "not enough CPUs: 3 workers x 4 CPUs asked for, 12 CPUs there on 2 nodes, which hold 2 workers; lower",
        ),
        (
            {"workers": 1, "cpus_per_worker": 8},
            [{"CPU": 4}, {"CPU": 4}],
            "no node holds a worker: 8 CPUs needed, nodes there: 2 of 4 CPUs; start such a node, or lower runtime.cpus",
        ),
        (
            {"workers": 1, "cpus_per_worker": 8},
            [{"CPU": 4, "GPU": 2}, {"CPU": 64}],
            "no node holds a worker: 8 CPUs and 1 GPUs needed, nodes there: 1 of 4 CPUs and 2 GPUs, 1 of 64 CPUs",
        ),
        (
            {"workers": 1},
            [{}],
            "no node holds a worker: 1 CPUs needed, nodes there: 1 of 0 CPUs; start such a node; where",
        ),
        (
            {"workers": 1},
            [],
            "no node holds a worker: 1 CPUs needed, nodes there: none; start such a node; where",
        ),
    ],
)
def test_too_small_a_cluster_is_refused(
    changes: dict[str, object], nodes: list[dict[str, float]], message: str
) -> None:
    with pytest.raises(ResourceError, match=message):
        share_out(a_runtime(**changes), nodes)


@pytest.mark.parametrize(
    ("nodes", "cpus"),
    [
        ([{"CPU": 8, "GPU": 1}] * 4, 8),
        ([{"CPU": 96, "GPU": 4}], 8),
        ([{"CPU": 8, "GPU": 1}] * 8, 8),
        ([{"CPU": 8, "GPU": 4}], 2),
    ],
)
def test_workers_that_come_and_go_share_the_nodes_that_are_there(nodes: list[dict[str, float]], cpus: int) -> None:
    share = share_out(a_runtime(workers=(2, 8)), nodes)
    assert (share.cpus, share.use_gpu) == (cpus, True)
    assert share.fit(nodes) == 1


def test_nodes_are_those_that_live(monkeypatch: pytest.MonkeyPatch) -> None:
    nodes = [
        {"Alive": True, "Resources": {"CPU": 4.0, "memory": 1e9}},
        {"Alive": False, "Resources": {}},
        {"Alive": True, "Resources": {"CPU": 2.0, "GPU": 1.0}},
    ]
    monkeypatch.setattr(ray, "nodes", lambda: nodes)
    assert [node["CPU"] for node in cluster_resources(a_runtime())] == [4, 2]


def test_an_autoscaler_that_is_relied_on_starts_what_is_asked_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 0.0}}])
    asked = {"workers": 4, "cpus_per_worker": 7, "use_gpu": True}
    with pytest.raises(ResourceError, match="not enough GPUs: 4 asked for, 0 there"):
        share_out(a_runtime(**asked), cluster_resources(a_runtime(**asked)))
    relying = a_runtime(**asked, autoscaling=True)
    share = share_out(relying, cluster_resources(relying))
    assert (share.workers, share.cpus, share.use_gpu) == (4, 7, True)
    assert share.fit(cluster_resources(relying)) == 1
    assert share.fit(cluster_resources(relying, groups=3)) == 3, "of trials side by side"
    monkeypatch.setattr(ray, "nodes", lambda: [{"Alive": True, "Resources": {"CPU": 8.0, "GPU": 1.0}}] * 5)
    assert share.fit(cluster_resources(relying)) == 1, "what is there is not started once more"
    on_cpus = a_runtime(workers=(2, 4), cpus_per_worker=2, use_gpu=False, autoscaling=True)
    assert share_out(on_cpus, cluster_resources(on_cpus)).use_gpu is False
    for left_open in ({"use_gpu": True}, {"cpus_per_worker": 2}):
        with pytest.raises(ConfigError, match=r"set runtime\.use_gpu and runtime\.cpus_per_worker"):
            cluster_resources(a_runtime(**left_open, autoscaling=True))


def test_this_machine_is_a_cluster_of_one_node() -> None:
    assert local_resources() == [{"CPU": len(os.sched_getaffinity(0)), "GPU": torch.cuda.device_count()}]
