"""What a run's workers get of the CPUs and GPUs of a cluster's nodes, and whether that exists."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import ray
import torch

from retina_ray.config_runtime import RuntimeConfig
from retina_ray.errors import ConfigError, ResourceError

MAX_CPUS_PER_WORKER = 8

Node = Mapping[str, float]
"""``CPU`` and ``GPU`` of one machine, named as Ray names them; what is absent is 0."""


@dataclass(frozen=True)
class WorkerResources:
    """The share of one worker.

    Attributes:
        workers: how many there are, at most; 0 trains in the calling process.
        fewest: how many there are at least.
        cpus: logical CPUs and threads each.
        use_gpu: whether each has a GPU, or a part of one.
        gpus: how much of one, if any.
    """

    workers: int
    fewest: int
    cpus: int
    use_gpu: bool
    gpus: float = 1.0

    @property
    def is_elastic(self) -> bool:
        """Whether workers may come and go."""
        return self.fewest < self.workers

    @property
    def shares_gpus(self) -> bool:
        """Whether two workers may have parts of one GPU."""
        return self.use_gpu and _parts(self.gpus) > 1

    def fit(self, nodes: Sequence[Node]) -> int:
        """Return how many worker groups of this shape the nodes hold at the same time.

        A group may be spread over nodes; a worker is on one of them, and its part of a GPU is of one GPU.
        """
        return self._groups(nodes) or int(self.places(nodes) >= max(1, self.fewest))

    def places(self, nodes: Sequence[Node]) -> int:
        """Return how many workers of this shape the nodes hold at the same time."""
        return sum(self._places(node) for node in nodes)

    def grown(self, nodes: Sequence[Node], groups: int = 1) -> "WorkerResources":
        """Return the share with the most CPUs, eight at most, of which that many groups fit; one CPU if none does.

        Where workers may come and go, a group has as many as there is room for now.
        """
        least = replace(self, cpus=1)
        workers = min(self.workers, least.places(nodes)) if self.is_elastic else self.workers
        sizes = (replace(self, cpus=cpus) for cpus in range(MAX_CPUS_PER_WORKER, 1, -1))
        return next((size for size in sizes if size.places(nodes) >= max(1, workers) * groups), least)

    def _groups(self, nodes: Sequence[Node]) -> int:
        """Return how many groups of all workers the nodes hold."""
        return self.places(nodes) // max(1, self.workers)

    def _places(self, node: Node) -> int:
        by_cpus = int(node.get("CPU", 0)) // self.cpus
        return min(by_cpus, gpu_places([node], self.gpus)) if self.use_gpu else by_cpus


def share_out(runtime: RuntimeConfig, nodes: Sequence[Node]) -> WorkerResources:
    """Decide each worker's share.

    Args:
        runtime: the configured number of workers, GPUs and CPUs.
        nodes: what each node of the cluster has in all.

    Raises:
        ResourceError: the cluster, or each of its nodes, is too small.
    """
    workers, gpus = max(1, runtime.fewest_workers), runtime.gpus_per_worker
    enough = gpu_places(nodes, gpus) >= workers
    use_gpu = enough if runtime.use_gpu == "auto" else runtime.use_gpu
    if use_gpu and not enough:
        asked = f"{workers}" if gpus == 1 else f"{workers} x {gpus:g}"
        fix = "lower runtime.workers or runtime.gpus_per_worker, or set runtime.use_gpu=false"
        raise ResourceError("not enough GPUs", f"{asked} asked for, {_total(nodes, 'GPU'):g} there", fix)
    cpus = runtime.cpus_per_worker
    share = _shape(runtime, cpus=1 if cpus == "auto" else cpus, use_gpu=use_gpu)
    share = share.grown(nodes) if cpus == "auto" else share
    _check(share, nodes)
    return share


def _shape(runtime: RuntimeConfig, *, cpus: int, use_gpu: bool) -> WorkerResources:
    return WorkerResources(
        workers=runtime.most_workers,
        fewest=runtime.fewest_workers,
        cpus=cpus,
        use_gpu=use_gpu,
        gpus=runtime.gpus_per_worker,
    )


def gpu_places(nodes: Sequence[Node], gpus: float) -> int:
    """Return how many workers the nodes' GPUs hold, each with at most one GPU: two with 0.6 do not fit on one."""
    return int(_total(nodes, "GPU")) * _parts(gpus)


def cluster_resources(runtime: RuntimeConfig, groups: int = 1) -> list[Node]:
    """Return what each node of the cluster has that this process is connected to.

    Args:
        runtime: says whether the cluster's autoscaler is relied on; then there are nodes for what it asks for, too.
        groups: for how many groups of its workers.

    Raises:
        ConfigError: it is relied on, and what a worker needs was left open.
    """
    living: list[Node] = [node["Resources"] for node in ray.nodes() if node["Alive"]]
    if not runtime.autoscaling:
        return living
    # What an autoscaler may start, Ray (2.60) does not say.
    if runtime.use_gpu == "auto" or runtime.cpus_per_worker == "auto":
        fix = "set runtime.use_gpu and runtime.cpus_per_worker, since there may be no node yet to take them from"
        raise ConfigError("not known what nodes to wait for", "runtime.autoscaling=true", fix)
    share = _shape(runtime, cpus=runtime.cpus_per_worker, use_gpu=runtime.use_gpu)
    missing = max(1, share.workers) * groups - share.places(living)
    return living + [{"CPU": float(share.cpus), "GPU": float(share.use_gpu)}] * max(0, missing)


def local_resources() -> list[Node]:
    """Return what this process may use, as a cluster of one node."""
    return [{"CPU": local_cpus(), "GPU": torch.cuda.device_count()}]


def local_cpus() -> int:
    """Return the CPUs this process may use."""
    return len(os.sched_getaffinity(0))


def _check(share: WorkerResources, nodes: Sequence[Node]) -> None:
    """Raise ResourceError unless the nodes hold all workers."""
    places, workers = share.places(nodes), max(1, share.fewest)
    if not places:
        needed = _size({"CPU": share.cpus, "GPU": share.gpus if share.use_gpu else 0})
        there = ", ".join(f"{number} of {size}" for size, number in Counter(map(_size, nodes)).most_common())
        fix = "start such a node" + (", or lower runtime.cpus_per_worker" if share.cpus > 1 else "")
        fix += "; where an autoscaler starts them, set runtime.autoscaling=true"
        raise ResourceError("no node holds a worker", f"{needed} needed, nodes there: {there or 'none'}", fix)
    if places < workers:
        asked = f"{workers} workers x {share.cpus} CPUs asked for, {int(_total(nodes, 'CPU'))} CPUs there"
        room = f" on {len(nodes)} nodes, which hold {places} workers" if len(nodes) > 1 else ""
        raise ResourceError("not enough CPUs", asked + room, "lower runtime.workers or runtime.cpus_per_worker")


def _total(nodes: Sequence[Node], kind: str) -> float:
    return sum(node.get(kind, 0.0) for node in nodes)


def _parts(gpus: float) -> int:
    """Return how many such parts one GPU has."""
    return int(1 / gpus + 1e-6)


def _size(node: Node) -> str:
    """Describe a node's size, such as ``8 CPUs and 1 GPUs``."""
    gpus = f" and {node['GPU']:g} GPUs" if node.get("GPU") else ""
    return f"{node.get('CPU', 0):g} CPUs{gpus}"
