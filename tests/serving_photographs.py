"""Files of photographs that tests send."""

import numpy as np
import simplejpeg

from retina_ray.data.synthetic import draw


def photograph(index: int = 0, *, side: int = 150) -> bytes:
    """Return a JPEG file wider than high, whose disc is not in the middle."""
    fundus = draw(size=side, task="dr", grade=index % 5, seed=1, index=index).image
    frame = np.zeros((side + 30, side + 110, 3), dtype=np.uint8)
    frame[11 : 11 + side, 40 : 40 + side] = fundus
    return bytes(simplejpeg.encode_jpeg(frame, quality=95))
