"""The loop's decisions as pure functions."""

import pytest

from retina_ray.config_runtime import CheckpointConfig
from retina_ray.training.policy import checkpoint_due, training_ends


@pytest.mark.parametrize(
    ("every_s", "every_steps", "seconds", "steps", "due"),
    [
        (300.0, None, 299.9, 10**6, False),
        (300.0, None, 300.0, 0, True),
        (None, 5, 1e9, 4, False),
        (None, 5, 0.0, 5, True),
        (None, 5, 0.0, 6, True),
        (300.0, 5, 300.0, 1, True),
        (300.0, 5, 1.0, 5, True),
        (300.0, 5, 1.0, 1, False),
        (None, None, 1e9, 10**9, False),
    ],
)
def test_a_checkpoint_is_due_by_time_or_by_steps(
    every_s: float | None, every_steps: int | None, seconds: float, steps: int, due: bool
) -> None:
    config = CheckpointConfig(every_s=every_s, every_steps=every_steps)
    assert checkpoint_due(config, steps_since=steps, seconds_since=seconds) is due


@pytest.mark.parametrize(
    ("done", "best", "patience", "ends"),
    [
        (7, 7, None, False),
        (8, 1, None, True),
        (5, 3, 3, False),
        (6, 3, 3, True),
        (2, 1, 1, True),
        (1, 1, 1, False),
        (3, 0, 3, True),  # the criterion was never a number
        (8, 8, 3, True),
    ],
)
def test_training_ends_with_its_epochs_or_its_patience(done: int, best: int, patience: int | None, ends: bool) -> None:
    assert training_ends(epochs_done=done, epochs=8, best_epoch=best, patience=patience) is ends
