"""The blocks that torchvision's image classifiers are rows of: what can be computed again one after the other.

What lives here: finding them. What does not: what is done with them (``training/recompute.py``).
"""

from torch import nn
from torchvision.models.maxvit import MaxVitBlock
from torchvision.models.vision_transformer import Encoder

_ROWS = (nn.Sequential, nn.ModuleList, Encoder, MaxVitBlock)


def blocks(network: nn.Module) -> list[nn.Module]:
    """Return the network's blocks, in order, such as a ResNet's residual blocks; none lies within another.

    Single layers between them belong to none. A row of nothing but layers is one block, as a VGG's is.

    Args:
        network: or a row of its parts.
    """
    found = []
    for child in network.children():
        if isinstance(child, _ROWS) and any(map(_has_parts, child.children())):
            found += blocks(child)
        elif _has_parts(child) and not _begins_in_place(child):
            found.append(child)
    return found


def _has_parts(module: nn.Module) -> bool:
    return next(module.children(), None) is not None


def _begins_in_place(module: nn.Module) -> bool:
    """Return whether it overwrites its input, from which nothing can be computed again."""
    first = next(layer for layer in module.modules() if not _has_parts(layer))
    return bool(getattr(first, "inplace", False))
