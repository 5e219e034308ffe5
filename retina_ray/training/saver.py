"""When the state of a training is saved, on all ranks at the same step, and how it gets to the reporter."""

import tempfile
import time
from pathlib import Path
from typing import Any

from retina_ray.config_runtime import CheckpointConfig
from retina_ray.errors import StoppedError
from retina_ray.training.ballot import Ballot
from retina_ray.training.clock import Clock
from retina_ray.training.policy import checkpoint_due
from retina_ray.training.reporter import Reporter
from retina_ray.training.state import TrainState, save


class Saver:
    """Reports for a training, with or without a checkpoint of it.

    Args:
        state: what is saved.
        policy: how often.
        reporter: receives the checkpoints, and knows whether this process is to leave.
        clock: is told how long it takes.
    """

    def __init__(self, state: TrainState, *, policy: CheckpointConfig, reporter: Reporter, clock: Clock) -> None:
        self._state = state
        self._policy = policy
        self._reporter = reporter
        self._clock = clock
        self._ballot = Ballot(state.engine.world)
        self._step = state.progress.step
        self._time = time.monotonic()

    def restored(self) -> None:
        """Count from the present step, which is in a checkpoint."""
        self._step = self._state.progress.step

    def look(self) -> tuple[bool, bool]:
        """Return whether a checkpoint is due, and whether the ranks are to leave; all ranks ask, and hear the same."""
        seconds = time.monotonic() - self._time
        wish = checkpoint_due(self._policy, steps_since=0, seconds_since=seconds)
        by_time, leaving = self._ballot.cast(wish, self._reporter.leaving())
        steps = self._state.progress.step - self._step
        # A wish that is a step old may have been fulfilled meanwhile.
        return (by_time and steps > 1) or checkpoint_due(self._policy, steps_since=steps, seconds_since=0.0), leaving

    def report(self, metrics: dict[str, Any], *, with_checkpoint: bool, leave: bool) -> None:
        """Report, on all ranks; rank 0 writes the checkpoint.

        Raises:
            StoppedError: when all is reported, if the ranks are to leave.
        """
        with self._clock.phase("checkpoint" if with_checkpoint else "report"):
            folder = None
            if with_checkpoint:
                self._step, self._time = self._state.progress.step, time.monotonic()
                if self._state.engine.world.is_main:
                    folder = save(self._state, Path(tempfile.mkdtemp(prefix="retina-ray-checkpoint-")))
            self._reporter.report(metrics, folder)
        if leave:
            raise StoppedError(self._state.progress.step)
