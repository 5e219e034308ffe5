"""Spatial pyramid pooling: features of one length from maps of any size (He et al. 2015; DeepMT-DR, section IV-A).

What lives here: the pooling. What does not: the layers after it (``grading.py``).

Shapes: ``B`` batch, ``C`` channels, ``h w`` map, ``F`` features = C * sum of level**2.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn


class SpatialPyramidPooling(nn.Module):
    """Takes the maxima of each channel over grids of n x n bins, finest first.

    Bin i of n spans rows ``floor(i h / n)`` to ``ceil((i + 1) h / n)``, columns alike, so bins cover any map; on a map
    smaller than the grid they share pixels. Equal maxima within a bin share the gradient.

    Args:
        levels: n of each grid; (4, 2, 1) gives the 21 bins of the authors' code.
    """

    def __init__(self, levels: tuple[int, ...] = (4, 2, 1)) -> None:
        super().__init__()
        self.levels = levels

    @property
    def num_bins(self) -> int:
        """Features per channel."""
        return sum(level * level for level in self.levels)

    def forward(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B F"]:
        """Return features (B, C * num_bins) of maps (B, C, h, w) of any size."""
        # As adaptive_max_pool2d, whose gradient has no deterministic kernel on CUDA.
        grids = (_binned_maxima(_binned_maxima(maps, level, dim=2), level, dim=3) for level in self.levels)
        return torch.cat([grid.flatten(1) for grid in grids], dim=1)


def _binned_maxima(maps: Tensor, count: int, *, dim: int) -> Tensor:
    """Divide one dimension into bins and keep the maximum of each."""
    size = maps.shape[dim]
    bounds = [(i * size // count, -(-(i + 1) * size // count)) for i in range(count)]
    return torch.stack([maps.narrow(dim, first, end - first).amax(dim) for first, end in bounds], dim)
