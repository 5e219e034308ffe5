"""Between high and low resolution without learning: how low-resolution images are made, and a baseline to undo it.

What lives here: bicubic reduction and enlargement. What does not: learned enlargement (``super_resolution.py``) and
the geometry of augmentation (``data/augment.py``).

Both use the filter of Pillow's ``BICUBIC``, the reference for published super-resolution figures.

Shapes: ``B`` batch, ``H W`` high resolution, ``h w`` = H/scale, W/scale.
"""

from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def degrade(high: Float[Tensor, "B 3 H W"], scale: int) -> Float[Tensor, "B 3 h w"]:
    """Make low-resolution images of high-resolution ones (DeepMT-DR, section V-A).

    Args:
        high: (B, 3, H, W) RGB in [0, 1].
        scale: how many times smaller the sides become, >= 1; divides H and W.

    Returns:
        (B, 3, H/scale, W/scale) in [0, 1].

    Raises:
        ValueError: the scale does not divide the sides.
    """
    height, width = high.shape[2:]
    if height % scale or width % scale:
        raise ValueError(f"images of {height} x {width} pixels cannot be made {scale} times smaller; pad or crop them")
    return _bicubic(high, height // scale, width // scale)


def upsample(low: Float[Tensor, "B 3 h w"], scale: int) -> Float[Tensor, "B 3 H W"]:
    """Enlarge images by bicubic interpolation, the baseline of super-resolution (DeepMT-DR, sections III and V).

    Args:
        low: (B, 3, h, w) RGB in [0, 1].
        scale: how many times larger the sides become, >= 1.

    Returns:
        (B, 3, scale*h, scale*w) in [0, 1].
    """
    height, width = low.shape[2:]
    return _bicubic(low, scale * height, scale * width)


def _bicubic(images: Tensor, height: int, width: int) -> Tensor:
    # antialias also chooses the cubic's constant: -0.5, as Pillow's, where torch alone takes -0.75.
    resized = functional.interpolate(images, size=(height, width), mode="bicubic", antialias=True)
    return resized.clamp(0, 1)  # a cubic overshoots at edges
