"""Augmented training batches on the CPU, ours against torchvision's transforms in torch's loader.

Run with ``python benchmarks/augmentation.py WORK``; draws its own photographs there. Both flip, turn by quarters, scale
and skew as SALL does (section IV-A) and hand over normalised float batches (B, 3, 299, 299). Writes
``benchmarks/results/augmentation.json`` and ``.md``.
"""

import argparse
import math
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch
from torch.utils.data import DataLoader, Dataset
from torchvision.io import ImageReadMode, decode_jpeg
from torchvision.transforms import v2

from benchmarks.in_turn import in_turn, raw_log, table, versions, write
from retina_ray.data.augment import Augmentation
from retina_ray.data.batch import MEAN, STD
from retina_ray.data.loader import Loader, Samples
from retina_ray.data.order import Share
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.synthetic import write_synthetic

STORED, WANTED = 344, 299
NUMBER = 960
BATCH = 32
WORKERS = 2
ROUNDS = 5


class Rival(Dataset[torch.Tensor]):
    """A data set's JPEG files or raw pixels through torchvision's transforms.

    Args:
        folder: of the data set.
        side: of the images that it returns, pixels.
        augmented: false resizes and normalises, and does nothing else.
    """

    def __init__(self, folder: Path, side: int, *, augmented: bool = True) -> None:
        self._dataset = ShardedDataset.open(str(folder))
        augmentation = Augmentation()
        shear = math.degrees(math.atan(augmentation.skew))
        changes = [
            v2.RandomHorizontalFlip(),
            v2.RandomVerticalFlip(),
            v2.RandomChoice([v2.RandomRotation((angle, angle)) for angle in (0, 90, 180, 270)]),
            v2.RandomAffine(
                degrees=0,
                scale=(1 - augmentation.scale, 1 + augmentation.scale),
                shear=(-shear, shear),
                interpolation=v2.InterpolationMode.BILINEAR,
            ),
        ]
        self._transform = v2.Compose(
            [
                *(changes if augmented else []),
                v2.Resize(side, antialias=True),
                v2.ToDtype(torch.float32, scale=True),
                v2.Normalize(MEAN, STD),
            ]
        )

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._dataset)

    def __getitem__(self, row: int) -> torch.Tensor:
        """Return an augmented image (3, H, W)."""
        stored = torch.frombuffer(bytearray(self._dataset.image(row)), dtype=torch.uint8)
        if self._dataset.manifest.encoding == "jpeg":
            image = decode_jpeg(stored, mode=ImageReadMode.RGB)
        else:
            pixels = self._dataset.manifest.image_size
            image = stored.view(pixels, pixels, 3).permute(2, 0, 1)
        augmented: torch.Tensor = self._transform(image)
        return augmented


def ours(folder: Path) -> Callable[[], float]:
    """Return what measures an epoch of the product's loader."""
    dataset = ShardedDataset.open(str(folder))
    samples = Samples(dataset, torch.arange(len(dataset)).numpy(), dataset.grades)
    loader = Loader(
        samples,
        share=Share(0, 1, BATCH, 1),
        augmentation=Augmentation(),
        image_size=WANTED,
        backend="torch",
        device=torch.device("cpu"),
        seed=0,
        num_threads=WORKERS,
        shuffle=True,
    )
    epochs = iter(range(10**6))

    def epoch() -> float:
        begin, count = time.perf_counter(), 0
        for (batch,) in loader.epoch(next(epochs)):
            assert batch.images.shape[1:] == (3, WANTED, WANTED)
            count += len(batch.images)
        return count / (time.perf_counter() - begin)

    return epoch


def torchvision(folder: Path) -> Callable[[], float]:
    """Return what measures an epoch of the rival."""
    loader = DataLoader(
        Rival(folder, WANTED),
        batch_size=BATCH,
        shuffle=True,
        num_workers=WORKERS,
        persistent_workers=True,
        prefetch_factor=2,
    )

    def epoch() -> float:
        begin, count = time.perf_counter(), 0
        for images in loader:
            assert images.shape[1:] == (3, WANTED, WANTED)
            count += len(images)
        return count / (time.perf_counter() - begin)

    return epoch


def main() -> None:
    """Measure both encodings."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    draw = partial(
        write_synthetic, tasks=("dr",), images_per_task=NUMBER, image_size=STORED, seed=0, num_workers=WORKERS
    )
    results, tables = {}, {}
    log = raw_log("augmentation", "torchvision")
    for encoding in ("raw", "jpeg"):
        folder = work / encoding
        draw(str(folder), encoding=encoding)
        log({"encoding": encoding})
        results[encoding] = in_turn({"ours": ours(folder), "torchvision v2": torchvision(folder)}, ROUNDS, log=log)
        title = f"Augmented batches, {encoding} {STORED} -> {WANTED} px, {WORKERS} workers"
        tables[title] = table(results[encoding], ours="ours", unit="images/s")
    record = {"images": NUMBER, "batch": BATCH, "workers": WORKERS, "images_per_second": results}
    write("augmentation", {"rivals": versions("torchvision"), **record}, tables)


if __name__ == "__main__":
    main()
