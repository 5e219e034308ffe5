"""The lesion maps of unchanging images by an unchanging net, computed once (an exact saving; the images are its keys).

Half of a joint step with a fixed segmentation net is the segmentation of high-resolution images, which comes out the
same in every epoch unless they are augmented. So it does for the grading stage's validation images, which never are.
"""

from collections.abc import Callable, Sequence

import torch
from torch import Tensor

LIMIT_BYTES = {"cpu": 2 * 2**30, "cuda": 8 * 2**30}
"""What is kept at most, on the device, by its kind; the ranks of a machine share a CPU's memory. The first images stay
and none is replaced: in a shuffled pass over more images than fit, what was used last is what is needed last."""


class FrozenMaps:
    """Keeps maps (1, C, H, W) by row.

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

        Each missing one is computed by itself: rounding depends on the size of a batch, and the result must not depend
        on what happens to be kept, such as nothing after a resume in the middle of an epoch. One image of high
        resolution keeps a device busy, so this takes no longer than a batch.

        Args:
            rows: B numbers; the same number always stands for the same pixels.
            images: theirs.
            compute: maps images (B, 3, H, W) to (B, C, H, W), each by itself.
        """
        pairs = zip(rows, torch.split(images, 1), strict=True)
        return torch.cat([self._maps[row] if row in self._maps else self._new(row, one, compute) for row, one in pairs])

    def _new(self, row: int, image: Tensor, compute: Callable[[Tensor], Tensor]) -> Tensor:
        """Return the map (1, C, H, W) of an image (1, 3, H, W), and keep it as long as there is room."""
        found = compute(image).detach().clone()  # of a padded image it is a part of something larger
        size = found.numel() * found.element_size()
        limit = LIMIT_BYTES.get(found.device.type, 0) if self._limit is None else self._limit
        if self._kept_bytes + size <= limit:
            self._maps[row] = found
            self._kept_bytes += size
        return found
