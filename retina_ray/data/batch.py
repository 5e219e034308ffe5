"""What a training step receives, and the one way pixels are normalised.

Letters: B rows, H W the network's input size, K grades of a task.
What is not here: where the pixels come from (``loader``).
"""

from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

MEAN = (0.485, 0.456, 0.406)
STD = (0.229, 0.224, 0.225)
"""ImageNet's statistics of R, G, B in [0, 1], which the pretrained backbones expect."""


@dataclass(frozen=True, slots=True)
class Batch:
    """One micro-batch, on its device."""

    images: Tensor
    """(B, 3, H, W) float32 or bfloat16, normalised; channels_last in memory."""

    grades: dict[str, Tensor]
    """Per task (B,) int64, -1 where the image has no grade."""

    soft_logits: dict[str, Tensor]
    """Per task (B, K) float32 teacher logits, a row of NaN where there are none; may be empty."""

    masks: Tensor | None
    """(B, 4, H, W) bool, the planes of `data.schema.LESIONS`; None where the loader reads no masks."""

    has_mask: Tensor
    """(B,) bool; False everywhere where `masks` is None."""

    weight: Tensor
    """(B,) float32: 1, or 0 for a row that is padding or damaged and must count for nothing."""

    rows: Tensor
    """(B,) int64, rows of the data set."""

    fixed_rows: tuple[int, ...] | None = None
    """`rows` on the host, where a row looks the same in every epoch, so that what is computed from it may be kept."""


def normalise(images: Tensor, dtype: torch.dtype = torch.float32) -> Tensor:
    """Return images as the networks expect them: (x / 255 - mean) / std.

    Args:
        images: uint8, (B, H, W, 3) or (B, 3, H, W), in [0, 255], RGB. Of a shape that fits both, the first is meant.
        dtype: of the result; bfloat16 is what autocast would make of float32 at the first layer, in half the memory.

    Returns:
        (B, 3, H, W) on the same device, channels_last in memory if they came that way.

    Raises:
        ValueError: for another type or shape.
    """
    if images.dtype != torch.uint8 or images.ndim != 4 or 3 not in (images.shape[1], images.shape[3]):
        raise ValueError(f"images are uint8 (B, H, W, 3) or (B, 3, H, W), not {images.dtype} {tuple(images.shape)}")
    if images.shape[3] == 3:
        images = images.permute(0, 3, 1, 2)
    scale, shift = _scale_and_shift(images.device)
    return (images * scale - shift).to(dtype)


def denormalise(images: Tensor) -> NDArray[np.uint8]:
    """Return normalised images (B, 3, H, W) as pictures (B, H, W, 3) uint8, the inverse of `normalise`."""
    scale, shift = _scale_and_shift(images.device)
    pixels = ((images + shift) / scale).round().clamp(0, 255).to(torch.uint8)
    return pixels.permute(0, 2, 3, 1).cpu().numpy()


def to_unit_range(images: Tensor) -> Tensor:
    """Return normalised images (B, 3, H, W) as colours in [0, 1], float32 or better."""
    scale, shift = _scale_and_shift(images.device)
    return ((images.to(torch.promote_types(images.dtype, torch.float32)) + shift) / (255 * scale)).clamp(0, 1)


def from_unit_range(colours: Tensor) -> Tensor:
    """Return colours (B, 3, H, W) in [0, 1] as normalised images, the inverse of `to_unit_range`."""
    scale, shift = _scale_and_shift(colours.device)
    return colours * (255 * scale) - shift


@lru_cache(maxsize=16)
def _scale_and_shift(device: torch.device) -> tuple[Tensor, Tensor]:
    """Return 1 / (255 std) and mean / std, (3, 1, 1) each, kept because copying them to a GPU waits for its queue."""
    with torch.inference_mode(False):  # kept beyond an evaluation that comes first
        mean, std = (torch.tensor(values, dtype=torch.float64).view(3, 1, 1) for values in (MEAN, STD))
        return (1 / (255 * std)).to(device, torch.float32), (mean / std).to(device, torch.float32)
