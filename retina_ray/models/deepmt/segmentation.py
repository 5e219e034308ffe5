"""DeepMT-DR's mid-level subnet: lesion segmentation.

What lives here: the U-shaped network of Eq. 1 and the lesion maps that the grader reads. What does not: its losses
(``losses/segmentation.py``, Eqs. 8 and 9) and padding of images to a fitting size (``network.py``).

Differs from the paper: it segments four lesions; a fifth plane, the background, makes the softmax a choice between
them and nothing, as in the authors' code, which also gives the layers that the paper leaves to a supplement.

Shapes: ``B`` batch, ``H W`` image, ``P`` planes: the lesions and, last, the background.
"""

from itertools import pairwise

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from retina_ray.models.deepmt.up_convolution import UpConvolution


class Segmentation(nn.Module):
    """Segments lesions at several scales and adds the maps up (DeepMT-DR, section IV-A and Eq. 1).

    ``depth`` down-transition (DT) layers with pooling between them, ``depth - 1`` up-transition (UT) layers with skip
    connections, and a 1 x 1 convolution from the last DT layer and each UT layer to one map per scale. A scale whose
    gamma is 0 has no such convolution, and UT layers that lead to no map are left out.

    Args:
        width: channels of the first DT layer, even; each further one has twice as many.
        depth: number of scales.
        classes: P, lesions and background.
        gamma: weight of each scale's map, deepest first; the authors' code has (0.4, 0.2, 0.2, 1, 0).

    Raises:
        ValueError: gamma has another length than depth or is all zero, or the width is odd.
    """

    def __init__(self, *, width: int = 64, depth: int = 5, classes: int = 5, gamma: tuple[float, ...]) -> None:
        super().__init__()
        if len(gamma) != depth or not any(gamma):
            raise ValueError(f"gamma must hold {depth} weights that are not all 0, got {gamma}")
        if width % 2:
            raise ValueError(f"width must be even, got {width}")
        self.depth = depth
        self.classes = classes
        self.gamma = gamma
        widths = [width * 2**i for i in range(depth)]
        scales = [i for i, weight in enumerate(gamma) if weight != 0]
        deepest_first = widths[::-1][: scales[-1] + 1]
        self.down = nn.ModuleList(_transition(before, after) for before, after in pairwise([3, *widths]))
        self.up = nn.ModuleList(_UpTransition(before, after) for before, after in pairwise(deepest_first))
        self.maps = nn.ModuleDict({str(i): nn.Conv2d(deepest_first[i], classes, 1) for i in scales})

    @property
    def stride(self) -> int:
        """What the sides of an image must be multiples of."""
        return int(2 ** (self.depth - 1))

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B P H W"]:
        """Return the sum of Eq. 1 before its softmax, (B, P, H, W).

        ``sum_i gamma_i * UP(S_i, 2**(depth - i))``, i = 1 the deepest, UP repeating pixels. It is summed from the
        deepest scale outwards, each step enlarging what there is so far by 2.

        Args:
            images: (B, 3, H, W), ImageNet-normalised; H and W multiples of ``stride``.

        Raises:
            ValueError: H or W is no multiple.
        """
        height, width = images.shape[2:]
        if height % self.stride or width % self.stride:
            raise ValueError(f"sides must be multiples of {self.stride}, got {height} x {width}; pad the images")
        skips: list[Tensor] = [self.down[0](images)]
        for layer in self.down[1:]:
            skips.append(layer(functional.max_pool2d(skips[-1], 2)))
        features = skips.pop()
        total: Tensor = features.new_zeros(len(images), self.classes, *features.shape[2:])
        for i, gamma in enumerate(self.gamma):
            if i > 0:
                total = functional.interpolate(total, scale_factor=2.0, mode="nearest")
            if 0 < i <= len(self.up):
                features = self.up[i - 1](features, skips.pop())
            if gamma != 0:
                total = total + gamma * self.maps[str(i)](features)
        return total


def lesion_probabilities(logits: Float[Tensor, "B P H W"]) -> Float[Tensor, "B L H W"]:
    """Return the lesion maps of Eq. 1: the softmax over the planes without the background.

    Args:
        logits: (B, P, H, W), background last.

    Returns:
        (B, P - 1, H, W) in [0, 1], sums over the planes at most 1.
    """
    return logits.softmax(dim=1)[:, :-1]


class _Parallel(nn.Module):
    """Runs layers side by side and joins their channels."""

    def __init__(self, *branches: nn.Module) -> None:
        super().__init__()
        self.branches = nn.ModuleList(branches)

    def forward(self, maps: Tensor) -> Tensor:
        return torch.cat([branch(maps) for branch in self.branches], dim=1)


class _UpTransition(nn.Module):
    """UT layer: enlarge by 2 at two kernel sizes, join with the skip connection, refine."""

    def __init__(self, in_channels: int, out_channels: int) -> None:
        super().__init__()
        half = out_channels // 2
        self.enlarge = nn.Sequential(
            _Parallel(*(UpConvolution(in_channels, half, k, bias=False) for k in (3, 5))), *_activation(out_channels)
        )
        self.refine = _transition(2 * out_channels, out_channels)

    def forward(self, deep: Tensor, skip: Tensor) -> Tensor:
        refined: Tensor = self.refine(torch.cat((skip, self.enlarge(deep)), dim=1))
        return refined


def _transition(in_channels: int, out_channels: int) -> nn.Sequential:
    """DT layer: a convolution at two kernel sizes, the multi-scale features, and one more."""
    half = out_channels // 2
    return nn.Sequential(
        _Parallel(*(nn.Conv2d(in_channels, half, k, padding=k // 2, bias=False) for k in (3, 5))),
        *_activation(out_channels),
        nn.Conv2d(out_channels, out_channels, 3, padding=1, bias=False),
        *_activation(out_channels),
    )


def _activation(channels: int) -> tuple[nn.Module, nn.Module]:
    """Batch norm, whose shift stands in for the bias of the convolution before it, and ReLU."""
    return nn.BatchNorm2d(channels), nn.ReLU(inplace=True)
