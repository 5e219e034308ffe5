"""From a pass over a data set to batches on the device: positions, matrices, pixels, targets.

A loader owns no progress: `Loader.epoch` is told where to start, and the position is one integer.
What is not here: the index arithmetic (``order``), the matrices (``augment``) and the pixels (the renderers).
"""

from collections.abc import Iterator
from contextlib import closing
from dataclasses import dataclass, field
from itertools import islice, tee
from typing import Any, Literal, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from retina_ray.data.augment import Augmentation, matrices
from retina_ray.data.batch import Batch, normalise
from retina_ray.data.masks import decode_mask
from retina_ray.data.order import Share, eval_positions, steps_per_epoch, train_positions
from retina_ray.data.schema import LESIONS
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.torch_loader import Rendered, Renderer, TorchRenderer, ahead, drawing_pool
from retina_ray.data.warping import warp_mask
from retina_ray.errors import DataError

_MAX_DAMAGED_SHARE = 0.01
_MIN_DAMAGED = 3


@dataclass(frozen=True)
class Samples:
    """What a pass reads and what is known of it.

    Raises:
        DataError: when there are no rows.
    """

    dataset: ShardedDataset

    rows: NDArray[np.int64]
    """(n,) rows of the data set in this pass."""

    grades: dict[str, NDArray[np.int8]]
    """Per task (N,), -1 = none, for all rows of the data set."""

    soft_logits: dict[str, NDArray[np.float32]] = field(default_factory=dict)
    """Per task (N, K) teacher logits, NaN rows = none."""

    has_mask: NDArray[np.bool_] | None = None
    """(N,) whether a row's mask is used, where masks are read; None for every mask that there is."""

    def __post_init__(self) -> None:
        if len(self.rows) == 0:
            raise DataError("this pass has no images", self.dataset.manifest.counts, "choose another split or ratio")


class _Plan(NamedTuple):
    """One micro-batch before its pixels."""

    rows: NDArray[np.int64]
    weight: NDArray[np.float32]
    matrices: NDArray[np.float32]


class _Masks(NamedTuple):
    """The lesion planes of one micro-batch."""

    planes: NDArray[np.bool_]
    present: NDArray[np.bool_]
    damaged: NDArray[np.bool_]


class Loader:
    """Yields one rank's batches.

    Args:
        samples: what to read.
        share: the rank's part of each global batch.
        augmentation: None resizes and does nothing else.
        image_size: side of the network's input in pixels.
        backend: ``dali`` or ``torch``; both give the same pixels up to rounding.
        device: where the batches shall be.
        seed: of order and augmentation.
        num_threads: CPU threads that decode.
        prefetch: optimiser steps in work beyond the one in use.
        with_masks: read lesion masks too.
        dtype: of the images; see `data.batch.normalise`.
        shuffle: True for training; False reads the rows in their own order, each once, the same in every epoch.
    """

    damaged: list[str]
    """Ids of the images found damaged so far; their rows have weight 0."""

    def __init__(
        self,
        samples: Samples,
        *,
        share: Share,
        augmentation: Augmentation | None,
        image_size: int,
        backend: Literal["dali", "torch"],
        device: torch.device,
        seed: int,
        num_threads: int,
        prefetch: int = 2,
        with_masks: bool = False,
        dtype: torch.dtype = torch.float32,
        shuffle: bool,
    ) -> None:
        self._dtype = dtype
        self._samples, self._share, self._augmentation = samples, share, augmentation
        self._image_size, self._device, self._seed, self._shuffle = image_size, device, seed, shuffle
        self._augments = augmentation is not None and augmentation.changes
        self._depth = prefetch * share.accumulate
        self._renderer: Renderer
        if backend == "dali":
            # Not at the top: the torch backend has to work where DALI is not installed.
            from retina_ray.data.dali_loader import DaliRenderer

            self._renderer = DaliRenderer(
                samples.dataset,
                image_size=image_size,
                device=device,
                num_threads=num_threads,
                prefetch=self._depth,
                batch_size=share.micro_batch,
            )
        else:
            self._renderer = TorchRenderer(
                samples.dataset, image_size=image_size, device=device, num_threads=num_threads, prefetch=self._depth
            )
        self._mask_pool = drawing_pool(num_threads) if with_masks else None
        self.damaged = []
        self._damaged_shards: set[str] = set()

    @property
    def steps_per_epoch(self) -> int:
        """Optimiser steps in one pass, the same on every rank."""
        return steps_per_epoch(len(self._samples.rows), self._share.global_batch)

    def epoch(self, epoch: int, start: int = 0) -> Iterator[list[Batch]]:
        """Yield the rank's micro-batches of each optimiser step.

        Args:
            epoch: which pass; without effect where the loader does not shuffle.
            start: the first step to yield, for resuming.

        Raises:
            DataError: once more than 1 % of the pass, and more than 3 images, are damaged.
        """
        plans, for_pixels, for_masks = tee(self._plans(epoch if self._shuffle else 0, start), 3)
        with closing(self._renderer.render((plan.rows, plan.matrices) for plan in for_pixels)) as pixels:
            batches = map(self._batch, plans, pixels, self._masks(for_masks))
            while step := list(islice(batches, self._share.accumulate)):
                yield step

    def close(self) -> None:
        """End threads and release memory."""
        self._renderer.close()
        if self._mask_pool is not None:
            self._mask_pool.shutdown(cancel_futures=True)

    def _plans(self, epoch: int, start: int) -> Iterator[_Plan]:
        n = len(self._samples.rows)
        stored_size = self._samples.dataset.manifest.image_size
        for step in range(start, self.steps_per_epoch):
            for micro in range(self._share.accumulate):
                if self._shuffle:
                    indices, weight = train_positions(
                        n, seed=self._seed, epoch=epoch, step=step, share=self._share, micro=micro
                    )
                else:
                    indices, weight = eval_positions(n, step=step, share=self._share, micro=micro)
                rows = self._samples.rows[indices]
                geometry = matrices(
                    self._augmentation,
                    seed=self._seed,
                    epoch=epoch,
                    rows=rows,
                    in_size=stored_size,
                    out_size=self._image_size,
                )
                yield _Plan(rows, weight, geometry)

    def _masks(self, plans: Iterator[_Plan]) -> Iterator[_Masks | None]:
        pool = self._mask_pool
        if pool is None:
            return (None for _ in plans)
        drawn = ahead(plans, lambda plan: pool.submit(self._draw_masks, plan), depth=self._depth)
        return (future.result() for future in drawn)

    def _draw_masks(self, plan: _Plan) -> _Masks:
        num_rows, size, dataset = len(plan.rows), self._image_size, self._samples.dataset
        masks = _Masks(
            np.zeros((num_rows, len(LESIONS), size, size), bool), np.zeros(num_rows, bool), np.zeros(num_rows, bool)
        )
        for slot, row in enumerate(plan.rows):
            used = self._samples.has_mask
            stored = dataset.mask(int(row)) if used is None or used[row] else None
            if stored is None:
                continue
            try:
                planes = decode_mask(stored, dataset.manifest.image_size, dataset.manifest.image_size)
            except DataError:
                masks.damaged[slot] = True
                continue
            masks.planes[slot] = warp_mask(planes, plan.matrices[slot], size)
            masks.present[slot] = True
        return masks

    def _batch(self, plan: _Plan, pixels: Rendered, masks: _Masks | None) -> Batch:
        damaged = pixels.damaged if masks is None else pixels.damaged | masks.damaged
        self._note_damaged(plan.rows[damaged])
        samples = self._samples
        return Batch(
            images=normalise(pixels.images, self._dtype),
            grades={task: self._move(grades[plan.rows].astype(np.int64)) for task, grades in samples.grades.items()},
            soft_logits={task: self._move(logits[plan.rows]) for task, logits in samples.soft_logits.items()},
            masks=None if masks is None else self._move(masks.planes),
            has_mask=self._move(np.zeros(len(plan.rows), bool) if masks is None else masks.present),
            weight=self._move(np.where(damaged, np.float32(0), plan.weight)),
            rows=self._move(plan.rows),
            fixed_rows=None if self._augments else tuple(plan.rows.tolist()),
        )

    def _move(self, array: NDArray[Any]) -> Tensor:
        """Return the array on the device, without making the host wait for it."""
        tensor = torch.from_numpy(array)
        if self._device.type == "cuda":
            tensor = tensor.pin_memory()
        return tensor.to(self._device, non_blocking=True)

    def _note_damaged(self, rows: NDArray[np.int64]) -> None:
        dataset = self._samples.dataset
        for row in rows:
            image_id = str(dataset.image_ids[row])
            if image_id not in self.damaged:
                self.damaged.append(image_id)
                self._damaged_shards.add(dataset.shard_of(int(row)))
        allowed = max(_MIN_DAMAGED, int(_MAX_DAMAGED_SHARE * len(self._samples.rows)))
        if len(self.damaged) > allowed:
            what = f"more than {allowed} of {len(self._samples.rows)} images are damaged"
            where = f"{', '.join(self.damaged)} in {', '.join(sorted(self._damaged_shards))}"
            raise DataError(what, where, "run `retina-ray data inspect` and restore the data set")
