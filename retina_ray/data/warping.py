"""One resampling of an image by a matrix, and how its mask follows.

Without torch, so that whoever only prepares photographs does not load it. What is not here: the matrices (``augment``).
"""

import cv2
import numpy as np
from numpy.typing import NDArray

from retina_ray.data.augment import to_pixel_centres


def warp(image: NDArray[np.uint8], matrix: NDArray[np.float32], out_size: int) -> NDArray[np.uint8]:
    """Resample a square image once, bilinearly, black beyond its border.

    Flips and quarter turns at the same size move pixels without any arithmetic.

    Args:
        image: (S, S, C) uint8, C up to 4.
        matrix: (2, 3), output to input, in the coordinates of `data.augment`.
        out_size: side of the result in pixels.

    Returns:
        (out_size, out_size, C) uint8.
    """
    if out_size == len(image) and _moves_pixels(matrix, out_size):
        step_x, step_y = matrix[:, :2].sum(axis=1).astype(int)
        return image[::step_y, ::step_x] if matrix[0, 0] else image.transpose(1, 0, 2)[::step_x, ::step_y]
    warped = cv2.warpAffine(
        image,
        to_pixel_centres(matrix),
        (out_size, out_size),
        flags=cv2.INTER_LINEAR | cv2.WARP_INVERSE_MAP,
        borderMode=cv2.BORDER_CONSTANT,
        borderValue=(0, 0, 0, 0),
    )
    return np.asarray(warped, np.uint8)


def warp_mask(planes: NDArray[np.bool_], matrix: NDArray[np.float32], out_size: int) -> NDArray[np.bool_]:
    """Let a mask follow its image: a pixel is lesion where at least half of the bilinear weight is.

    Args:
        planes: (4, S, S) bool.
        matrix: (2, 3), as for `warp`.
        out_size: side of the result in pixels.

    Returns:
        (4, out_size, out_size) bool.
    """
    pixels = np.ascontiguousarray(planes.transpose(1, 2, 0)).astype(np.uint8) * 255
    return (warp(pixels, matrix, out_size) >= 128).transpose(2, 0, 1)


def _moves_pixels(matrix: NDArray[np.float32], size: int) -> bool:
    """Tell whether a matrix is one of the eight flips and quarter turns of a square of that size."""
    linear, shift = matrix[:, :2], matrix[:, 2]
    is_permutation = np.array_equal(abs(linear), np.eye(2)) or np.array_equal(abs(linear), np.eye(2)[::-1])
    return is_permutation and np.array_equal(shift, np.where(linear.sum(axis=1) < 0, size, 0))
