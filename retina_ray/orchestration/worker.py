"""What runs on each Ray Train worker: a stage, with Ray Train as its reporter."""

import logging
import shutil
import tempfile
import threading
from collections.abc import Generator, Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from pyarrow.fs import LocalFileSystem

# Ray Train's public function of that name makes all ranks wait for each other at every call.
from ray.train.v2._internal.execution.context import get_train_context

from retina_ray.data.store import Store
from retina_ray.errors import ConfigError, NonFiniteLossError, RetinaRayError, StoppedError
from retina_ray.orchestration.run_metrics import RunMetrics
from retina_ray.orchestration.structured_log import log_as_json
from retina_ray.training.watchdog import Watchdog

_TELL_S = 10.0

logger = logging.getLogger(__name__)


class RayReporter:
    """Reports through Ray Train; progress goes to the driver's relay.

    Args:
        stage: name that progress records carry.
        relay: the driver's relay actor.
        rank: of this worker; only the progress of rank 0 is passed on.
        metrics: are set from the progress of every rank.
        stall_s: seconds without any move after which the process tells where it is and ends.
        store: of the stage, where its checkpoints go.
    """

    def __init__(self, *, stage: str, relay: Any, rank: int, metrics: RunMetrics, stall_s: float, store: Store) -> None:
        self._stage = stage
        self._store = store
        self._relay = relay
        self._rank = rank
        self._metrics = metrics
        self.watchdog = Watchdog(stall_s, self._tell_stacks, metrics.stalled)
        self._told = threading.Event()
        relay.stopped.remote().future().add_done_callback(self._hear)

    def _hear(self, answer: Any) -> None:
        """Take the driver's word; a relay that is gone has none."""
        if answer.exception() is None:
            self._told.set()

    def progress(self, record: dict[str, Any]) -> None:
        """Push rank 0's record without waiting for an answer."""
        self._metrics.take(record)
        if self._rank == 0:
            self._relay.push.remote({"stage": self._stage, **record})

    def report(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        """Hand the metrics, and rank 0's checkpoint, to Ray Train; returns when the files are in the storage."""
        if checkpoint is None:
            ray.train.report(metrics)
            return
        upload = None if self._store.is_local else self._upload
        ray.train.report(
            metrics, checkpoint=ray.train.Checkpoint.from_directory(checkpoint), checkpoint_upload_fn=upload
        )
        shutil.rmtree(checkpoint, ignore_errors=True)

    def _upload(self, checkpoint: ray.train.Checkpoint, name: str) -> ray.train.Checkpoint:
        """Bring a checkpoint to S3, or raise; Ray (2.60) counts one that S3 refused, and deletes older ones for it."""
        from retina_ray.training.state import MANIFEST  # here for the reason in `run_worker`

        target = self._store.child(name)
        for file in sorted(Path(checkpoint.path).iterdir(), key=lambda file: file.name == MANIFEST):
            target.upload(file, file.name)
        storage = ray.train.get_context().get_storage()
        return ray.train.Checkpoint(f"{storage.experiment_fs_path}/{name}", storage.storage_filesystem)

    def leaving(self) -> bool:
        """Return whether the driver said so, or a node of this group is to be taken away; a sign of life as well."""
        self.watchdog.beat()
        return self._told.is_set() or get_train_context().preemption_context.preemption_info is not None

    def _tell_stacks(self, stacks: str, seconds: float) -> None:
        """Bring the driver what all threads of this rank were doing, or leave it in the log of this node."""
        record = {"stage": self._stage, "kind": "stalled", "rank": self._rank, "seconds": seconds}
        logger.error("no step for %g s:\n%s", seconds, stacks)
        with suppress(ray.exceptions.RayError):
            ray.get(self._relay.push.remote({**record, "stacks": stacks}), timeout=_TELL_S)

    def checkpoints(self) -> Generator[Path]:
        """Yield the committed checkpoints, newest first, fetched to this node where the storage is remote."""
        mode = ray.train.CheckpointConsistencyMode.COMMITTED
        for reported in reversed(ray.train.get_all_reported_checkpoints(consistency_mode=mode)):
            checkpoint = reported.checkpoint
            if isinstance(checkpoint.filesystem, LocalFileSystem):
                yield Path(checkpoint.path)
            else:
                with tempfile.TemporaryDirectory(prefix="retina-ray-restore-") as scratch:
                    yield Path(checkpoint.to_directory(f"{scratch}/{Path(checkpoint.path).name}"))


def run_worker(payload: Mapping[str, Any]) -> RetinaRayError | None:
    """Run this rank's part of a stage.

    Args:
        payload: ``job``, a `StageJob` as plain values, ``about``, names of the run and trial, and ``relay``, the
            driver's relay actor.

    Returns:
        An error that every rank meets alike, as a value: raised, it would be taken for a failure worth a restart.
    """
    # Imported and built here: Ray's controller unpickles this function and its payload as well, and would spend seconds
    # of a start on importing what only workers use.
    from retina_ray.methods.base import Stage
    from retina_ray.training.stage import StageJob, StageRun
    from retina_ray.training.world import World

    job = StageJob(**{**payload["job"], "stage": Stage(**payload["job"]["stage"])})
    world = World.detect(ray.train.torch.get_device())
    about = {**payload["about"], "stage": job.stage.name, "rank": str(world.rank)}
    log_as_json(about)
    stall_s = job.config["runtime"]["stall_s"]
    reporter = RayReporter(
        stage=job.stage.name,
        relay=payload["relay"],
        rank=world.rank,
        metrics=RunMetrics(about),
        stall_s=stall_s,
        store=Store(job.output),
    )
    try:
        with reporter.watchdog.watching():
            StageRun(job, world=world, reporter=reporter).execute()
    except (ConfigError, NonFiniteLossError, StoppedError) as error:
        return error
    return None
