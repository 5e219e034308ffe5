"""DeepMT-DR's low-level subnet: image super-resolution.

What lives here: the network. What does not: bicubic resampling (``resampling.py``) and its losses
(``losses/deepmt.py``, Eqs. 4 to 7).

The paper names five feature extraction layers and two up-scaling layers and leaves the rest to a supplement; layer by
layer this follows the authors' public code.

Shapes: ``B`` batch, ``h w`` low resolution, ``H W`` = scale*h, scale*w.
"""

from typing import Literal, cast

from jaxtyping import Float
from torch import Tensor, nn

from retina_ray.models.deepmt.resampling import upsample


class SuperResolution(nn.Module):
    """Enlarges photographs 2, 4 or 8 times (DeepMT-DR, section IV-A, ISR subnet).

    A convolution, residual blocks at low resolution, one transposed convolution per doubling, a convolution to RGB.

    Args:
        width: channels of every hidden layer.
        blocks: number of residual blocks, the paper's feature extraction layers.
        scale: 2, 4 or 8.
        output: how the last convolution's d becomes an image: ``tanh``, (tanh(d) + 1) / 2, is the authors';
            ``residual`` adds d to the bicubic enlargement and clips; d starts near 0, not at it, where the layers
            before it would learn nothing at first.

    Raises:
        ValueError: the scale or the output is none of these.
    """

    def __init__(
        self, *, width: int = 32, blocks: int = 5, scale: int = 4, output: Literal["tanh", "residual"] = "tanh"
    ) -> None:
        super().__init__()
        if scale not in (2, 4, 8):
            raise ValueError(f"scale must be 2, 4 or 8, got {scale}")
        if output not in ("tanh", "residual"):
            raise ValueError(f"output must be tanh or residual, got {output!r}")
        self.scale = scale
        self.output = output
        doublings = scale.bit_length() - 1
        last = nn.Conv2d(width, 3, 3, padding=1)
        if output == "residual":
            nn.init.normal_(last.weight, std=0.01)
            nn.init.zeros_(cast(Tensor, last.bias))
        self.layers = nn.Sequential(
            nn.Conv2d(3, width, 3, padding=1),
            nn.LeakyReLU(inplace=True),
            *(_ResidualBlock(width) for _ in range(blocks)),
            *(_doubling(width) for _ in range(doublings)),
            last,
        )

    def forward(self, low: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 3 H W"]:
        """Return the images (B, 3, scale*h, scale*w) in [0, 1] of images (B, 3, h, w) in [0, 1]."""
        # Back to the images' own type: under autocast the layers end in bfloat16, coarser than 8-bit pixels near 1.
        detail: Tensor = self.layers(low).to(low.dtype)
        if self.output == "tanh":
            return (detail.tanh() + 1) / 2
        return (upsample(low, self.scale) + detail).clamp(0, 1)


class _ResidualBlock(nn.Module):
    """x + conv(LeakyReLU(conv(x))), without the batch norm that costs super-resolution its range."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.body = nn.Sequential(
            nn.Conv2d(width, width, 3, padding=1), nn.LeakyReLU(inplace=True), nn.Conv2d(width, width, 3, padding=1)
        )

    def forward(self, features: Tensor) -> Tensor:
        detail: Tensor = self.body(features)
        return features + detail


def _doubling(width: int) -> nn.Sequential:
    enlarge = nn.ConvTranspose2d(width, width, 3, stride=2, padding=1, output_padding=1)
    return nn.Sequential(enlarge, nn.LeakyReLU(inplace=True))
