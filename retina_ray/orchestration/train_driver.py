"""One training run from its configuration to a registered bundle; a search calls the same function for each trial."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from typing import Any

from retina_ray.config import RunConfig
from retina_ray.methods.base import TEST
from retina_ray.metrics.summary import TaskSummary
from retina_ray.orchestration.preparation import PlannedRun, PreparedRun, prepare
from retina_ray.orchestration.ray_settings import connected
from retina_ray.orchestration.resources import cluster_resources, local_resources, share_out
from retina_ray.orchestration.run_folder import RunFolder, summarise_test
from retina_ray.orchestration.stages import StageRunner
from retina_ray.orchestration.told_to_stop import told_to_stop
from retina_ray.training.artifact import Artifact

Record = dict[str, Any]


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: the run on storage.
        model: name of the final networks in the prediction table.
        summaries: of every model and task on the test split.
        artifacts: of every stage.
    """

    folder: RunFolder
    model: str
    summaries: list[TaskSummary]
    artifacts: dict[str, Artifact]


def train_driver(
    config: RunConfig, *, resume: bool = False, listener: Callable[[Record], None] = lambda record: None
) -> RunResult:
    """Train a run's stages, reusing what is finished, and write its predictions and metrics.

    Args:
        config: the whole configuration.
        resume: continue a run of the same name; without it an existing one is refused.
        listener: receives progress records, each with ``stage`` and ``kind``.

    Raises:
        StoppedError: the process was told to end; what was done is safe.
        RetinaRayError: the data set, the configuration or the cluster will not do, or a loss was not finite.
    """
    return execute(prepare(config, resume=resume), listener)


def execute(
    run: PreparedRun, listener: Callable[[Record], None], *, slots: int | None = None, trial: str = ""
) -> RunResult:
    """Train a prepared run; see `train_driver`, and `stage_runner` for slots and trial."""
    config = run.config
    with stage_runner(run, listener, slots=slots, trial=trial) as runner:
        run.folder.begin(config, run.dataset.manifest, runner.keys)
        artifacts = runner.run(run.plan.stages)
    predictions = artifacts[TEST].predictions()
    run.folder.write_predictions(predictions)
    run.folder.write_history({name: artifact.history() for name, artifact in artifacts.items()})
    summaries = summarise_test(predictions, config)
    run.folder.write_metrics(summaries)
    model = next(stage.model for stage in run.plan.stages if stage.name in run.plan.finals)
    run.folder.update(model=model, stages={name: artifact.facts for name, artifact in artifacts.items()})
    return RunResult(run.folder, model, summaries, artifacts)


@contextmanager
def stage_runner(
    run: PlannedRun, listener: Callable[[Record], None], *, slots: int | None = None, trial: str = ""
) -> Iterator[StageRunner]:
    """Connect to Ray if the run trains on it, and give what runs its stages until the block ends.

    Args:
        run: whose stages.
        listener: receives progress records.
        slots: stages that may train side by side; None: as many as the cluster holds. A trial of a search has one,
            since the others are those of its neighbours.
        trial: what log lines and metrics call it.

    Raises:
        ResourceError: the cluster cannot be reached or is too small.
    """
    runtime = run.config.runtime
    with connected(runtime) if runtime.most_workers else nullcontext(), told_to_stop() as told:
        nodes = cluster_resources(runtime) if runtime.most_workers else local_resources()
        resources = share_out(runtime, nodes)
        keys = run.keys(use_gpu=resources.use_gpu)
        slots = resources.fit(nodes) if slots is None else slots
        yield StageRunner(
            run.config, run.plan, keys, listener, resources=resources, slots=slots, told=told, trial=trial
        )
