"""PNG files of what the networks see: heat over the fundus square, lesion masks, pictures.

What lives here: pixels to files, and how much of the fundus a mask covers. What does not: the maps themselves
(``serving/explanation.py``). The files hold pixels alone.

Shapes: ``S`` side of the fundus square in pixels, ``s`` that of a map; the two may differ.
"""

import cv2
import numpy as np
import numpy.typing as npt

Pixels = npt.NDArray[np.uint8]
Mask = npt.NDArray[np.bool_]

_STRONGEST = 0.6
"""Opacity where a map is hottest: vessels and lesions must still show through."""

_FADING = 0.7
"""Power of the heat that the opacity goes by: of 1 the warm parts are pale, of 0.5 a veil lies over the cool ones."""

_LESION = 0.5
"""Probability from which a pixel is a lesion's: more likely than all else together, so that no two lesions overlap."""


def overlay_png(square: Pixels, heat: npt.NDArray[np.float32]) -> bytes:
    """Return the fundus square with a map's heat over it, RGB, as large as the larger of the two.

    Args:
        square: (S, S, 3) uint8 RGB.
        heat: (s, s) in [0, 1]; where it is 0 the square stays as it is.
    """
    side = max(len(square), len(heat))
    under = square if len(square) == side else cv2.resize(square, (side, side), interpolation=cv2.INTER_CUBIC)
    colours, opacity = _heat(heat, side)
    mixed = under + opacity[..., None] * (colours[..., ::-1].astype(np.float32) - under)
    return picture_png(np.rint(mixed).astype(np.uint8))


def picture_png(picture: Pixels) -> bytes:
    """Return a picture (H, W, 3) uint8 RGB as a file."""
    return _encode(picture[..., ::-1])


def mask_png(mask: Mask) -> bytes:
    """Return a mask (S, S) as a file, white where it is set."""
    return _encode(np.where(mask, np.uint8(255), np.uint8(0)))


def lesion_mask(probabilities: npt.NDArray[np.float32]) -> Mask:
    """Return which pixels of the fundus disc are a lesion's.

    Args:
        probabilities: (S, S) in [0, 1] of one lesion. Outside the disc, which touches all four sides, nothing counts.
    """
    mask: Mask = (probabilities > _LESION) & _disc(len(probabilities))
    return mask


def area(mask: Mask) -> float:
    """Return the share of the fundus disc that a mask (S, S) covers, 0..1; pixels outside the disc do not count."""
    disc = _disc(len(mask))
    return float((mask & disc).sum() / disc.sum())


def _heat(heat: npt.NDArray[np.float32], side: int) -> tuple[Pixels, npt.NDArray[np.float32]]:
    """Return the colours (S, S, 3), BGR, and the opacity (S, S) of a map."""
    enlarged = cv2.resize(heat, (side, side), interpolation=cv2.INTER_LINEAR).clip(0.0, 1.0)
    # Viridis: its blue, green and yellow stand out from a red fundus, where a red could be taken for a haemorrhage, and
    # grow lighter for eyes that tell no colours apart.
    colours = cv2.applyColorMap(np.rint(255 * enlarged).astype(np.uint8), cv2.COLORMAP_VIRIDIS)
    opacity: npt.NDArray[np.float32] = np.float32(_STRONGEST) * enlarged ** np.float32(_FADING)
    return np.asarray(colours, np.uint8), opacity


def _disc(side: int) -> Mask:
    """Return which pixels (S, S) have their centre in the disc that touches all four sides."""
    offset = np.arange(side) + 0.5 - side / 2
    inside: Mask = np.hypot(offset[:, None], offset) <= side / 2
    return inside


def _encode(pixels: Pixels) -> bytes:
    """Return pixels, (H, W) grey, (H, W, 3) BGR or (H, W, 4) BGRA, as a PNG file."""
    done, file = cv2.imencode(".png", pixels)
    assert done
    return file.tobytes()
