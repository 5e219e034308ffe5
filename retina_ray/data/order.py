"""Who reads what, when: index arithmetic on (seed, epoch, step, rank, micro-batch) and nothing else.

An epoch is a permutation of (seed, epoch) alone, cut into global batches; a global batch is cut into blocks of one
size, one per (micro-batch, rank), the last of them padded. So the order does not depend on the number of ranks, every
rank takes the same number of steps, and a position is one integer.
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
from numpy.typing import NDArray

from retina_ray.errors import ConfigError

Positions = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Indices (m,) into the rows of a pass, and their weights (m,): 1, or 0 for padding."""


@dataclass(frozen=True)
class Share:
    """A rank's part of every global batch.

    Raises:
        ConfigError: when the global batch has no row for each part, or the rank does not exist.
    """

    rank: int
    world: int
    global_batch: int
    """Rows per optimiser step over all ranks."""

    accumulate: int = 1
    """Micro-batches per optimiser step."""

    def __post_init__(self) -> None:
        if self.world < 1 or not 0 <= self.rank < self.world:
            raise ConfigError("this rank does not exist", f"{self.rank} of {self.world}", "count ranks from 0")
        parts = self.world * self.accumulate
        if self.accumulate < 1 or self.global_batch < parts:
            raise ConfigError(
                "the global batch cannot be shared",
                f"{self.global_batch} rows over {self.world} ranks x {self.accumulate} micro-batches",
                "choose a multiple of ranks x micro-batches",
            )

    @property
    def micro_batch(self) -> int:
        """Rows that one rank holds at a time, padding among them where the batch cannot be shared equally."""
        return -(-self.global_batch // (self.world * self.accumulate))


def micro_batches(accumulate: int, *, world: int, most: int, global_batch: int) -> int:
    """Return the micro-batches of a step with which fewer ranks hold no more rows at a time than the most do.

    Args:
        accumulate: those that the most ranks make.
        world: ranks there are now.
        most: ranks there may be.
        global_batch: rows per step, not fewer than ranks and micro-batches; where it is hardly more, they hold more.
    """
    return min(accumulate * -(-most // world), global_batch // world)


def steps_per_epoch(n: int, global_batch: int) -> int:
    """Return how many global batches hold n rows, the last one padded."""
    return -(-n // global_batch)


def train_positions(n: int, *, seed: int, epoch: int, step: int, share: Share, micro: int) -> Positions:
    """Return what a rank reads in one micro-batch of training.

    Args:
        n: rows of the pass.
        seed: of the run, not negative.
        epoch: from 0.
        step: optimiser step within the epoch, from 0.
        share: the rank's part.
        micro: micro-batch within the step, from 0.

    Returns:
        Indices (m,) in [0, n) and weights (m,). Beyond the epoch's end the permutation starts over with weight 0.

    Raises:
        ValueError: when the step or micro-batch does not exist.
    """
    indices, weight = eval_positions(n, step=step, share=share, micro=micro)
    return _permutation(n, seed, epoch)[indices], weight


def eval_positions(n: int, *, step: int, share: Share, micro: int) -> Positions:
    """Return what a rank reads in one micro-batch of an evaluation: the rows in their own order.

    Arguments, result and errors are those of `train_positions`.
    """
    if not 0 <= step < steps_per_epoch(n, share.global_batch) or not 0 <= micro < share.accumulate:
        raise ValueError(f"step {step}, micro-batch {micro} is not part of an epoch of {n} rows with {share}")
    block = micro * share.world + share.rank
    within = block * share.micro_batch + np.arange(share.micro_batch)
    positions = step * share.global_batch + within
    return positions % n, ((within < share.global_batch) & (positions < n)).astype(np.float32)


@lru_cache(maxsize=4)
def _permutation(n: int, seed: int, epoch: int) -> NDArray[np.int64]:
    """Return the order of an epoch.

    Sorting raw Philox words keeps the order the same in every version of numpy, which promises that for the words and
    not for its own shuffles.
    """
    words = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64)).random_raw(n)
    order = np.argsort(words, kind="stable")
    order.flags.writeable = False
    return order
