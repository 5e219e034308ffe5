"""Less memory for more time: a network whose activations are computed again when the backward pass needs them."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import nn
from torch.utils.checkpoint import checkpoint

from retina_ray.models.batch_statistics import repeated


def recompute_activations(network: nn.Module) -> None:
    """Let a network keep its input alone until the backward pass, which then runs it once more.

    In place; names in the state dict stay. Losses, gradients and running statistics are the same, and draws of dropout
    are repeated. About a third more computation; not for what is differentiated twice, nor for what overwrites its
    input.

    From then on the backward pass has the activations of all of it in memory, so it lowers a step's peak only when
    applied to each of several parts.

    Args:
        network: or, better, a part of one.
    """
    forward = network.forward

    def recomputed(*inputs: Any) -> Any:
        if not torch.is_grad_enabled():
            return forward(*inputs)
        return checkpoint(forward, *inputs, use_reentrant=False, context_fn=contexts)

    def contexts() -> tuple[AbstractContextManager[None], AbstractContextManager[None]]:
        return nullcontext(), repeated(network)

    network.forward = recomputed
