"""A photograph's bytes -> the pixels that a model's networks see, as ingest and evaluation make them.

Needs no torch network, so that it runs on CPUs beside the networks. What is not here: grading (``predictor``).
"""

import time
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt

from retina_ray.data.augment import matrices
from retina_ray.data.fundus import prepare_bytes
from retina_ray.data.quality import ImageMeasures, measure
from retina_ray.data.warping import warp


@dataclass(frozen=True, slots=True)
class Prepared:
    """A photograph ready to be graded.

    Attributes:
        pixels: (H, W, 3) uint8 RGB at the network's input size.
        measures: of the square at the stored size.
        prepare_ms: what it took.
    """

    pixels: npt.NDArray[np.uint8]
    measures: ImageMeasures
    prepare_ms: float


@dataclass(frozen=True)
class Preparation:
    """How a model's photographs are prepared.

    Attributes:
        stored_side: of the square around the fundus disc, pixels, as a data set stores it.
        side: of what the networks see, pixels.
    """

    stored_side: int
    side: int

    def prepare(self, data: bytes, *, name: str = "photograph") -> Prepared:
        """Decode a photograph, cut the fundus and resample it; may be called by several threads.

        Args:
            data: the file.
            name: what error messages call it.

        Raises:
            DataError: it is no photograph (CorruptImageError) or shows no fundus (NoFundusError).
        """
        start = time.perf_counter()
        square = prepare_bytes(data, name=name, size=self.stored_side)
        pixels = np.ascontiguousarray(warp(square, self._matrix, self.side))
        return Prepared(pixels, measure(square), 1e3 * (time.perf_counter() - start))

    @cached_property
    def _matrix(self) -> npt.NDArray[np.float32]:
        """The evaluation's resampling, from the stored side to that of the networks."""
        found = matrices(
            None, seed=0, epoch=0, rows=np.zeros(1, np.int64), in_size=self.stored_side, out_size=self.side
        )
        return np.asarray(found[0])
