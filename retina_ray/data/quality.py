"""Simple measures of a fundus square: is it sharp, lit and rich in contrast, and what colour is it.

Taken alike of training images (reference statistics) and of photographs to be graded. They tell a photograph that is
unlike the training images from one that is like them; they say nothing of its content. What is not here: the limits
that a model sets (``bundle_manifest``) and the verdict (``serving.quality``).
"""

from dataclasses import dataclass

import cv2
import numpy as np
import numpy.typing as npt

_SIDE = 256
"""Measured at most this large, in pixels: stored JPEG artefacts average out, and the cost does not grow with S."""

_DISC = 0.92  # of the radius: the rim itself is an edge
_DARK = 8  # green levels; below lies the surround, such as the bands of a disc that the frame cuts
_EDGE = 7  # pixels that are kept away from the surround


@dataclass(frozen=True, slots=True)
class ImageMeasures:
    """Measures over the fundus's pixels.

    Attributes:
        sharpness: variance of the Laplacian of the green channel, in squared levels; low when blurred.
        brightness: mean of the green channel, 0..255.
        contrast: standard deviation of the green channel, in levels.
        means: mean of R, G and B, each 0..255.
    """

    sharpness: float
    brightness: float
    contrast: float
    means: tuple[float, float, float]


def measure(square: npt.NDArray[np.uint8]) -> ImageMeasures:
    """Measure a square that the fundus disc fills; all zero where it is black.

    The green channel stands for all three in the first measures: vessels and lesions show best in it.

    Args:
        square: (S, S, 3) uint8 RGB, as `data.fundus.prepare_bytes` cuts it.
    """
    side = min(_SIDE, len(square))
    small = np.asarray(cv2.resize(square, (side, side), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    inside = _fundus(small)
    if not inside.any():
        return ImageMeasures(0.0, 0.0, 0.0, (0.0, 0.0, 0.0))
    green = small[..., 1]
    pixels = small[inside].astype(np.float64)
    edges = cv2.Laplacian(green, cv2.CV_64F)[inside]
    red_mean, green_mean, blue_mean = (float(value) for value in pixels.mean(axis=0))
    return ImageMeasures(
        sharpness=float(edges.var()),
        brightness=green_mean,
        contrast=float(pixels[:, 1].std()),
        means=(red_mean, green_mean, blue_mean),
    )


def _fundus(square: npt.NDArray[np.uint8]) -> npt.NDArray[np.bool_]:
    """Return which pixels (S, S) belong to the fundus, away from its rim and from the surround."""
    side = len(square)
    offset = np.arange(side) + 0.5 - side / 2
    disc = np.hypot(offset[:, None], offset) < _DISC * side / 2
    lit = (square[..., 1] >= _DARK).astype(np.uint8)
    lit = np.asarray(cv2.morphologyEx(lit, cv2.MORPH_CLOSE, np.ones((_EDGE, _EDGE), np.uint8)), dtype=np.uint8)
    lit = np.asarray(cv2.erode(lit, np.ones((_EDGE, _EDGE), np.uint8), borderValue=1), dtype=np.uint8)
    inside: npt.NDArray[np.bool_] = disc & (lit > 0)
    return inside
