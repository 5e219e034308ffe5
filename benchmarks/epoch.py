"""A warm epoch of uint8 batches from a data set on disk, the loader alone, against the loaders that others use.

Run with ``python benchmarks/epoch.py WORK`` after ``pip install retina-ray[bench]``; draws its own photographs there.
Each loader reads the same pixels in its own format, as its guide sets it up, in random order, without augmentation, and
must hand over batches (B, S, S, 3) uint8. Writes ``benchmarks/results/epoch.json`` and ``.md``.
"""

import argparse
import shutil
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import litdata
import numpy as np
import torch
from streaming import MDSWriter, StreamingDataset
from torch.utils.data import DataLoader
from torchvision.datasets import ImageFolder
from torchvision.io import ImageReadMode, decode_image

from benchmarks.in_turn import in_turn, raw_log, table, versions, write
from retina_ray.data.augment import matrices
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.synthetic import write_synthetic
from retina_ray.data.torch_loader import TorchRenderer

SIZE = 344
NUMBER = 1500
BATCH = 32
WORKERS = 2
ROUNDS = 5

RIVALS = ("litdata", "mosaicml-streaming", "torchvision")

FORKED: dict[str, Any] = {"persistent_workers": True, "multiprocessing_context": "fork"}
"""Of every loader with worker processes; LitData's writer makes spawn the default when it is imported."""

Epochs = Callable[[int], Iterator[Any]]
"""Epoch number -> its batches."""


def ours(folder: Path) -> Epochs:
    """The loader's renderer, with as many threads as the others have processes."""
    dataset = ShardedDataset.open(str(folder))
    renderer = TorchRenderer(dataset, image_size=SIZE, device=torch.device("cpu"), num_threads=WORKERS, prefetch=2)

    def plans(epoch: int) -> Iterator[Any]:
        order = np.random.default_rng(epoch).permutation(len(dataset))
        for start in range(0, len(order) - BATCH + 1, BATCH):
            rows = order[start : start + BATCH]
            yield rows, matrices(None, seed=0, epoch=epoch, rows=rows, in_size=SIZE, out_size=SIZE)

    return lambda epoch: (rendered.images for rendered in renderer.render(plans(epoch)))


def lit(folder: Path) -> Epochs:
    """LitData: raw arrays in chunks, its own loader."""
    data = litdata.StreamingDataset(str(folder), shuffle=True, drop_last=True)
    loader = litdata.StreamingDataLoader(data, batch_size=BATCH, num_workers=WORKERS, **FORKED)
    return lambda _: (batch["image"] for batch in loader)


def mosaic(folder: Path) -> Epochs:
    """MosaicML Streaming: arrays in MDS shards, torch's loader."""
    data = StreamingDataset(local=str(folder), shuffle=True, batch_size=BATCH)
    loader = DataLoader(data, batch_size=BATCH, num_workers=WORKERS, drop_last=True, **FORKED)
    return lambda _: (batch["image"] for batch in loader)


def image_folder(folder: Path) -> Epochs:
    """Torchvision's ImageFolder of JPEG files with its fast decoder, torch's loader."""
    data = ImageFolder(str(folder), loader=read_jpeg)
    loader = DataLoader(data, batch_size=BATCH, shuffle=True, num_workers=WORKERS, drop_last=True, **FORKED)
    return lambda _: (images for images, _ in loader)


def read_jpeg(path: str) -> torch.Tensor:
    """Return a file's pixels (S, S, 3)."""
    return decode_image(path, mode=ImageReadMode.RGB).permute(1, 2, 0)


def prepare(work: Path) -> None:
    """Draw the photographs and write them in every format."""
    shutil.rmtree(work, ignore_errors=True)
    for encoding in ("raw", "jpeg"):
        write_synthetic(
            str(work / encoding),
            tasks=("dr",),
            images_per_task=NUMBER,
            image_size=SIZE,
            seed=0,
            encoding=encoding,
            num_workers=WORKERS,
        )
    dataset = ShardedDataset.open(str(work / "raw"))
    litdata.optimize(
        Pixels(work / "raw"), list(range(len(dataset))), str(work / "litdata"), num_workers=1, chunk_bytes="64MB"
    )
    with MDSWriter(out=str(work / "mosaic"), columns={"image": f"ndarray:uint8:{SIZE},{SIZE},3"}) as writer:
        for row in range(len(dataset)):
            writer.write({"image": pixels(dataset, row)})
    encoded = ShardedDataset.open(str(work / "jpeg"))
    (work / "folder" / "0").mkdir(parents=True)
    for row in range(len(encoded)):
        (work / "folder" / "0" / f"{row:06d}.jpg").write_bytes(encoded.image(row))


def pixels(dataset: ShardedDataset, row: int) -> np.ndarray:
    """Return a stored image (S, S, 3)."""
    return np.frombuffer(dataset.image(row), np.uint8).reshape(SIZE, SIZE, 3)


class Pixels:
    """Row -> sample, for LitData's writer, which calls it in a process of its own."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def __call__(self, row: int) -> dict[str, np.ndarray]:
        """Return the sample of a row."""
        return {"image": pixels(ShardedDataset.open(str(self._folder)), row).copy()}


def rate(epochs: Epochs) -> Callable[[], float]:
    """Return what measures samples per second of the next epoch."""
    number = iter(range(10**6))

    def epoch() -> float:
        count = 0
        begin = time.perf_counter()
        for batch in epochs(next(number)):
            assert batch.shape[1:] == (SIZE, SIZE, 3)
            assert batch.dtype == torch.uint8
            count += len(batch)
        seconds = time.perf_counter() - begin
        assert count == NUMBER // BATCH * BATCH
        return count / seconds

    return epoch


def main() -> None:
    """Measure raw shards and JPEG files."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    prepare(work)
    raw = {"ours": ours(work / "raw"), "litdata": lit(work / "litdata"), "mosaicml-streaming": mosaic(work / "mosaic")}
    jpeg = {"ours": ours(work / "jpeg"), "ImageFolder": image_folder(work / "folder")}
    contestants = {**raw, "ImageFolder": jpeg["ImageFolder"]}
    log = raw_log("epoch", *RIVALS)
    values = in_turn({name: rate(epochs) for name, epochs in contestants.items()}, ROUNDS, log=log)
    log({"from": "JPEG"})
    encoded = in_turn({name: rate(epochs) for name, epochs in jpeg.items()}, ROUNDS, log=log)
    write(
        "epoch",
        {
            "rivals": versions(*RIVALS),
            "images": NUMBER,
            "size": SIZE,
            "batch": BATCH,
            "workers": WORKERS,
            "raw": values,
            "jpeg": encoded,
        },
        {
            f"Warm epoch, {NUMBER} images of {SIZE} px, {WORKERS} workers; raw, but JPEG files for ImageFolder": table(
                values, ours="ours", unit="samples/s"
            ),
            "The same from JPEG": table(encoded, ours="ours", unit="samples/s"),
        },
    )


if __name__ == "__main__":
    main()
