"""Forward passes that leave the running statistics of batch normalisation alone.

A training step may pass further images through a network to make a target or a map. Prediction never sees such images,
so what it normalises with must not be drawn from them. Nor must a batch count twice that is passed through twice.
"""

import contextlib
from collections.abc import Iterator

from torch import nn
from torch.nn.modules.batchnorm import _BatchNorm


@contextlib.contextmanager
def unrecorded(network: nn.Module) -> Iterator[None]:
    """Let forward passes in here normalise as ever, and record nothing of it.

    In training mode layers use their batch's statistics, in evaluation mode the running ones; the latter, and the count
    of batches behind them, stay as they are. Contexts may be nested.

    Args:
        network: holds the layers.
    """
    tracking = _tracking(network)
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True


@contextlib.contextmanager
def repeated(network: nn.Module) -> Iterator[None]:
    """Let forward passes in here compute what earlier ones did, tensor by tensor, and record nothing once more.

    Unlike `unrecorded` it leaves each layer its running statistics, since autograd compares what both passes save.

    Args:
        network: holds the layers.
    """
    tracking = _tracking(network)
    before = [(layer, layer.momentum, layer.num_batches_tracked) for layer in tracking]
    for layer in tracking:
        layer.momentum, layer.num_batches_tracked = 0.0, None
    try:
        yield
    finally:
        for layer, momentum, count in before:
            layer.momentum, layer.num_batches_tracked = momentum, count


def _tracking(network: nn.Module) -> list[_BatchNorm]:
    return [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
