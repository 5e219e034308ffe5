"""Augmentation as data: one 2x3 matrix per (seed, epoch, row). No images here.

A matrix maps a point of the OUTPUT image to the point of the INPUT image that is sampled there. Points are continuous
coordinates (x to the right, y down) in which pixel i covers [i, i + 1), so its centre is at i + 0.5 and the corners of
an image of size S are 0 and S. DALI's ``warp_affine`` reads matrices that way; OpenCV counts from pixel centres and
needs `to_pixel_centres`.
"""

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

_DOMAIN = 1
"""Last word of the Philox counter; ``data.order`` draws the permutation of the same (seed, epoch) with 0."""


@dataclass(frozen=True)
class Augmentation:
    """SALL's augmentation (section IV-A), each part of which can be switched off with 0 or False.

    Differs from the paper: rotations are by 0, 90, 180 or 270 degrees, where it prints "0, 90, 180 or 360".
    """

    scale: float = 0.1
    """Magnification is uniform in 1 +- scale."""

    rotate90: bool = True
    """Rotate by a multiple of 90 degrees, uniform over the four."""

    flip: bool = True
    """Flip horizontally and flip vertically, each with probability one half."""

    skew: float = 0.2
    """Horizontal shear is uniform in +- skew (pixels of x per pixel of y); the rotation turns it vertical as often."""

    @property
    def changes(self) -> bool:
        """Whether it changes anything."""
        return bool(self.scale or self.rotate90 or self.flip or self.skew)

    def __post_init__(self) -> None:
        if not 0 <= self.scale < 1 or self.skew < 0:
            raise ValueError(f"scale must lie in [0, 1) and skew must not be negative: {self}")


def matrices(
    augmentation: Augmentation | None, *, seed: int, epoch: int, rows: NDArray[np.int64], in_size: int, out_size: int
) -> NDArray[np.float32]:
    """Return the output-to-input matrix of each row.

    Applied to the picture, in this order and about its centre: scale, shear, flips, rotation. What a row draws depends
    on (seed, epoch, row) alone, whatever batch it is in, and a part that is switched off shifts no other's draw.

    Args:
        augmentation: None resizes and does nothing else.
        seed: of the run, not negative.
        epoch: from 0.
        rows: (B,) rows of the data set.
        in_size: side of the stored image in pixels.
        out_size: side of the rendered image in pixels.

    Returns:
        (B, 2, 3) float32.
    """
    linear = np.tile(np.eye(2), (len(rows), 1, 1))
    if augmentation is not None:
        linear = _inverse_linear(augmentation, _draws(seed, epoch, rows))
    linear *= in_size / out_size
    shift = in_size / 2 - linear @ np.full((2, 1), out_size / 2)
    return np.concatenate([linear, shift], axis=2).astype(np.float32)


def to_pixel_centres(matrix: NDArray[np.float32]) -> NDArray[np.float64]:
    """Return matrices (..., 2, 3) for a library in which pixel i is the point i, such as OpenCV."""
    exact = matrix.astype(np.float64)
    exact[..., 2] += exact[..., :2].sum(axis=-1) / 2 - 0.5
    return exact


def _draws(seed: int, epoch: int, rows: NDArray[np.int64]) -> NDArray[np.float64]:
    """Return five uniform numbers in [0, 1) per row (B, 5), from the Philox counter (0, 0, row, domain)."""
    philox = np.random.Philox(key=np.array([seed, epoch], dtype=np.uint64))
    # Setting the counter takes 10 us, building a generator per row would take 80.
    state = philox.state
    words = np.empty((len(rows), 5), dtype=np.uint64)
    for position, row in enumerate(rows):
        state["state"]["counter"] = np.array([0, 0, row, _DOMAIN], dtype=np.uint64)
        philox.state = state
        words[position] = philox.random_raw(5)
    return (words >> np.uint64(11)).astype(np.float64) * 2.0**-53


def _inverse_linear(augmentation: Augmentation, draws: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return scale^-1 shear^-1 flip^-1 rotation^-1 (B, 2, 2), the inverse of rotation flip shear scale."""
    magnify, turn, flip_x, flip_y, skew = draws.T
    one, zero = np.ones(len(draws)), np.zeros(len(draws))
    magnification = 1 + augmentation.scale * (2 * magnify - 1)
    shear = augmentation.skew * (2 * skew - 1)
    sign_x = np.where(augmentation.flip & (flip_x < 0.5), -1.0, 1.0)
    sign_y = np.where(augmentation.flip & (flip_y < 0.5), -1.0, 1.0)
    quarter = np.floor(4 * turn).astype(int) * augmentation.rotate90
    cos, sin = np.array([1.0, 0.0, -1.0, 0.0])[quarter], np.array([0.0, 1.0, 0.0, -1.0])[quarter]
    unshear = np.array([[one, -shear], [zero, one]])
    unflip = np.array([[sign_x, zero], [zero, sign_y]])
    unrotate = np.array([[cos, sin], [-sin, cos]])
    product: NDArray[np.float64] = (
        np.einsum("ijb,jkb,klb->bil", unshear, unflip, unrotate) / magnification[:, None, None]
    )
    return product
