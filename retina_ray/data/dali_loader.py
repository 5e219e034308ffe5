"""The DALI renderer: decoding and one resampling per image, on the GPU, or on the CPU where there is none.

The only file that imports ``nvidia.dali``. Rows and matrices come from the caller; DALI draws and shards nothing.

A damaged image must not reach DALI, which fails a whole batch for one bad sample and decodes rotten JPEG data without a
word. So checksums and headers are checked first; should a batch fail all the same, every sample in flight is decoded
alone, the bad ones are replaced by black ones, and a new pipeline takes over.
"""

import time
from collections import deque
from collections.abc import Generator, Iterable, Iterator, Sequence
from itertools import chain
from typing import Any, NamedTuple

import numpy as np
import simplejpeg
import torch
from numpy.typing import NDArray
from nvidia.dali import Pipeline, fn, types
from torch import Tensor
from torch.utils.dlpack import from_dlpack

from retina_ray.data.decode import check_jpeg_size, decode_image
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.torch_loader import Plan, Rendered

HARDWARE_SHARES = (0.0, 0.5, 0.65, 0.8, 0.9, 1.0)
"""Shares of images that are tried for a GPU's JPEG engine."""

_PROBE_IMAGES, _PROBE_BATCHES = 64, 6


class _Work(NamedTuple):
    """A plan with what DALI is fed for it."""

    plan: Plan

    images: list[NDArray[np.uint8]]
    """Per row the JPEG file (n,) or the pixels (S, S, 3); a black image where it is damaged."""

    damaged: NDArray[np.bool_]


class _Feed:
    """What a pipeline reads from, and the work it has read but not yet given back."""

    def __init__(self) -> None:
        self.work: Iterator[_Work] = iter(())
        self.in_flight: deque[_Work] = deque()

    def __call__(self) -> tuple[list[NDArray[np.uint8]], NDArray[np.float32]]:
        work = next(self.work)
        self.in_flight.append(work)
        return work.images, work.plan[1]


class DaliRenderer:
    """Renders on a GPU or on the CPU.

    Args:
        dataset: where the images are.
        image_size: side of the rendered images in pixels.
        device: where they are rendered and stay.
        num_threads: CPU threads of DALI.
        prefetch: plans in work beyond the one in use, at least 1.
        batch_size: rows of the largest plan.
    """

    def __init__(
        self,
        dataset: ShardedDataset,
        *,
        image_size: int,
        device: torch.device,
        num_threads: int,
        prefetch: int,
        batch_size: int,
    ) -> None:
        self._dataset, self._image_size, self._device = dataset, image_size, device
        self._num_threads, self._prefetch, self._batch_size = num_threads, prefetch, batch_size
        self._idle: list[tuple[Pipeline, _Feed]] = []
        self._share: float | None = None
        stored = dataset.manifest.image_size
        black = np.zeros((stored, stored, 3), np.uint8)
        self._is_jpeg = dataset.manifest.encoding == "jpeg"
        self._black = np.frombuffer(simplejpeg.encode_jpeg(black), np.uint8) if self._is_jpeg else black

    def render(self, plans: Iterable[Plan]) -> Generator[Rendered, None, None]:
        """Render each plan in order. Abandoning the iterator drops what is in work and keeps the pipeline for later."""
        work: Iterator[_Work] = (self._check(plan) for plan in plans)
        pipeline, feed = self._idle.pop() if self._idle else self._build()
        feed.work = work
        try:
            while True:
                try:
                    images = self._run(pipeline)
                except StopIteration:
                    break
                except RuntimeError as error:
                    work = chain(self._without_bad(feed.in_flight, error), work)
                    pipeline, feed = self._build()
                    feed.work = work
                    continue
                yield Rendered(images, feed.in_flight.popleft().damaged)
        except GeneratorExit:
            if _drain(pipeline, feed):
                self._idle.append((pipeline, feed))
            raise
        pipeline.reset()
        self._idle.append((pipeline, feed))

    def close(self) -> None:
        """Drop the pipelines with their threads and memory."""
        self._idle.clear()

    def _build(self) -> tuple[Pipeline, _Feed]:
        on_gpu = self._device.type == "cuda"
        device_id = None
        if on_gpu:
            device_id = torch.cuda.current_device() if self._device.index is None else self._device.index
        feed = _Feed()
        pipeline = Pipeline(
            batch_size=self._batch_size,
            num_threads=self._num_threads,
            device_id=device_id,
            prefetch_queue_depth=self._prefetch + 1,
        )
        with pipeline:
            images, matrices = fn.external_source(
                feed,
                num_outputs=2,
                batch=True,
                dtype=[types.UINT8, types.FLOAT],
                layout=["" if self._is_jpeg else "HWC", ""],
            )
            if self._is_jpeg:
                images = _decoded(images, None if device_id is None else self._hardware_share(device_id))
            elif on_gpu:
                images = images.gpu()
            size = [self._image_size, self._image_size]
            pipeline.set_outputs(
                fn.warp_affine(images, matrix=matrices, size=size, fill_value=0, interp_type=types.INTERP_LINEAR)
            )
        pipeline.build()
        return pipeline, feed

    def _hardware_share(self, device_id: int) -> float:
        """Return which share of the images a GPU's JPEG engine shall decode; tried out once."""
        if self._share is None:
            rows = range(min(len(self._dataset), _PROBE_IMAGES))
            files = [np.frombuffer(self._dataset.image(row), np.uint8) for row in rows if self._is_sound(row)]
            self._share = fastest_share(files, device_id=device_id, num_threads=self._num_threads) if files else 0.0
        return self._share

    def _run(self, pipeline: Pipeline) -> Tensor:
        """Return the oldest images in work, in DALI's own memory and without waiting for the GPU."""
        stream = torch.cuda.current_stream(self._device) if self._device.type == "cuda" else None
        (images,) = pipeline.run(stream)
        return from_dlpack(images.as_tensor())

    def _check(self, plan: Plan) -> _Work:
        """Read a plan's images and replace those whose checksum or header is wrong."""
        damaged = np.array([not self._is_sound(int(row)) for row in plan[0]])
        return _Work(plan, [self._stored(int(row), bad) for row, bad in zip(plan[0], damaged, strict=True)], damaged)

    def _is_sound(self, row: int, *, decode: bool = False) -> bool:
        data, manifest = self._dataset.image(row), self._dataset.manifest
        try:
            if decode:
                decode_image(data, encoding=manifest.encoding, size=manifest.image_size)
            elif self._is_jpeg:
                check_jpeg_size(data, manifest.image_size)
        except ValueError:
            return False
        return self._dataset.check(row)

    def _stored(self, row: int, damaged: bool) -> NDArray[np.uint8]:
        data = np.frombuffer(self._dataset.image(row), np.uint8)
        return self._black if damaged else data if self._is_jpeg else data.reshape(self._black.shape)

    def _without_bad(self, in_flight: Iterable[_Work], error: RuntimeError) -> list[_Work]:
        """Decode the samples of a failed batch, and of those behind it, one by one; replace the bad ones.

        Raises:
            RuntimeError: DALI's own, when no sample explains it.
        """
        repaired = []
        found = False
        for work in in_flight:
            rows = work.plan[0]
            damaged = np.array([not self._is_sound(int(row), decode=True) for row in rows])
            found |= bool((damaged & ~work.damaged).any())
            images = [self._stored(int(row), bad) for row, bad in zip(rows, damaged, strict=True)]
            repaired.append(_Work(work.plan, images, damaged))
        if not found:
            raise error
        return repaired


def _decoded(files: Any, hardware_share: float | None) -> Any:
    """Return the node that decodes JPEG files, on the CPU where ``hardware_share`` is None.

    As simplejpeg decodes: upright already, and chroma smoothed on the GPU too. What a GPU's engine refuses, such as
    progressive files, DALI decodes with its CUDA kernels, and what these refuse on the CPU.
    """
    settings = {"output_type": types.RGB, "adjust_orientation": False, "jpeg_fancy_upsampling": True}
    if hardware_share is None:
        return fn.decoders.image(files, device="cpu", **settings)
    return fn.decoders.image(files, device="mixed", hw_decoder_load=hardware_share, **settings)


def fastest_share(files: Sequence[NDArray[np.uint8]], *, device_id: int, num_threads: int) -> float:
    """Return the share of images that a GPU's JPEG engine should decode, the rest being left to CUDA kernels.

    Engine and kernels work at the same time, so neither none nor all is fastest where there is an engine; without one
    the share makes no difference.

    Args:
        files: JPEG files to try it with, at least one.
        device_id: of the GPU.
        num_threads: CPU threads of DALI.

    Returns:
        One of `HARDWARE_SHARES`.
    """
    seconds = {share: _decoding_seconds(files, share, device_id, num_threads) for share in HARDWARE_SHARES}
    return min(seconds, key=seconds.__getitem__)


def _decoding_seconds(files: Sequence[NDArray[np.uint8]], share: float, device_id: int, num_threads: int) -> float:
    """Return the time of the fastest of a few batches."""
    pipeline = Pipeline(batch_size=len(files), num_threads=num_threads, device_id=device_id, prefetch_queue_depth=1)
    with pipeline:
        pipeline.set_outputs(_decoded(fn.external_source(lambda: list(files), batch=True, dtype=types.UINT8), share))
    pipeline.build()
    times = []
    for _ in range(_PROBE_BATCHES):
        begin = time.perf_counter()
        pipeline.run()
        torch.cuda.synchronize(device_id)
        times.append(time.perf_counter() - begin)
    return min(times)


def _drain(pipeline: Pipeline, feed: _Feed) -> bool:
    """Take out what is in flight; tell whether the pipeline can serve another pass."""
    feed.work = iter(())
    feed.in_flight.clear()
    try:
        while True:
            pipeline.run()
    except StopIteration:
        pipeline.reset()
        return True
    except RuntimeError:  # a bad sample in a batch that nobody will see
        return False
