"""Forward passes that leave the running statistics of batch normalisation alone.

A training step may pass further images through a network to make a target or a map. Prediction never sees such images,
so what it normalises with must not be drawn from them.
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
    tracking = [layer for layer in network.modules() if isinstance(layer, _BatchNorm) and layer.track_running_stats]
    for layer in tracking:
        layer.track_running_stats = False
    try:
        yield
    finally:
        for layer in tracking:
            layer.track_running_stats = True
