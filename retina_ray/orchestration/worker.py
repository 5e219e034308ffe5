"""What runs on each Ray Train worker: a stage, with Ray Train as its reporter."""

import shutil
import tempfile
from collections.abc import Generator, Mapping
from pathlib import Path
from typing import Any

import ray.train
import ray.train.torch
from pyarrow.fs import LocalFileSystem

from retina_ray.errors import ConfigError, NonFiniteLossError, RetinaRayError


class RayReporter:
    """Reports through Ray Train; progress goes to the driver's relay.

    Args:
        stage: name that progress records carry.
        relay: the driver's relay actor.
        is_main: whether this is rank 0, the only one whose progress is passed on.
    """

    def __init__(self, *, stage: str, relay: Any, is_main: bool) -> None:
        self._stage = stage
        self._relay = relay
        self._is_main = is_main

    def progress(self, record: dict[str, Any]) -> None:
        """Push rank 0's record without waiting for an answer."""
        if self._is_main:
            self._relay.push.remote({"stage": self._stage, **record})

    def report(self, metrics: dict[str, Any], checkpoint: Path | None) -> None:
        """Hand the metrics, and rank 0's checkpoint, to Ray Train; returns when the files are in the storage."""
        if checkpoint is None:
            ray.train.report(metrics)
            return
        ray.train.report(metrics, checkpoint=ray.train.Checkpoint.from_directory(checkpoint))
        shutil.rmtree(checkpoint, ignore_errors=True)

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
        payload: ``job``, a `StageJob` as plain values, and ``relay``, the driver's relay actor.

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
    reporter = RayReporter(stage=job.stage.name, relay=payload["relay"], is_main=world.is_main)
    try:
        StageRun(job, world=world, reporter=reporter).execute()
    except (ConfigError, NonFiniteLossError) as error:
        return error
    return None
