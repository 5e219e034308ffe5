"""Nearest-neighbour enlargement and the convolution after it, as one convolution on the small map.

Enlarging by 2 repeats every pixel, so of the k x k pixels under the kernel neighbours are equal and their weights can
be added beforehand. Written out, output pixel n is a sum over input pixels i of
``x[i] * (w[2i - n + p] + w[2i + 1 - n + p])`` with padding p = (k - 1) / 2 and w = 0 outside its k taps (two
dimensions alike): a transposed convolution of stride 2 whose k + 1 taps are sums of neighbouring taps of w, mirrored.
It takes ((k + 1) / 2)**2 multiplications per output where the two steps take k**2 (2.25 times fewer for k = 3, 2.78
times for k = 5), and the enlarged map never exists. Borders included, only the rounding differs.

Shapes: ``B`` batch, ``C`` and ``D`` channels in and out, ``h w`` small map, ``H W`` = 2h, 2w.
"""

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional


class UpConvolution(nn.Conv2d):
    """Equals ``nn.Conv2d(..., padding=(k - 1) / 2)`` of the input enlarged 2 times by ``nearest``.

    Its parameters are that convolution's, initialised and stored alike: weight (D, C, k, k) and bias (D,). Each
    forward derives the taps from them, which costs more than it saves on the smallest maps (8 x 8 pixels).

    Args:
        in_channels: C.
        out_channels: D.
        kernel_size: k, odd.
        bias: whether a bias is added.

    Raises:
        ValueError: k is even.
    """

    spread: Tensor

    def __init__(self, in_channels: int, out_channels: int, kernel_size: int, *, bias: bool = True) -> None:
        if kernel_size % 2 == 0:
            raise ValueError(f"kernel_size must be odd, got {kernel_size}")
        super().__init__(in_channels, out_channels, kernel_size, padding=kernel_size // 2, bias=bias)
        # Tap t of w goes to taps k - 1 - t and k - t of the transposed convolution, rows and columns alike.
        spread = torch.ones(kernel_size, kernel_size + 1).tril(1).triu().flip(0)
        self.register_buffer("spread", torch.kron(spread, spread), persistent=False)

    def forward(self, maps: Float[Tensor, "B C h w"]) -> Float[Tensor, "B D H W"]:
        """Return (B, D, 2h, 2w) of maps (B, C, h, w)."""
        k = self.kernel_size[0]
        taps = (self.weight.flatten(2) @ self.spread).reshape(*self.weight.shape[:2], k + 1, k + 1)
        return functional.conv_transpose2d(maps, taps.transpose(0, 1), self.bias, stride=2, padding=k // 2)
