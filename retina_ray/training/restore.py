"""Resume from the newest checkpoint that can be trusted."""

import logging
from contextlib import closing
from dataclasses import dataclass
from itertools import islice

from retina_ray.errors import CheckpointError
from retina_ray.training.reporter import Reporter
from retina_ray.training.state import TrainState, load, verify

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Restored:
    """What a training goes on from.

    Attributes:
        found: whether there was a checkpoint to load.
        damaged: names of the newer ones that were passed over.
    """

    found: bool
    damaged: tuple[str, ...]


def restore(state: TrainState, reporter: Reporter) -> Restored:
    """Load the newest checkpoint that matches its manifest; rank 0 decides which, all ranks load it.

    Where there is none, the present weights count as the best so far. Damaged ones are named in the log too.
    """
    world = state.engine.world
    choice: Restored = world.broadcast(_newest_verified(reporter) if world.is_main else None)
    if not choice.found:
        state.keep_best()
        return choice
    with closing(reporter.checkpoints()) as folders:
        load(state, next(islice(folders, len(choice.damaged), None)))
    return choice


def _newest_verified(reporter: Reporter) -> Restored:
    damaged: list[str] = []
    with closing(reporter.checkpoints()) as folders:
        for folder in folders:
            try:
                verify(folder)
            except CheckpointError as error:
                logger.warning("skipped: %s", error)
                damaged.append(folder.name)
                continue
            return Restored(found=True, damaged=tuple(damaged))
    return Restored(found=False, damaged=tuple(damaged))
