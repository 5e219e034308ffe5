"""Bring every stage of a plan to a finished artifact: reuse, resume or run it, side by side where there is room."""

import fcntl
import json
from collections.abc import Iterator, Mapping
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from contextlib import contextmanager
from dataclasses import asdict
from typing import Any, cast

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
from retina_ray.data.store import Store
from retina_ray.errors import RetinaRayError
from retina_ray.methods.base import Plan, Stage
from retina_ray.orchestration.progress import Listener, relay_to
from retina_ray.orchestration.ray_settings import COLLECTIVE_TIMEOUT_S, WORKER_ENVIRONMENT
from retina_ray.orchestration.resources import WorkerResources, local_cpus, share_out, side_by_side
from retina_ray.orchestration.worker import run_worker
from retina_ray.training.artifact import Artifact, read_artifact
from retina_ray.training.reporter import FolderReporter
from retina_ray.training.stage import StageJob, StageRun
from retina_ray.training.world import World


class StageRunner:
    """Runs the stages of one plan.

    Args:
        config: the run's configuration.
        plan: its stages.
        keys: artifact key by stage name.
        listener: receives progress records, from any thread.
    """

    def __init__(self, config: RunConfig, plan: Plan, keys: Mapping[str, str], listener: Listener) -> None:
        self._config = config
        self._plan = plan
        self._keys = keys
        self._listener = listener
        self._artifacts = Store(config.runtime.storage).child("artifacts")

    def run(self) -> dict[str, Artifact]:
        """Return the finished artifact of every stage.

        Raises:
            RetinaRayError: as raised by a stage; stages that finished stay finished.
        """
        if self._config.runtime.workers == 0:
            return {stage.name: self._ensure(stage, self._run_in_process) for stage in self._plan.stages}
        cluster = ray.cluster_resources()
        resources = share_out(self._config.runtime, cluster)
        with relay_to(self._listener) as relay:
            return self._run_side_by_side(
                side_by_side(resources, cluster), lambda stage: self._run_on_ray(stage, resources, relay)
            )

    def _run_side_by_side(self, slots: int, run: Any) -> dict[str, Artifact]:
        """Run each stage as soon as those it needs are finished and a slot is free."""
        finished: dict[str, Artifact] = {}
        waiting = list(self._plan.stages)
        running: dict[Future[Artifact], Stage] = {}
        pool = ThreadPoolExecutor(max_workers=slots, thread_name_prefix="stage")
        try:
            while waiting or running:
                for stage in [stage for stage in waiting if all(need in finished for need in stage.needs)]:
                    waiting.remove(stage)
                    running[pool.submit(self._ensure, stage, run)] = stage
                done, _ = wait(running, return_when=FIRST_COMPLETED)
                for future in done:
                    finished[running.pop(future).name] = future.result()
        finally:
            # After an error or Ctrl-C nothing is waited for: disconnecting from Ray ends what still runs.
            pool.shutdown(wait=False, cancel_futures=True)
        return {stage.name: finished[stage.name] for stage in self._plan.stages}

    def _ensure(self, stage: Stage, run: Any) -> Artifact:
        store = self._store(stage)
        with _locked(store):
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
        device = torch.device("cuda" if self._config.runtime.use_gpu and torch.cuda.is_available() else "cpu")
        folder = self._store(stage).local_path / "checkpoints"
        reporter = FolderReporter(
            folder,
            keep=self._config.runtime.checkpoint.keep,
            listener=lambda record: self._listener({"stage": stage.name, **record}),
        )
        StageRun(self._job(stage, local_cpus()), world=World(device=device), reporter=reporter).execute()

    def _run_on_ray(self, stage: Stage, resources: WorkerResources, relay: Any) -> None:
        runtime, store = self._config.runtime, self._store(stage)
        collect_garbage(store)
        trainer = TorchTrainer(
            run_worker,
            train_loop_config={"job": asdict(self._job(stage, resources.cpus)), "relay": relay},
            torch_config=TorchConfig(timeout_s=COLLECTIVE_TIMEOUT_S),
            scaling_config=ScalingConfig(
                num_workers=resources.workers,
                use_gpu=resources.use_gpu,
                resources_per_worker={"CPU": resources.cpus, **({"GPU": 1} if resources.use_gpu else {})},
            ),
            run_config=RayRunConfig(
                name=self._keys[stage.name],
                storage_path=self._artifacts.uri,
                checkpoint_config=CheckpointConfig(num_to_keep=runtime.checkpoint.keep),
                failure_config=FailureConfig(max_failures=runtime.max_failures, controller_failure_limit=3),
                worker_runtime_env={"env_vars": WORKER_ENVIRONMENT},
                logging_config=LoggingConfig(log_level="ERROR"),
            ),
        )
        try:
            error = cast(RayResult, trainer.fit()).return_value
        except TrainingFailedError as failure:
            raise _cause(failure) from failure
        if error is not None:
            raise error

    def _job(self, stage: Stage, threads: int) -> StageJob:
        stages = {each.name: each for each in self._plan.stages}
        return StageJob(
            config=self._config.model_dump(mode="json"),
            stage=stage,
            output=self._store(stage).uri,
            inputs={name: self._store(stages[name]).uri for name in stage.needs},
            threads=threads,
        )

    def _store(self, stage: Stage) -> Store:
        return self._artifacts.child(self._keys[stage.name])


def collect_garbage(store: Store) -> list[str]:
    """Delete checkpoint folders that Ray Train's snapshot does not name, left behind by a kill or a full disk.

    Returns:
        Their names.
    """
    snapshot = "checkpoint_manager_snapshot.json"
    state = json.loads(store.read_bytes(snapshot)) if store.exists(snapshot) else {"checkpoint_results": []}
    named = {result["checkpoint_dir_name"] for result in state["checkpoint_results"]}
    strays = [name for name in store.list() if name.startswith("checkpoint_") and name not in {*named, snapshot}]
    for name in strays:
        store.child(name).delete()
    return strays


@contextmanager
def _locked(store: Store) -> Iterator[None]:
    """Let one process at a time work on an artifact; another waits, and then finds it finished."""
    if not store.is_local:
        yield
        return
    folder = store.local_path
    folder.mkdir(parents=True, exist_ok=True)
    with (folder / ".lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _cause(failure: TrainingFailedError) -> Exception:
    """Return the product's own error behind a failed training, if one of the workers met one."""
    for error in getattr(failure, "worker_failures", {}).values():
        cause = getattr(error, "cause", error)
        if isinstance(cause, RetinaRayError):
            return cause
    return failure
