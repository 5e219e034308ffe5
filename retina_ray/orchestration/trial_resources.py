"""What a search's trials get of a cluster, and how many of them run side by side."""

import math
from collections.abc import Sequence
from dataclasses import replace

from retina_ray.config import RunConfig, override
from retina_ray.config_runtime import RuntimeConfig
from retina_ray.errors import ConfigError, ResourceError
from retina_ray.orchestration.resources import Node, WorkerResources, gpu_places, share_out


def with_gpus(config: RunConfig, gpus_per_trial: float | None) -> RunConfig:
    """Return the configuration whose workers share a trial's GPUs evenly; unchanged where None are asked for.

    Raises:
        ConfigError: it is no number above 0, or more than one for each worker.
    """
    if gpus_per_trial is None:
        return config
    workers = max(1, config.runtime.most_workers)
    if not 0 < gpus_per_trial < math.inf:
        fix = "give more than 0, such as 0.5 or 1; to train on CPUs, leave it out and set runtime.use_gpu=false"
        raise ConfigError("not a number of GPUs", f"--gpus-per-trial {gpus_per_trial:g}", fix)
    if gpus_per_trial > workers:
        asked = f"--gpus-per-trial {gpus_per_trial:g} with runtime.workers={config.runtime.workers}"
        fix = f"set runtime.workers={math.ceil(gpus_per_trial)}, since a worker has one GPU at most"
        raise ConfigError("more GPUs than the workers of a trial can use", asked, fix)
    return override(config, {"runtime.use_gpu": True, "runtime.gpus_per_worker": gpus_per_trial / workers})


def share_among_trials(
    runtime: RuntimeConfig, nodes: Sequence[Node], *, concurrent: int | None, gpus_per_trial: float | None
) -> tuple[WorkerResources, int]:
    """Return what each worker of a trial gets, and how many trials run side by side.

    Where CPUs per worker are left open, they are those that the asked number of trials leaves. Without such a number,
    a trial gets what a single run would, but no more CPUs than leave each GPU its trials.

    Args:
        runtime: of a trial, as `with_gpus` leaves it.
        nodes: what each node of the cluster has in all.
        concurrent: the most trials side by side; None: as many as fit.
        gpus_per_trial: as asked for, if it was.

    Raises:
        ResourceError: not even one trial fits.
    """
    if gpus_per_trial is not None and gpu_places(nodes, runtime.gpus_per_worker) < max(1, runtime.fewest_workers):
        there = sum(node.get("GPU", 0) for node in nodes)
        fix = "leave it out to train on CPUs, or give the --address of a cluster with such GPUs"
        raise ResourceError("not enough GPUs for a trial", f"--gpus-per-trial {gpus_per_trial:g}, {there:g} there", fix)
    share = share_out(runtime, nodes)
    if runtime.cpus_per_worker == "auto":
        room = replace(share, cpus=1).fit(nodes)
        share = share.grown(nodes, min(room, concurrent or (room if share.use_gpu else 1)))
    fit = share.fit(nodes)
    return share, min(fit, concurrent or fit)
