"""The reference renderer: stored bytes and matrices to pixels, with simplejpeg and OpenCV on a pool of threads.

Also what every renderer shares: the contract.
What is not here: which rows and matrices (``order``, ``augment``), decoding one image (``decode``), resampling it
(``warping``), the batch around the pixels (``loader``).
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from typing import NamedTuple, Protocol, TypeVar

import cv2
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retina_ray.data.decode import decode_image
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.warping import warp

Plan = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Data set rows (B,) and their output-to-input matrices (B, 2, 3), as `data.augment.matrices` makes them."""


_P = TypeVar("_P")
_T = TypeVar("_T")


class Rendered(NamedTuple):
    """The pixels of one plan."""

    images: Tensor
    """(B, H, W, 3) uint8 on the renderer's device, RGB in [0, 255]; a damaged image is black."""

    damaged: NDArray[np.bool_]
    """(B,): the stored bytes are not those that were written, or are no image of the data set's size."""


class Renderer(Protocol):
    """Turns plans into pixels, some plans ahead of the consumer."""

    def render(self, plans: Iterable[Plan]) -> Generator[Rendered, None, None]:
        """Render each plan in order; the iterator may be abandoned at any time."""

    def close(self) -> None:
        """Release threads and memory."""


def ahead(plans: Iterable[_P], start: Callable[[_P], _T], *, depth: int) -> Iterator[_T]:
    """Start the work of up to ``depth`` plans beyond the one that is handed out."""
    started: deque[_T] = deque()
    for plan in plans:
        started.append(start(plan))
        if len(started) > depth:
            yield started.popleft()
    yield from started


def drawing_pool(num_threads: int) -> ThreadPoolExecutor:
    """Return the threads that decode and resample; they are the parallelism, so OpenCV's own are switched off."""
    return ThreadPoolExecutor(num_threads, "draw", initializer=cv2.setNumThreads, initargs=(0,))


class TorchRenderer:
    """Renders on the CPU and moves the pixels to the device.

    Args:
        dataset: where the images are.
        image_size: side of the rendered images in pixels.
        device: where they shall be.
        num_threads: threads that decode and resample.
        prefetch: plans in work beyond the one in use.
    """

    def __init__(
        self, dataset: ShardedDataset, *, image_size: int, device: torch.device, num_threads: int, prefetch: int
    ) -> None:
        self._dataset, self._image_size, self._device, self._prefetch = dataset, image_size, device, prefetch
        self._pool = drawing_pool(num_threads)

    def render(self, plans: Iterable[Plan]) -> Generator[Rendered, None, None]:
        """Render each plan in order. What is in work when the iterator is abandoned is finished and dropped."""
        for images, drawn in ahead(plans, self._start, depth=self._prefetch):
            damaged = np.array([not future.result() for future in drawn])
            yield Rendered(images.to(self._device, non_blocking=True), damaged)

    def close(self) -> None:
        """End the threads."""
        self._pool.shutdown(cancel_futures=True)

    def _start(self, plan: Plan) -> tuple[Tensor, list[Future[bool]]]:
        size = self._image_size
        shape = (len(plan[0]), size, size, 3)
        images = torch.zeros(shape, dtype=torch.uint8, pin_memory=self._device.type == "cuda")
        slots = images.numpy()
        drawn = zip(*plan, slots, strict=True)
        return images, [self._pool.submit(self._draw, int(row), matrix, slot) for row, matrix, slot in drawn]

    def _draw(self, row: int, matrix: NDArray[np.float32], slot: NDArray[np.uint8]) -> bool:
        """Render one image into its slot, or leave it black and return False if it is damaged."""
        manifest = self._dataset.manifest
        if not self._dataset.check(row):
            return False
        try:
            image = decode_image(self._dataset.image(row), encoding=manifest.encoding, size=manifest.image_size)
        except ValueError:
            return False
        slot[...] = warp(image, matrix, self._image_size)
        return True
