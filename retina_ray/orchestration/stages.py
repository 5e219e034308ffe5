"""Bring every stage of a plan to a finished artifact: reuse, resume or run it, side by side where there is room."""

import errno
import threading
from collections.abc import Mapping, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import nullcontext
from dataclasses import asdict
from functools import partial
from pathlib import Path
from typing import Any, NoReturn, cast

import ray
import torch
from ray.train.torch import TorchConfig

# From their own modules: type checkers take the names in ray.train for those of its first version.
from ray.train.v2.api.config import CheckpointConfig, FailureConfig, LoggingConfig, ScalingConfig
from ray.train.v2.api.config import RunConfig as RayRunConfig
from ray.train.v2.api.exceptions import TrainingFailedError
from ray.train.v2.api.result import Result as RayResult
from ray.train.v2.torch.torch_trainer import TorchTrainer

from retina_ray.config import RunConfig
from retina_ray.config_runtime import RuntimeConfig
from retina_ray.data.store import Store, locked
from retina_ray.errors import RetinaRayError, StoppedError
from retina_ray.methods.base import Plan, Stage
from retina_ray.orchestration.failures import TellFailures
from retina_ray.orchestration.progress import Listener, relay_to
from retina_ray.orchestration.ray_settings import COLLECTIVE_MARGIN_S, START_ATTEMPTS, WORKER_ENVIRONMENT
from retina_ray.orchestration.resources import WorkerResources
from retina_ray.orchestration.run_metrics import RunMetrics
from retina_ray.orchestration.snapshot import mend
from retina_ray.orchestration.stalls import Stalls
from retina_ray.orchestration.worker import run_worker
from retina_ray.training.artifact import Artifact, read_artifact
from retina_ray.training.reporter import FolderReporter
from retina_ray.training.stage import StageJob, StageRun
from retina_ray.training.world import World

_LOOK_S = 0.2
"""How often it is looked whether the stages are to stop."""

_RESIZE_S, _SAVING_S = 60.0, 15.0
"""How often elastic workers look for more room, at least, and how long after a checkpoint that was due."""

_OF_A_STORAGE = {errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EIO, errno.EACCES, errno.EPERM, None}
"""Numbers of a disk's errors; those of S3 have none."""

_LEAVE_S = 45.0
"""For workers to save what they have; whoever stops this process has less patience than that."""


class StageRunner:
    """Runs the stages of one plan.

    Args:
        config: the run's configuration.
        plan: its stages.
        keys: artifact key by stage name; also an attribute.
        listener: receives progress records, from any thread.
        resources: share of each worker.
        slots: stages that may train side by side on workers of their own, 1 or more.
        told: set when the stages are to stop, with checkpoints.
        trial: of a search, if this is one; for log lines and metrics.
    """

    def __init__(
        self,
        config: RunConfig,
        plan: Plan,
        keys: Mapping[str, str],
        listener: Listener,
        *,
        resources: WorkerResources,
        slots: int,
        told: threading.Event,
        trial: str = "",
    ) -> None:
        self._config = config
        self._plan = plan
        self.keys = keys
        self._listener = Stalls(listener, self._store_of)
        self._resources = resources
        self._slots = slots
        self._told = told
        self._about = {"run": config.name, "trial": trial}
        self._artifacts = Store(config.runtime.storage).child("artifacts")

    def run(self, stages: Sequence[Stage]) -> dict[str, Artifact]:
        """Return the finished artifact of every stage.

        Args:
            stages: of the plan, each after those it needs.

        Raises:
            StoppedError: they were told to stop.
            RetinaRayError: as raised by a stage; stages that finished stay finished.
        """
        if self._resources.workers == 0:
            return {stage.name: self._ensure(stage, self._run_in_process) for stage in stages}
        with relay_to(self._listener) as relay:
            return self._run_side_by_side(stages, relay)

    def _run_side_by_side(self, stages: Sequence[Stage], relay: Any) -> dict[str, Artifact]:
        """Run each stage as soon as those it needs are finished and a slot is free."""
        run = partial(self._run_on_ray, relay=relay)
        finished: dict[str, Artifact] = {}
        waiting = list(stages)
        running: dict[Future[Artifact], Stage] = {}
        pool = ThreadPoolExecutor(max_workers=self._slots, thread_name_prefix="stage")
        try:
            while waiting or running:
                if self._told.is_set():
                    self._leave(running, relay)
                for stage in [stage for stage in waiting if all(need in finished for need in stage.needs)]:
                    waiting.remove(stage)
                    running[pool.submit(self._ensure, stage, run)] = stage
                done, _ = wait(running, timeout=_LOOK_S, return_when=FIRST_COMPLETED)
                for future in done:
                    finished[running.pop(future).name] = future.result()
        finally:
            # After an error or Ctrl-C nothing is waited for: disconnecting from Ray ends what still runs.
            pool.shutdown(wait=False, cancel_futures=True)
        return {stage.name: finished[stage.name] for stage in stages}

    def _leave(self, running: Mapping["Future[Artifact]", Stage], relay: Any) -> NoReturn:
        """Tell the workers to stop, and end when they have.

        Raises:
            StoppedError: as a stage raised it, one with a checkpoint rather than another.
            BaseException: a stage failed instead.
        """
        relay.stop.remote()
        done, _ = wait(running, timeout=_LEAVE_S)
        errors = [error for future in done if (error := future.exception()) is not None]
        failed = [error for error in errors if not isinstance(error, StoppedError)]
        stopped = [error for error in errors if isinstance(error, StoppedError)]
        raise next(iter(failed), None) or max(stopped, key=lambda error: error.step or 0, default=StoppedError(None))

    def _ensure(self, stage: Stage, run: Any) -> Artifact:
        store = self._store(stage)
        # One process at a time works on an artifact; another waits, and then finds it finished.
        with locked(store.local_path / ".lock") if store.is_local else nullcontext():
            artifact = read_artifact(store)
            kind = "reused" if artifact else "started"
            self._listener({"stage": stage.name, "kind": kind, "artifact": store.uri})
            if artifact is None:
                run(stage)
                artifact = read_artifact(store)
        if artifact is None:
            raise AssertionError(f"stage {stage.name} ended without an artifact in {store.uri}")
        self._listener({"stage": stage.name, "kind": "finished", **artifact.facts})
        return artifact

    def _run_in_process(self, stage: Stage) -> None:
        device = torch.device("cuda" if self._resources.use_gpu else "cpu")
        store = self._store(stage)
        # Checkpoints of a training without Ray are for this machine alone, so remote storage does not hold them.
        home = store.local_path if store.is_local else Path(self._config.runtime.cache).expanduser() / store.name
        folder = home / "checkpoints"
        reporter = FolderReporter(
            folder,
            keep=self._config.runtime.checkpoint.keep,
            listener=self._with_metrics(stage),
            told=self._told.is_set,
        )
        StageRun(self._job(stage), world=World(device=device), reporter=reporter).execute()

    def _with_metrics(self, stage: Stage) -> Listener:
        """Return what takes the records of a stage in this process, and sets its metrics where Ray exports them."""
        metrics = RunMetrics({**self._about, "stage": stage.name, "rank": "0"}) if ray.is_initialized() else None

        def take(record: dict[str, Any]) -> None:
            if metrics is not None:
                metrics.take(record)
            self._listener({"stage": stage.name, **record})

        return take

    def _run_on_ray(self, stage: Stage, relay: Any) -> None:
        """Train on workers; where nodes are taken away from under them, go on with what the cluster has then.

        Raises:
            StoppedError: this process was told to stop.
            RetinaRayError: as raised by the stage.
        """
        store = self._store(stage)
        while True:
            mend(store)
            error = self._fit(stage, relay, store)
            if error is None:
                return
            if self._told.is_set() or not isinstance(error, StoppedError):
                raise error
            self._listener({"stage": stage.name, "kind": "moving", "step": error.step})

    def _fit(self, stage: Stage, relay: Any, store: Store) -> RetinaRayError | None:
        """Run one group of workers after another until one comes to an end, and return what it ended with."""
        runtime, resources = self._config.runtime, self._resources
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"job": asdict(self._job(stage)), "about": self._about, "relay": relay},
            torch_config=torch_config(runtime, resources),
            scaling_config=scaling_config(runtime, resources),
            run_config=RayRunConfig(
                name=self.keys[stage.name],
                storage_path=self._artifacts.uri,
                checkpoint_config=CheckpointConfig(num_to_keep=runtime.checkpoint.keep),
                failure_config=FailureConfig(
                    max_failures=runtime.max_failures, controller_failure_limit=START_ATTEMPTS
                ),
                callbacks=[TellFailures(stage.name, relay)],
                worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            return cast("RetinaRayError | None", cast(RayResult, trainer.fit()).return_value)
        except TrainingFailedError as failure:
            raise self._listener.error(stage.name) or _cause(failure, store) from failure

    def _job(self, stage: Stage) -> StageJob:
        stages = {each.name: each for each in self._plan.stages}
        return StageJob(
            config=self._config.model_dump(mode="json"),
            stage=stage,
            output=self._store(stage).uri,
            inputs={name: self._store(stages[name]).uri for name in stage.needs},
            threads=self._resources.cpus,
        )

    def _store_of(self, name: str) -> Store:
        return self._artifacts.child(self.keys[name])

    def _store(self, stage: Stage) -> Store:
        return self._artifacts.child(self.keys[stage.name])


def scaling_config(runtime: RuntimeConfig, resources: WorkerResources) -> ScalingConfig:
    """Return how many workers there are, and what each has."""
    return ScalingConfig(
        num_workers=(resources.fewest, resources.workers) if resources.is_elastic else resources.workers,
        # Whoever joins costs what was learnt since the last checkpoint, so one has just been made by then.
        elastic_resize_monitor_interval_s=max(_RESIZE_S, (runtime.checkpoint.every_s or 0.0) + _SAVING_S),
        use_gpu=resources.use_gpu,
        resources_per_worker={"CPU": resources.cpus, **({"GPU": resources.gpus} if resources.use_gpu else {})},
    )


def torch_config(runtime: RuntimeConfig, resources: WorkerResources) -> TorchConfig:
    """Return how ranks talk: over NCCL on GPUs of their own, else over gloo, since NCCL refuses two on one GPU."""
    return TorchConfig(
        backend="gloo" if resources.shares_gpus else None,
        # The watchdog has its say first: it knows what the ranks are doing.
        timeout_s=round(runtime.stall_s + COLLECTIVE_MARGIN_S),
    )


def _cause(failure: TrainingFailedError, store: Store) -> Exception:
    """Return the product's own error behind a failed training, if the workers met one, or what their storage said."""
    for error in getattr(failure, "worker_failures", {}).values():
        cause = getattr(error, "cause", error)
        if isinstance(cause, RetinaRayError):
            return cause
        if isinstance(cause, OSError) and cause.errno in _OF_A_STORAGE:
            return store.explained(cause)
    return failure
