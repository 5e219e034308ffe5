"""How close a super-resolved image is to the HR image, image by image (DeepMT-DR, Table IV).

What lives here: PSNR and SSIM through torchmetrics, per image, so that their mean does not depend on how images are
batched or spread over processes. What does not: the losses that train super-resolution (``losses/deepmt.py``).
torchmetrics is imported where it is called: it takes seconds, and whoever serves the method never calls it.

Shapes: ``B`` batch, ``H W`` image at high resolution.
"""

import torch
from jaxtyping import Float
from torch import Tensor


def psnr(restored: Float[Tensor, "B 3 H W"], high: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the peak signal-to-noise ratio of each image in dB (DeepMT-DR, Table IV).

    ``-10 log10 mean((restored - high)**2)`` over all pixels and channels, for a peak of 1.

    Args:
        restored: (B, 3, H, W) in [0, 1].
        high: (B, 3, H, W) in [0, 1].

    Returns:
        (B,) float32; infinite for two equal images.

    Raises:
        ValueError: two different shapes.
    """
    from torchmetrics.functional.image import peak_signal_noise_ratio

    _require_same_shape(restored, high)
    return peak_signal_noise_ratio(restored.float(), high.float(), data_range=1.0, reduction="none", dim=(1, 2, 3))


def ssim(restored: Float[Tensor, "B 3 H W"], high: Float[Tensor, "B 3 H W"]) -> Float[Tensor, " B"]:
    """Return the structural similarity of each image (DeepMT-DR, Table IV; Wang et al. 2004).

    The mean over pixels and channels, with the Gaussian window of sigma 1.5 and 11 x 11 pixels of Wang et al.

    Args:
        restored: (B, 3, H, W) in [0, 1], H and W at least 6.
        high: (B, 3, H, W) in [0, 1].

    Returns:
        (B,) float32 in [-1, 1]; 1 for two equal images.

    Raises:
        ValueError: two different shapes.
    """
    from torchmetrics.functional.image import structural_similarity_index_measure

    _require_same_shape(restored, high)
    # Variances as differences of means need float32 itself: autocast would blur them, and so would the TF32 that
    # cuDNN may use where the memory is channels_last.
    with torch.autocast(restored.device.type, enabled=False):
        similarity = structural_similarity_index_measure(
            restored.float().contiguous(), high.float().contiguous(), data_range=1.0, reduction="none"
        )
    assert isinstance(similarity, Tensor)  # a pair only where the full image is asked for
    return similarity


def _require_same_shape(restored: Tensor, high: Tensor) -> None:
    if restored.shape != high.shape:
        raise ValueError(f"restored {tuple(restored.shape)} and high {tuple(high.shape)} must have one shape")
