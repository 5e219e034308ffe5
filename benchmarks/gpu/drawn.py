"""Drawn photographs, and data sets that repeat a few of them: a file's place matters for speed, its content does not.

What lives here: what the parts read. What does not: how the product draws (``retina_ray.data.synthetic``).
"""

import hashlib
import os
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path

import numpy as np
import simplejpeg
from numpy.typing import NDArray

from retina_ray.data.manifest import Encoding
from retina_ray.data.schema import KNOWN_TASKS, SPLITS
from retina_ray.data.shard_writer import Row, ShardWriter
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.synthetic import draw

TASKS = ("dr", "amd")
QUALITY = 92
HELD_OUT = 64
"""Images of each of the other splits."""


def photographs(side: int, count: int) -> list[NDArray[np.uint8]]:
    """Return drawn photographs (side, side, 3), of every grade and each of another eye."""
    with ThreadPoolExecutor(len(os.sched_getaffinity(0))) as pool:
        return list(pool.map(partial(_drawn, side), range(count)))


def jpeg(image: NDArray[np.uint8]) -> bytes:
    """Return a photograph's file, chroma halved as cameras do."""
    return bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image), quality=QUALITY, colorsubsampling="420"))


def shards(
    folder: Path, images: Sequence[NDArray[np.uint8]], *, encoding: Encoding, training: int, held_out: int = HELD_OUT
) -> ShardedDataset:
    """Write a data set of images in turn, graded for one task each, and open it; one that is there already is opened.

    Args:
        folder: where it lies.
        images: square, of one size.
        encoding: of the stored images.
        training: how many images are in the training split.
        held_out: how many are in each of the others.
    """
    if not (folder / "dataset.json").exists():
        stored = [jpeg(image) if encoding == "jpeg" else image.tobytes() for image in images]
        digests = [hashlib.sha256(data).hexdigest() for data in stored]
        side = len(images[0])
        tasks = tuple(KNOWN_TASKS[name] for name in TASKS)
        with ShardWriter(str(folder), tasks=tasks, image_size=side, encoding=encoding, source="drawn") as writer:
            for split, count in zip(SPLITS, (training, held_out, held_out), strict=True):
                for number in range(count):
                    task, which = tasks[number % len(tasks)], number % len(stored)
                    writer.add(
                        Row(
                            image_id=f"{split}-{number}",
                            group_id=f"{split}-{number}",
                            source="drawn",
                            split=split,
                            image=stored[which],
                            width=side,
                            height=side,
                            sha256=digests[which],
                            grades={task.name: number // len(tasks) % task.num_grades},
                        )
                    )
    return ShardedDataset.open(str(folder))


def _drawn(side: int, number: int) -> NDArray[np.uint8]:
    return draw(size=side, task="dr", grade=number % KNOWN_TASKS["dr"].num_grades, seed=0, index=number).image
