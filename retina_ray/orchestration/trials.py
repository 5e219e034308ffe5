"""How Ray Tune runs trials here: each a small driver, or a training in its own process, a fixed number side by side."""

from collections.abc import Callable
from typing import Any

import ray.tune
from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from retina_ray.config import RunConfig, override
from retina_ray.data.store import Store
from retina_ray.orchestration.resources import WorkerResources


def trial_base(config: RunConfig, share: WorkerResources) -> RunConfig:
    """Return the configuration of which every trial's is a variant: its workers have their share of the cluster."""
    return override(config, {"runtime.cpus_per_worker": share.cpus, "runtime.use_gpu": share.use_gpu})


def run_trials(
    trainable: Callable[..., None],
    searcher: Searcher,
    *,
    store: Store,
    share: WorkerResources,
    concurrent: int,
    samples: int,
    scheduler: TrialScheduler | None = None,
    time_budget_s: float | None = None,
) -> None:
    """Run the trials that a searcher hands out, until it says that none is left.

    Args:
        trainable: trains one; what it is called with must have the trial's ``number``.
        searcher: hands them out, and again what died.
        store: for Ray Tune's own files, which nothing of ours reads.
        share: what each worker of a trial gets.
        concurrent: trials side by side.
        samples: the most that the searcher hands out, counting those that it hands out again.
        scheduler: ends trials early; None: none is.
        time_budget_s: seconds after which no trial goes on; None: no limit.

    Raises:
        ray.tune.TuneError: a scheduler or searcher failed.
    """
    in_process = {"cpu": share.cpus, **({"gpu": share.gpus} if share.use_gpu else {})}
    # A trial that trains on workers of its own only waits for them. Any share of a CPU would be one too many where they
    # take all there are, and they would wait for ever; every head node has this resource.
    resources = in_process if share.workers == 0 else {"node:__internal_head__": 0.001}
    ray.tune.Tuner(
        ray.tune.with_resources(trainable, resources),
        tune_config=ray.tune.TuneConfig(
            num_samples=samples,
            search_alg=searcher,
            scheduler=scheduler or FIFOScheduler(),
            max_concurrent_trials=concurrent,
            time_budget_s=time_budget_s,
            # A process has imported everything already, and one that trains itself can be stopped without being ended.
            reuse_actors=share.workers == 0,
            trial_dirname_creator=_folder_name,
        ),
        run_config=ray.tune.RunConfig(
            name="tune",
            storage_path=store.uri,
            verbose=0,
            # Ray Tune gives up on a trial whose process dies while it starts or is handed on to it, however many
            # failures are allowed. So the searcher hands out again what died.
            failure_config=ray.tune.FailureConfig(max_failures=0),
        ),
    ).fit()


def _folder_name(trial: Any) -> str:
    return f"trial-{trial.config['number']:05}"
