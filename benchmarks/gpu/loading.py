"""The product's loader alone, from data sets on disk to batches on the device, as fast as it goes.

Raw and JPEG shards at the network's size, augmented as SALL is. The roof is that of the upload of what is stored.
"""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

import numpy as np
import torch

from benchmarks.gpu import drawn
from benchmarks.gpu.decode import STEP_RATE
from benchmarks.gpu.part import Bench, Figure, Findings, installed, seconds
from benchmarks.gpu.roofline import roof_of
from benchmarks.in_turn import in_turn
from retina_ray.data.augment import Augmentation
from retina_ray.data.loader import Loader, Samples
from retina_ray.data.manifest import Encoding
from retina_ray.data.order import Share
from retina_ray.data.shards import ShardedDataset

SIZE, BATCH, IMAGES, DISTINCT, ROUNDS = 299, 256, 16384, 64, 3
THREADS = 8
"""Of a worker, at most, by the product's own rule."""

ENCODINGS: tuple[Encoding, ...] = ("raw", "jpeg")


def threads() -> int:
    """Return the CPU threads that the product would give one worker here."""
    return min(THREADS, len(os.sched_getaffinity(0)))


def dataset(bench: Bench, encoding: Encoding) -> tuple[ShardedDataset, Path]:
    """Return the data set that the loader and SALL's step read, drawn on first use, and its folder."""
    side, distinct, training, held_out = (64, 4, 16, 16) if bench.dry else (SIZE, DISTINCT, IMAGES, drawn.HELD_OUT)
    folder = bench.work / f"shards-{encoding}-{side}"
    images = [] if folder.exists() else drawn.photographs(side, distinct)
    return drawn.shards(folder, images, encoding=encoding, training=training, held_out=held_out), folder


def measure(bench: Bench, findings: Findings) -> None:
    """Measure both encodings by both loaders, in turn, an epoch at a time."""
    findings.facts |= {"images": IMAGES, "batch": BATCH, "threads": threads(), "side": SIZE}
    runs: dict[str, Callable[[], float]] = {}
    stored: dict[str, float] = {}
    for encoding in ENCODINGS:
        data, folder = dataset(bench, encoding)
        stored[encoding] = sum(file.stat().st_size for file in folder.rglob("*.arrow")) / len(data)
        for backend in ("dali", "torch"):
            if backend == "dali" and not installed("nvidia.dali"):
                findings.left_out["DALI"] = "no nvidia.dali"
                continue
            with findings.guarded(f"{encoding}, {backend}"):
                epoch = _epochs(data, backend, bench)
                epoch()
                runs[f"{encoding}, {backend}"] = epoch
    found = in_turn(runs, 1 if bench.dry else ROUNDS)
    for name, values in found.items():
        roof = roof_of(bench.device, dry=bench.dry).uploaded / stored[name.partition(",")[0]]
        findings.figures[name] = Figure(values, "images/s", at_least=STEP_RATE, roof=roof)
    findings.facts["stored bytes per image"] = stored


def _epochs(data: ShardedDataset, backend: str, bench: Bench) -> Callable[[], float]:
    """Return what loads another epoch and says how many images per second came."""
    rows = np.flatnonzero(data.splits == "train")
    loader = Loader(
        Samples(data, rows, data.grades),
        share=Share(0, 1, 8 if bench.dry else BATCH),
        augmentation=Augmentation(),
        image_size=data.manifest.image_size,
        backend="dali" if backend == "dali" else "torch",
        device=bench.device,
        seed=0,
        num_threads=threads(),
        dtype=torch.bfloat16 if bench.device.type == "cuda" else torch.float32,
        shuffle=True,
    )
    numbers: Iterator[int] = iter(range(10**6))

    def run() -> None:
        for _ in loader.epoch(next(numbers)):
            pass

    return lambda: len(rows) / seconds(run, bench.device)
