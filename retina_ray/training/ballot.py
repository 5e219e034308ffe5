"""How ranks come to do the same thing at the same step, without waiting for each other."""

from typing import Any

import torch
import torch.distributed as dist

from retina_ray.training.world import World


class Ballot:
    """Adds up the wishes of all ranks while the next step computes.

    What any rank wishes at one step is known to all at the next, so none has to wait for it; a world of one hears of
    its own wishes at once.

    Args:
        world: this rank; all ranks make their ballots in the same order.
    """

    def __init__(self, world: World) -> None:
        self._world = world
        # Wishes stay on the CPU: waiting for them must not mean waiting for what a GPU still computes.
        apart = world.size > 1 and world.device.type == "cuda"
        self._group: Any = dist.new_group(backend="gloo") if apart else None
        self._cast: tuple[Any, torch.Tensor] | None = None

    def cast(self, *wishes: bool) -> tuple[bool, ...]:
        """Give this rank's wishes, and return for each whether any rank had it at the last call, false at the first.

        All ranks call it equally often, with as many wishes.
        """
        if self._world.size == 1:
            return wishes
        before, values = self._cast, torch.tensor(wishes, dtype=torch.int32)
        self._cast = (dist.all_reduce(values, group=self._group, async_op=True), values)
        if before is None:
            return (False,) * len(wishes)
        work, counted = before
        work.wait()
        return tuple(bool(count) for count in counted.tolist())
