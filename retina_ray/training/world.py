"""The place of this process among the ranks, as a value, and the few collectives the loop needs."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.parallel import DistributedDataParallel


@dataclass(frozen=True)
class World:
    """Rank, number of ranks and the device of this rank."""

    rank: int = 0
    size: int = 1
    device: torch.device = torch.device("cpu")

    @classmethod
    def detect(cls, device: torch.device) -> "World":
        """Return the world of the default process group, or a world of one where there is none."""
        if not dist.is_initialized():
            return cls(device=device)
        return cls(rank=dist.get_rank(), size=dist.get_world_size(), device=device)

    @property
    def is_main(self) -> bool:
        """Whether this rank writes files and reports progress."""
        return self.rank == 0

    def sum_(self, values: Tensor) -> Tensor:
        """Sum a tensor over the ranks in place."""
        if self.size > 1:
            dist.all_reduce(values, op=dist.ReduceOp.SUM)
        return values

    def broadcast(self, value: Any) -> Any:
        """Return rank 0's picklable value on every rank."""
        if self.size == 1:
            return value
        box = [value]
        # NCCL moves what lies on a GPU; gloo, where ranks share one, what lies beside it.
        dist.broadcast_object_list(box, src=0, device=self.device if dist.get_backend() == "nccl" else None)
        return box[0]

    def gather(self, value: Any) -> Sequence[Any]:
        """Return every rank's picklable value, by rank, on every rank."""
        if self.size == 1:
            return [value]
        values: list[Any] = [None] * self.size
        dist.all_gather_object(values, value)
        return values

    def barrier(self) -> None:
        """Wait for all ranks."""
        if self.size > 1:
            dist.barrier()

    def wrap(self, model: nn.Module) -> nn.Module:
        """Return the model with its gradients averaged over the ranks.

        Buffers follow rank 0 before each forward pass, so rank 0's copy is the whole state of the model.
        """
        if self.size == 1:
            return model
        devices = [self.device] if self.device.type == "cuda" else None
        return DistributedDataParallel(model, device_ids=devices, gradient_as_bucket_view=True)
