"""What more photographs cost: time and memory of ingest, and of an epoch, at once, four and sixteen times the number.

Run with ``python benchmarks/growth.py WORK``; draws its own photographs there. Every measurement is a process of its
own, whose peak memory is read from the system. Writes ``benchmarks/results/growth.json`` and ``.md``.
"""

import argparse
import csv
import json
import resource
import shutil
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import simplejpeg
import torch

from benchmarks.in_turn import write
from retina_ray.data.augment import Augmentation
from retina_ray.data.ingest import ingest
from retina_ray.data.loader import Loader, Samples
from retina_ray.data.order import Share
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.sources.base import tasks_of
from retina_ray.data.sources.csv_table import read_csv
from retina_ray.data.synthetic import draw
from retina_ray.data.workers import in_processes

BASE = 250
FACTORS = (1, 4, 16)
SOURCE_SIZE, SIZE = 768, 256
WORKERS = 2


def photographs(folder: Path, number: int) -> Path:
    """Write photographs and their table; a few drawn ones, each brightened otherwise, so that all files differ."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    drawn = [draw(size=SOURCE_SIZE, task="dr", grade=index % 5, seed=0, index=index).image for index in range(20)]
    rng = np.random.default_rng(0)
    with (folder / "labels.csv").open("w", newline="") as file:
        table = csv.writer(file)
        table.writerow(["image", "dr"])
        for index in range(number):
            noisy = drawn[index % len(drawn)] * rng.uniform(0.8, 1.1)
            name = f"{index:06d}.jpg"
            (folder / name).write_bytes(simplejpeg.encode_jpeg(np.clip(noisy, 0, 255).astype(np.uint8), 90))
            table.writerow([name, index % 5])
    return folder / "labels.csv"


def run_ingest(table: str, out: str) -> None:
    """Ingest a table."""
    rows = read_csv(Path(table), columns={"image": "image", "dr": "dr"})
    ingest(rows, out, tasks=tasks_of(rows), image_size=SIZE, work=in_processes(WORKERS), overwrite=True)


def run_epoch(out: str) -> None:
    """Read an augmented epoch of all rows."""
    dataset = ShardedDataset.open(out)
    loader = Loader(
        Samples(dataset, np.arange(len(dataset)), dataset.grades),
        share=Share(0, 1, 32, 1),
        augmentation=Augmentation(),
        image_size=SIZE,
        backend="torch",
        device=torch.device("cpu"),
        seed=0,
        num_threads=WORKERS,
        shuffle=True,
    )
    for _ in loader.epoch(0):
        pass


def measured(*arguments: str) -> dict[str, float]:
    """Run this file with arguments; return what it measured of itself."""
    done = subprocess.run([sys.executable, __file__, *arguments], check=True, capture_output=True, text=True)
    found: dict[str, float] = json.loads(done.stdout.splitlines()[-1])
    return found


def measure(kind: str, arguments: list[str]) -> None:
    """Do one measurement and print it."""
    begin = time.perf_counter()
    {"ingest": run_ingest, "epoch": run_epoch}[kind](*arguments)
    peaks = [resource.getrusage(who).ru_maxrss for who in (resource.RUSAGE_SELF, resource.RUSAGE_CHILDREN)]
    print(json.dumps({"s": time.perf_counter() - begin, "peak_mb": peaks[0] / 1024, "worker_peak_mb": peaks[1] / 1024}))


def main() -> None:
    """Measure every size, three times each."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work
    results = []
    for factor in FACTORS:
        table = photographs(work / "photographs", factor * BASE)
        out = str(work / f"set-{factor}")
        for _ in range(3):
            for kind, arguments in (("ingest", [str(table), out]), ("epoch", [out])):
                results.append({"factor": factor, "kind": kind, **measured(kind, *arguments)})
    lines = ["| | images | s | ms / image | peak memory MB | of a worker MB |", "|---|---|---|---|---|---|"]
    for kind in ("ingest", "epoch"):
        for factor in FACTORS:
            runs = [each for each in results if (each["kind"], each["factor"]) == (kind, factor)]
            names = ("s", "peak_mb", "worker_peak_mb")
            seconds, peak, worker = (np.median([run[name] for run in runs]) for name in names)
            number = factor * BASE
            lines.append(
                f"| {kind} | {number} | {seconds:.1f} | {1e3 * seconds / number:.1f} | {peak:.0f} | {worker:.0f} |"
            )
    title = f"Cost as the work grows: photographs of {SOURCE_SIZE} px to {SIZE} px, {WORKERS} workers, medians of three"
    write("growth", {"runs": results}, {title: "\n".join(lines) + "\n"})


if __name__ == "__main__":
    if sys.argv[1] in ("ingest", "epoch"):
        measure(sys.argv[1], sys.argv[2:])
    else:
        main()
