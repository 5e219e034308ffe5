"""What a run's workers get of the cluster's CPUs and GPUs, and whether that exists."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from retina_ray.config import RuntimeConfig
from retina_ray.errors import ResourceError

MAX_CPUS_PER_WORKER = 8


@dataclass(frozen=True)
class WorkerResources:
    """The share of one worker.

    Attributes:
        workers: how many there are; 0 trains in the calling process.
        cpus: logical CPUs and threads each.
        use_gpu: whether each has a GPU, or a part of one.
        gpus: how much of one, if any.
    """

    workers: int
    cpus: int
    use_gpu: bool
    gpus: float = 1.0

    def fit(self, cluster: Mapping[str, float]) -> int:
        """Return how many worker groups of this shape the cluster holds at the same time."""
        workers = max(1, self.workers)
        groups = int(cluster.get("CPU", 0)) // (workers * self.cpus)
        if not self.use_gpu:
            return groups
        return min(groups, int(cluster.get("GPU", 0) / self.gpus + 1e-6) // workers)


def share_out(runtime: RuntimeConfig, cluster: Mapping[str, float]) -> WorkerResources:
    """Decide each worker's share.

    Args:
        runtime: the configured number of workers, GPUs and CPUs.
        cluster: total ``CPU`` and ``GPU`` of the cluster.

    Raises:
        ResourceError: the cluster is too small.
    """
    total_cpus, total_gpus = int(cluster.get("CPU", 0)), cluster.get("GPU", 0.0)
    workers = max(1, runtime.workers)
    gpus = workers * runtime.gpus_per_worker
    use_gpu = total_gpus >= gpus if runtime.use_gpu == "auto" else runtime.use_gpu
    if use_gpu and total_gpus < gpus:
        raise ResourceError("not enough GPUs", f"{gpus:g} asked for, {total_gpus:g} there", "lower runtime.workers")
    fair = min(MAX_CPUS_PER_WORKER, max(1, total_cpus // workers))
    cpus = fair if runtime.cpus_per_worker == "auto" else runtime.cpus_per_worker
    if workers * cpus > total_cpus:
        asked = f"{workers} workers x {cpus} CPUs asked for, {total_cpus} CPUs there"
        raise ResourceError("not enough CPUs", asked, "lower runtime.workers or runtime.cpus_per_worker")
    return WorkerResources(workers=runtime.workers, cpus=cpus, use_gpu=use_gpu, gpus=runtime.gpus_per_worker)


def local_resources() -> dict[str, float]:
    """Return the CPUs and GPUs that this process may use, named as Ray names a cluster's."""
    return {"CPU": local_cpus(), "GPU": torch.cuda.device_count()}


def local_cpus() -> int:
    """Return the CPUs this process may use."""
    return len(os.sched_getaffinity(0))
