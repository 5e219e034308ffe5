"""Photographs that show the same picture although their files differ: re-encoded, resized or brightened copies.

Such copies lie in published data sets under other names and in other splits, where they leak answers. A look is what
remains of a fundus square when its illumination is taken away: vessels and the optic disc at 16 x 16 pixels. On 215
IDRiD photographs, two of different eyes correlate up to 0.91; a copy at 0.7 of the size, JPEG quality 60 and a tenth
brighter correlates with its original by 0.987 or more. What is not here: equal files (``twins``).
"""

import cv2
import numpy as np
import numpy.typing as npt

LOOK_BYTES = 16 * 16
"""Length of a look."""

ALIKE = 0.97
"""Correlation from which two looks are taken for one picture."""

_SIDE = 64
_ILLUMINATION = 4.0  # pixels at _SIDE; what varies more slowly is taken away
_RIM = 0.9  # of the radius; the rim is alike in all photographs
_FAINTEST = 0.25  # grey levels; what is fainter is rounding
_BLOCK = 2048


def look_of(square: npt.NDArray[np.uint8]) -> bytes:
    """Return the look of a fundus square.

    Args:
        square: (S, S, 3) uint8 RGB that the disc fills.

    Returns:
        `LOOK_BYTES` signed 8-bit numbers, zero where the square is uniform.
    """
    green = cv2.resize(square[..., 1], (_SIDE, _SIDE), interpolation=cv2.INTER_AREA).astype(np.float32)
    detail = green - cv2.GaussianBlur(green, (0, 0), _ILLUMINATION)
    offset = np.arange(_SIDE) + 0.5 - _SIDE / 2
    detail[np.hypot(offset[:, None], offset) > _RIM * _SIDE / 2] = 0
    small = cv2.resize(detail, (16, 16), interpolation=cv2.INTER_AREA)
    small -= small.mean()
    strongest = float(np.abs(small).max())
    if strongest < _FAINTEST:
        return bytes(LOOK_BYTES)
    return np.asarray((small * (127 / strongest)).round(), dtype=np.int8).tobytes()


def alike(looks: npt.NDArray[np.int8]) -> list[tuple[int, int]]:
    """Return the pairs of rows whose looks are of one picture, each as (earlier, later), sorted.

    Compares all with all: N^2 * 128 multiplications, 100,000 photographs in minutes on two cores.

    Args:
        looks: (N, `LOOK_BYTES`) int8, as `look_of` makes them.
    """
    unit = looks.astype(np.float32)
    length = np.linalg.norm(unit, axis=1, keepdims=True)
    unit /= np.where(length > 0, length, 1)
    pairs: list[tuple[int, int]] = []
    for top in range(0, len(unit), _BLOCK):
        for left in range(top, len(unit), _BLOCK):
            close = unit[top : top + _BLOCK] @ unit[left : left + _BLOCK].T >= ALIKE
            first, second = np.nonzero(np.triu(close, 1) if left == top else close)
            pairs += zip((first + top).tolist(), (second + left).tolist(), strict=True)
    return sorted(pairs)
