"""How a lesion mask is stored in a row: four bit planes, packed and deflated.

What is not here: where masks come from, and how they follow the image through augmentation (``torch_loader``).
"""

import zlib

import numpy as np
from numpy.typing import NDArray

from retina_ray.data.schema import LESIONS
from retina_ray.errors import DataError


def encode_mask(planes: NDArray[np.bool_]) -> bytes:
    """Return the stored form of a mask.

    Args:
        planes: (4, H, W) bool, in the order of `LESIONS`.

    Raises:
        ValueError: for another shape or type.
    """
    if planes.ndim != 3 or len(planes) != len(LESIONS) or planes.dtype != np.bool_:
        raise ValueError(f"a mask is bool ({len(LESIONS)}, H, W), not {planes.dtype} {planes.shape}")
    return zlib.compress(np.packbits(planes).tobytes())


def decode_mask(data: bytes, height: int, width: int) -> NDArray[np.bool_]:
    """Return a stored mask as (4, height, width) bool.

    Never inflates more than the mask's size; the deflate stream's own checksum reveals damage.

    Raises:
        DataError: when the bytes are damaged or of another size.
    """
    num_bits = len(LESIONS) * height * width
    num_bytes = -(-num_bits // 8)
    inflater = zlib.decompressobj()
    try:
        packed = inflater.decompress(data, num_bytes + 1)
    except zlib.error as error:
        raise DataError("a stored lesion mask is damaged", str(error), "ingest the data set again") from error
    if len(packed) != num_bytes or not inflater.eof:
        raise DataError("a stored lesion mask has another size", len(packed), f"expect {height} x {width} pixels")
    return np.unpackbits(np.frombuffer(packed, np.uint8), count=num_bits).reshape(-1, height, width).astype(bool)
