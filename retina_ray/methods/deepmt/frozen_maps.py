"""The lesion maps of unchanging images by an unchanging net, computed once (an exact saving; the images are its keys).

Half of a joint step with a fixed segmentation net is the segmentation of high-resolution images, which comes out the
same in every epoch unless they are augmented.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LIMIT_BYTES = {"cpu": 2 * 2**30, "cuda": 8 * 2**30}
"""What is kept at most, on the device, by its kind; the ranks of a machine share a CPU's memory. The first images stay
and none is replaced: in a shuffled pass over more images than fit, what was used last is what is needed last. Time is
saved by batches all of whose images are kept, so little by a data set much larger than the limit."""


class FrozenMaps:
    """Keeps maps (C, H, W) by row.

    Args:
        limit_bytes: of all maps together; None: that of the device.
    """

    def __init__(self, limit_bytes: int | None = None) -> None:
        self._maps: dict[int, Tensor] = {}
        self._limit = limit_bytes
        self._kept_bytes = 0

    def __len__(self) -> int:
        return len(self._maps)

    def of(self, rows: Sequence[int], images: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the maps (B, C, H, W) of images (B, 3, H, W), kept or computed.

        Where one is missing the whole batch is computed: rounding depends on the size of a batch, and the result must
        not depend on what happens to be kept, such as nothing after a resume in the middle of an epoch.

        Args:
            rows: B numbers; the same number always stands for the same pixels.
            images: theirs.
            compute: maps images (B, 3, H, W) to (B, C, H, W), each by itself.
        """
        if all(row in self._maps for row in rows):
            return torch.stack([self._maps[row] for row in rows])
        maps = compute(images)
        for row, one in zip(rows, maps, strict=True):
            self._keep(row, one)
        return maps

    def _keep(self, row: int, one: Tensor) -> None:
        size = one.numel() * one.element_size()
        limit = LIMIT_BYTES.get(one.device.type, 0) if self._limit is None else self._limit
        if self._kept_bytes + size <= limit and row not in self._maps:
            self._maps[row] = one.detach().clone()
            self._kept_bytes += size
