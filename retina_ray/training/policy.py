"""Decisions of the loop as pure functions of where it stands; the loop carries them out."""

from dataclasses import dataclass

from retina_ray.config import OptimConfig
from retina_ray.config_runtime import CheckpointConfig


@dataclass(frozen=True)
class Schedule:
    """When the loop does what."""

    epochs: int
    patience: int | None
    optim: OptimConfig
    checkpoint: CheckpointConfig
    log_every: int


def checkpoint_due(config: CheckpointConfig, *, steps_since: int, seconds_since: float) -> bool:
    """Return whether a checkpoint is due, by steps or by seconds since the last one."""
    by_steps = config.every_steps is not None and steps_since >= config.every_steps
    by_time = config.every_s is not None and seconds_since >= config.every_s
    return by_steps or by_time


def training_ends(*, epochs_done: int, epochs: int, best_epoch: int, patience: int | None) -> bool:
    """Return whether the training ends: all epochs are done, or validation has not improved for ``patience`` epochs."""
    return epochs_done >= epochs or (patience is not None and epochs_done - best_epoch >= patience)
