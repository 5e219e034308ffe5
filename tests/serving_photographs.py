"""Files of photographs that tests send."""

import numpy as np
import simplejpeg

from retina_ray.data.synthetic import draw


def photograph(index: int = 0, *, size: int = 150) -> bytes:
    """Return a JPEG file wider than high, whose disc is not in the middle."""
    fundus = draw(size=size, task="dr", grade=index % 5, seed=1, index=index).image
    frame = np.zeros((size + size // 5, size + size // 2, 3), dtype=np.uint8)
    frame[size // 14 : size // 14 + size, size // 4 : size // 4 + size] = fundus
    return bytes(simplejpeg.encode_jpeg(frame, quality=95))
