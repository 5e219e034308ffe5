"""Photographs, data sets and loaders that the tests of the data plane share."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, cast

import cv2
import numpy as np
import pytest
import simplejpeg
import torch
from numpy.typing import NDArray

from retina_ray.data.augment import Augmentation
from retina_ray.data.batch import Batch
from retina_ray.data.loader import Loader, Samples
from retina_ray.data.masks import encode_mask
from retina_ray.data.order import Share
from retina_ray.data.schema import task_of
from retina_ray.data.shards import Row, ShardedDataset, ShardWriter

CPU = torch.device("cpu")
SIZE = 48
NUM_ROWS = 22

both_backends = pytest.mark.parametrize("backend", ["torch", "dali"])
both_encodings = pytest.mark.parametrize("encoding", ["jpeg", "raw"])


def photo(i: int, size: int = SIZE) -> NDArray[np.uint8]:
    """Smooth colours with some noise, a disc on black."""
    rng = np.random.default_rng(i)
    coarse = rng.integers(40, 256, (6, 6, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (size, size), interpolation=cv2.INTER_CUBIC).astype(float)
    y, x = np.mgrid[:size, :size] - (size - 1) / 2
    inside = (x**2 + y**2 < (size / 2) ** 2)[..., None]
    return np.clip(image + rng.normal(0, 4, image.shape), 0, 255).astype(np.uint8) * inside


def encode(image: NDArray[np.uint8], encoding: str, subsampling: str = "420") -> bytes:
    if encoding == "raw":
        return image.tobytes()
    return bytes(simplejpeg.encode_jpeg(image, quality=92, colorsubsampling=subsampling))


def write(
    out: Path, encoding: Literal["jpeg", "raw"] = "raw", replaced: dict[int, bytes] | None = None
) -> ShardedDataset:
    """A data set of NUM_ROWS photographs; every even row has a mask: the pixels that are bright in red."""
    tasks = (task_of("dr", 5), task_of("amd", 4))
    with ShardWriter(str(out), tasks=tasks, image_size=SIZE, encoding=encoding, source="drawn") as writer:
        for i in range(NUM_ROWS):
            image = photo(i)
            bright = image[..., 0] >= 128
            planes = np.stack([bright, ~bright, np.zeros_like(bright), np.ones_like(bright)])
            writer.add(
                Row(
                    image_id=f"image-{i}",
                    group_id=f"patient-{i}",
                    source="drawn",
                    split="train",
                    image=(replaced or {}).get(i) or encode(image, encoding),
                    width=SIZE,
                    height=SIZE,
                    sha256="0" * 64,
                    grades={"dr": i % 5} if i % 2 else {"amd": i % 4},
                    mask=None if i % 2 else encode_mask(planes),
                )
            )
    return ShardedDataset.open(str(out))


def make(dataset: ShardedDataset, backend: str, *, rows: NDArray[np.int64] | None = None, **changes: Any) -> Loader:
    rows = np.arange(len(dataset)) if rows is None else rows
    options: dict[str, Any] = {
        "share": Share(0, 1, 8, 2),
        "augmentation": Augmentation(),
        "image_size": 32,
        "device": CPU,
        "seed": 5,
        "num_threads": 2,
        "shuffle": True,
    }
    return Loader(Samples(dataset, rows, dataset.grades), backend=cast(Any, backend), **options | changes)


def flat(steps: Iterator[list[Batch]]) -> list[Batch]:
    return [batch for step in steps for batch in step]
