"""Resume from the newest checkpoint that can be trusted."""

import logging
from itertools import islice

from retina_ray.errors import CheckpointError
from retina_ray.training.reporter import Reporter
from retina_ray.training.state import TrainState, load, verify

logger = logging.getLogger(__name__)


def restore(state: TrainState, reporter: Reporter) -> int | None:
    """Load the newest checkpoint that matches its manifest; rank 0 decides which, all ranks load it.

    Returns:
        How many newer, damaged checkpoints were passed over (each is named in the log), or None where there was none
        to load; then the present weights count as the best so far.
    """
    world = state.engine.world
    position = world.broadcast(_newest_verified(reporter) if world.is_main else None)
    if position is None:
        state.keep_best()
        return None
    load(state, next(islice(reporter.checkpoints(), position, None)))
    return int(position)


def _newest_verified(reporter: Reporter) -> int | None:
    for position, folder in enumerate(reporter.checkpoints()):
        try:
            verify(folder)
        except CheckpointError as error:
            logger.warning("skipped: %s", error)
            continue
        return position
    return None
