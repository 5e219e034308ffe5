"""Processor time per image of the two loaders' renderers on the CPU, A B A B.

Run with ``python benchmarks/resampling.py WORK``; draws its own photographs there. Both decode and augment the same
images with the same matrices, two threads each. Writes ``benchmarks/results/resampling.json``.
"""

import argparse
import json
import statistics
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch

from retina_ray.data.augment import Augmentation, matrices
from retina_ray.data.dali_loader import DaliRenderer
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.synthetic import write_synthetic
from retina_ray.data.torch_loader import TorchRenderer
from retina_ray.provenance import environment

RESULTS = Path(__file__).parent / "results"
CASES = (("jpeg", 384, 299), ("raw", 128, 128))
"""Encoding, stored side and network input, pixels."""
IMAGES, BATCH, BATCHES, REPEATS, THREADS = 128, 32, 24, 5, 2


def plans(stored: int, wanted: int, batches: int) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield rows (B,) and matrices (B, 2, 3) of fully augmented batches."""
    for batch in range(batches):
        rows = (np.arange(BATCH) + batch * BATCH) % IMAGES
        yield rows, matrices(Augmentation(), seed=1, epoch=batch, rows=rows, in_size=stored, out_size=wanted)


def measure(renderer: Any, stored: int, wanted: int) -> dict[str, float]:
    """Return milliseconds of wall and processor time per image."""
    wall, processor = time.perf_counter(), time.process_time()
    for _ in renderer.render(plans(stored, wanted, BATCHES)):
        pass
    images = BATCH * BATCHES
    return {
        "wall_ms": 1e3 * (time.perf_counter() - wall) / images,
        "cpu_ms": 1e3 * (time.process_time() - processor) / images,
    }


def difference(renderers: dict[str, Any], stored: int, wanted: int) -> dict[str, float]:
    """Return by how many grey levels the two differ."""
    one, other = (
        torch.cat([batch.images for batch in renderer.render(plans(stored, wanted, 4))]).int()
        for renderer in renderers.values()
    )
    gap = (one - other).abs().float()
    return {"mean": float(gap.mean()), "max": float(gap.max())}


def run_case(folder: Path, encoding: str, stored: int, wanted: int) -> dict[str, Any]:
    """Measure one kind of data set, the two in turn."""
    write_synthetic(
        str(folder), tasks=("dr",), images_per_task=IMAGES, image_size=stored, seed=0, encoding=encoding, num_workers=2
    )
    dataset = ShardedDataset.open(str(folder))
    shared = {"image_size": wanted, "device": torch.device("cpu"), "num_threads": THREADS, "prefetch": 2}
    renderers = {"torch": TorchRenderer(dataset, **shared), "dali": DaliRenderer(dataset, batch_size=BATCH, **shared)}
    gap = difference(renderers, stored, wanted)
    times: dict[str, list[dict[str, float]]] = {name: [] for name in renderers}
    for _ in range(REPEATS):
        for name, renderer in renderers.items():
            times[name].append(measure(renderer, stored, wanted))
    medians = {name: statistics.median(run["cpu_ms"] for run in runs) for name, runs in times.items()}
    print(encoding, f"{stored} -> {wanted} px:", {name: f"{value:.2f} ms" for name, value in medians.items()}, gap)
    return {"grey_levels_apart": gap, "median_cpu_ms": medians, "runs": times}


def main() -> None:
    """Run every case."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    cases = {
        f"{encoding} {stored} -> {wanted}": run_case(work / encoding, encoding, stored, wanted)
        for encoding, stored, wanted in CASES
    }
    RESULTS.mkdir(exist_ok=True)
    record = {"threads": THREADS, "images": IMAGES, "cases": cases, "environment": environment()}
    (RESULTS / "resampling.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")


if __name__ == "__main__":
    main()
