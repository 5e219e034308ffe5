"""The stages that all trials of a search have in common, such as SALL's teachers: trained once, first."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from typing import Any

import optuna

from retina_ray.config import RunConfig, override
from retina_ray.errors import ResourceError
from retina_ray.methods import catalogue
from retina_ray.methods.base import Stage
from retina_ray.orchestration.preparation import PlannedRun
from retina_ray.orchestration.resources import Node, gpu_places, local_resources, share_out
from retina_ray.orchestration.stages import StageRunner
from retina_ray.orchestration.told_to_stop import told_to_stop
from retina_ray.search.space import SearchSpace

DRAWS = 8
"""Configurations drawn at random to find out which stages a space leaves alone."""


def draw(space: SearchSpace, config: RunConfig, points: Sequence[Mapping[str, Any]]) -> list[dict[str, Any]]:
    """Return what a space may suggest, as values by dotted path: its points, and a few at random.

    Raises:
        ConfigError: it fails, or suggests what is no configuration.
    """
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.set_user_attr("config", config.model_dump(mode="json"))
    for point in points:
        study.enqueue_trial(dict(point))
    drawn = [space.overrides(study.ask()) for _ in range(len(points) + DRAWS)]
    for overrides in drawn:
        override(config, overrides)
    return drawn


def shared_stages(run: PlannedRun, drawn: Sequence[Mapping[str, Any]], *, use_gpu: bool) -> list[Stage]:
    """Return the stages whose artifacts have the same address whatever is suggested.

    Args:
        run: what the search starts from.
        drawn: suggestions; see `draw`.
        use_gpu: where the stages train.
    """
    tasks = {task.name: task for task in run.dataset.tasks}
    shared = set(run.keys(use_gpu=use_gpu).items())
    for overrides in drawn:
        config = override(run.config, overrides)
        other = replace(run, config=config, plan=catalogue.plan(config, tasks))
        shared &= set(other.keys(use_gpu=use_gpu).items())
    names = {name for name, _ in shared}
    return [stage for stage in run.plan.without_test().stages if stage.name in names]


def train_shared(
    run: PlannedRun,
    drawn: Sequence[Mapping[str, Any]],
    listener: Callable[[dict[str, Any]], None],
    *,
    nodes: Sequence[Node],
) -> None:
    """Train the shared stages with all that the cluster has.

    Raises:
        RetinaRayError: as raised by a stage, or they cannot train where the search runs.
    """
    resources = share_out(run.config.runtime, nodes)
    if resources.workers == 0 and resources.use_gpu and not gpu_places(local_resources(), 1.0):
        fix = "set runtime.workers=1, so that the stages that trials share train on a worker of the cluster"
        raise ResourceError("no GPU on the machine that runs the search", "runtime.workers=0", fix)
    keys = run.keys(use_gpu=resources.use_gpu)
    slots = resources.fit(nodes)
    with told_to_stop() as told:
        runner = StageRunner(run.config, run.plan, keys, listener, resources=resources, slots=slots, told=told)
        runner.run(shared_stages(run, drawn, use_gpu=resources.use_gpu))
