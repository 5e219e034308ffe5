"""The grid of an experiment, from its arms to runs on storage: every arm once per seed and fold."""

import gc
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from typing import Any

import ray.tune

from retina_ray.config import RunConfig, from_mapping, override
from retina_ray.data.store import Store
from retina_ray.errors import RetinaRayError, StoppedError
from retina_ray.orchestration.grid import Grid, GridRun, GridSearcher, most_trials
from retina_ray.orchestration.grid_run import Listener, fingerprint_of, is_measured, run_arm
from retina_ray.orchestration.preparation import plan_run
from retina_ray.orchestration.ray_settings import connected
from retina_ray.orchestration.resources import WorkerResources, cluster_resources, local_resources
from retina_ray.orchestration.run_folder import RunFolder
from retina_ray.orchestration.trial_resources import share_among_trials
from retina_ray.orchestration.trials import run_trials, trial_base
from retina_ray.reproduce.experiment import Arm, Experiment

OnRun = Callable[[int, int, str, str], None]
"""Is told how many runs have ended, of how many, the name of the latest and why it failed, empty if it did not."""

Layout = dict[str, list[list[RunConfig]]]
"""By arm, per seed, the configurations of its folds, of which there is one without cross-validation."""


@dataclass(frozen=True)
class GridOptions:
    """How a grid is run.

    Attributes:
        tune: through Ray Tune; else one run after the other in this process.
        concurrent: runs side by side; None: as many as fit.
        external: low-resolution data set that some arms grade as well; empty: none.
    """

    tune: bool = True
    concurrent: int | None = None
    external: str = ""


def lay_out(experiment: Experiment, base: RunConfig, *, seeds: int, folds: int | None) -> Layout:
    """Return the configuration of every run.

    Args:
        experiment: its arms.
        base: what they change; its name begins theirs.
        seeds: runs of each arm, or of each of its folds, from the base's seed on.
        folds: of cross-validation; None: none.

    Raises:
        ConfigError: an arm does not go with the base.
    """
    return {
        arm.name: [
            [_config(arm, base, base.seed + seed, folds, fold) for fold in range(folds or 1)] for seed in range(seeds)
        ]
        for arm in experiment.arms
    }


def run_grid(
    experiment: Experiment, layout: Layout, base: RunConfig, options: GridOptions, *, listener: Listener, on_run: OnRun
) -> None:
    """Run what is left of a grid.

    Args:
        experiment: whose.
        layout: every run of it.
        base: what the arms change.
        options: how.
        listener: receives the progress records of runs in this process.
        on_run: is told of every run that ends, after those that had ended before.

    Raises:
        ConfigError: an arm's configuration will not do, a run of its name was another one, or the data set has changed.
        RetinaRayError: the cluster will not do, or runs failed; the others are finished.
    """
    placed = _placed(experiment, layout)
    data, external = fingerprint_of(base.data.path), fingerprint_of(options.external) if options.external else ""
    there = {
        config.name
        for arm, config in placed
        if _is_finished(config, data=data, external=external if arm.external else "")
    }
    on_run(len(there), len(placed), "", "")
    if len(there) == len(placed):
        return
    with ExitStack() as stack:
        if options.tune or base.runtime.most_workers:
            stack.enter_context(connected(base.runtime, for_search=options.tune))
            nodes = cluster_resources(base.runtime, options.concurrent or 1)
        else:
            nodes = local_resources()
        share, concurrent = share_among_trials(base.runtime, nodes, concurrent=options.concurrent, gpus_per_trial=None)
        runs = _runs(placed, share)
        left = [run for run in runs if run.config.name not in there]
        done = len(there)

        def ended(run: GridRun, failure: str) -> None:
            nonlocal done
            done += 1
            on_run(done, len(runs), run.config.name, failure)

        grid = Grid(left, ended, finished={key for run in runs if run.config.name in there for key in run.keys})
        if options.tune:
            _run_by_tune(grid, left, base, options.external, share=share, concurrent=concurrent)
        else:
            _run_here(grid, options.external, listener)
    if grid.failures:
        name, reason = next(iter(grid.failures.items()))
        what = f"{len(grid.failures)} of {len(runs)} runs failed, first {name}"
        raise RetinaRayError(what, reason, "see to it; the same command runs what is left")


def folder_of(config: RunConfig) -> RunFolder:
    """Return the folder of a run of the grid."""
    return RunFolder(Store(config.runtime.storage).child(config.name))


def _config(arm: Arm, base: RunConfig, seed: int, folds: int | None, fold: int) -> RunConfig:
    dealt = {} if folds is None else {"data.folds": folds, "data.fold": fold}
    name = f"{base.name}.{arm.name}.s{seed}" + ("" if folds is None else f".f{fold}")
    return override(base, {**arm.overrides, **dealt, "name": name, "seed": seed})


def _placed(experiment: Experiment, layout: Layout) -> list[tuple[Arm, RunConfig]]:
    """Return every run with its arm, those of a seed and fold together, since they have artifacts in common."""
    arms = {arm.name: arm for arm in experiment.arms}
    placed = [
        ((seed, fold), arms[name], config)
        for name, seeds in layout.items()
        for seed, folds in enumerate(seeds)
        for fold, config in enumerate(folds)
    ]
    return [(arm, config) for _, arm, config in sorted(placed, key=lambda each: each[0])]


def _runs(placed: Sequence[tuple[Arm, RunConfig]], share: WorkerResources) -> list[GridRun]:
    runs = []
    for number, (arm, config) in enumerate(placed):
        keys = plan_run(config, some_tasks=True).keys(use_gpu=share.use_gpu)
        own = trial_base(config, share)
        runs.append(GridRun(number, own, arm.until, arm.external, frozenset(keys.values())))
    return runs


def _is_finished(config: RunConfig, *, data: str, external: str) -> bool:
    folder, exists = RunFolder.claim(config, resume=True)
    return exists and is_measured(folder, data=data, external=external)


def _run_here(grid: Grid, external: str, listener: Listener) -> None:
    while isinstance(run := grid.next(), GridRun):
        try:
            run_arm(run.config, until=run.until, external=external if run.external else "", listener=listener)
        except StoppedError:
            raise
        except RetinaRayError as error:
            grid.end(run.number, str(error))
        else:
            grid.end(run.number)
        gc.collect()  # networks hang in cycles, and a few runs' take gigabytes before Python looks


def _run_by_tune(
    grid: Grid,
    runs: Sequence[GridRun],
    base: RunConfig,
    external: str,
    *,
    share: WorkerResources,
    concurrent: int,
) -> None:
    plain = {
        run.number: {
            "config": run.config.model_dump(mode="json"),
            "until": run.until,
            "external": external if run.external else "",
        }
        for run in runs
    }
    run_trials(
        ray.tune.with_parameters(_trial, runs=plain),
        GridSearcher(grid),
        store=folder_of(base).store,
        share=share,
        concurrent=concurrent,
        samples=most_trials(runs),
    )


def _trial(trial: Mapping[str, Any], *, runs: Mapping[int, Mapping[str, Any]]) -> None:
    """Run one of them in a process of Ray Tune's; an error that the user can solve is reported, not raised."""
    run = runs[trial["number"]]
    failure = ""
    try:
        run_arm(
            from_mapping(run["config"]),
            until=run["until"],
            external=run["external"],
            listener=lambda record: None,
            trial=str(trial["number"]),
        )
    except RetinaRayError as error:
        failure = str(error)
    ray.tune.report({"failure": failure})
