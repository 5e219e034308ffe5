"""What a second worker costs here, a cost model fitted to it, and what that model says of 8, 64 and 512 GPUs.

Run with ``python -m benchmarks.scaling WORK``; draws its own photographs there, taking some six minutes on two cores.
Under torchrun, so that nothing of Ray is in it, in turn: one worker, two workers, and two that know nothing of each
other. Then each constant of the model by itself: the all-reduce, the loader, the disk, a checkpoint. Writes
``benchmarks/results/scaling.json`` and ``.md``. ``--predict`` prints what the model says of GPUs, and measures nothing.
"""

import argparse
import json
import math
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist

from benchmarks import ray_overhead
from benchmarks import scaling_model as model
from benchmarks.in_turn import in_turn, write
from retina_ray.config import override
from retina_ray.data.augment import Augmentation, matrices
from retina_ray.data.schema import KNOWN_TASKS
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.synthetic import write_synthetic
from retina_ray.data.torch_loader import TorchRenderer
from retina_ray.methods import catalogue
from retina_ray.recipes import load_recipe
from retina_ray.training.engine import build_engine
from retina_ray.training.state import TrainState, save
from retina_ray.training.world import World

BATCH, EPOCHS, ROUNDS = 32, 4, 3
IMAGES = 1280
"""Of which half train: 20 steps of one worker in an epoch, 10 of two."""
LOADS = {"64 to 64 px": (64, 64), "344 to 299 px": (344, 299)}
"""What the loader reads and makes, JPEG in both cases."""
MESSAGES = (4, 2**16, 2**20, 2**22, 2**24, 2**26)
FILE_BYTES, BLOCK_BYTES = 2**28, 2**20

GPUS = (1, 8, 64, 512)
PUBLISHED = {8: 7.75, 16: 14.51, 32: 28.42, 64: 57.0}
"""NVIDIA's EfficientNet-B4 in mixed precision: how many times one A100's 331 images/s so many GPUs reach."""

Figures = dict[str, float]


def launch(program: str, arguments: Sequence[str], *, processes: int) -> subprocess.Popen[bytes]:
    """Start a script under torchrun, one thread a process."""
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={processes}"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[1])}
    return subprocess.Popen([*command, program, *arguments], env=environment, stdout=subprocess.DEVNULL)


def finish(*started: subprocess.Popen[bytes]) -> None:
    """Wait for processes, and fail if one of them did."""
    codes = [process.wait() for process in started]
    if any(codes):
        raise RuntimeError(f"torchrun ended with {codes}")


def training(dataset: Path, work: Path, *, workers: int) -> subprocess.Popen[bytes]:
    """Start a training of so many workers; the batch of each is the same however many there are."""
    config = override(
        ray_overhead.configure(str(dataset), work, EPOCHS),
        {
            "runtime.workers": workers,
            "runtime.cpus_per_worker": 1,
            "runtime.log_every": 1,
            "train.global_batch_size": workers * BATCH,
        },
    )
    shutil.rmtree(work, ignore_errors=True)
    work.mkdir(parents=True)
    (work / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    return launch(ray_overhead.__file__, ["--rank-of", str(work)], processes=workers)


def step_figures(work: Path) -> Figures:
    """Return rank 0's mean seconds of a step after the first epoch by phase, and the deviation of computing."""
    lines = (work / ray_overhead.RECORDS).read_text(encoding="utf-8").splitlines()
    records = {record["step"]: record for record in map(json.loads, lines) if record["kind"] == "step"}
    pairs = [
        (records[step], records[step + 1]) for step in records if step + 1 in records and records[step]["epoch"] > 1
    ]
    spent = {
        name: [after[f"{name}_s"] - before[f"{name}_s"] for before, after in pairs]
        for name in ("compute", "forward", "data_wait")
    }
    means = {f"{name}_s": statistics.mean(values) for name, values in spent.items()}
    return {**means, "deviation_s": statistics.stdev(spent["compute"]), "steps": len(pairs)}


def train_in_turn(dataset: Path, work: Path) -> dict[str, list[Figures]]:
    """Return the figures of one worker, of two, and of two that only share the machine, round by round."""
    found: dict[str, list[Figures]] = {"one": [], "two": [], "side by side": []}
    for _ in range(ROUNDS):
        finish(training(dataset, work / "one", workers=1))
        found["one"].append(step_figures(work / "one"))
        finish(training(dataset, work / "two", workers=2))
        found["two"].append(step_figures(work / "two"))
        beside = [work / "left", work / "right"]
        finish(*(training(dataset, each, workers=1) for each in beside))
        left, right = map(step_figures, beside)
        found["side by side"].append({name: (left[name] + right[name]) / 2 for name in left})
        print({name: f"{1e3 * runs[-1]['compute_s']:.1f} ms" for name, runs in found.items()}, flush=True)
    return found


def time_all_reduce(out: Path) -> None:
    """Be one of the ranks that add up messages of every size, and write the median seconds of each."""
    dist.init_process_group("gloo")
    torch.set_num_threads(1)
    medians = {}
    for size in MESSAGES:
        message, times = torch.zeros(size // 4), []
        for _ in range(max(10, min(300, 2**27 // size))):
            begin = time.perf_counter()
            dist.all_reduce(message)
            times.append(time.perf_counter() - begin)
        medians[size] = statistics.median(times)
    if dist.get_rank() == 0:
        out.write_text(json.dumps(medians), encoding="utf-8")
    dist.destroy_process_group()


def all_reduce_figures(work: Path) -> dict[str, list[float]]:
    """Return the seconds of each round by message size."""
    rounds = []
    for _ in range(ROUNDS):
        finish(launch(__file__, ["--all-reduce", str(work / "all-reduce.json")], processes=2))
        rounds.append(json.loads((work / "all-reduce.json").read_text(encoding="utf-8")))
    return {size: [each[size] for each in rounds] for size in rounds[0]}


def load_s(dataset: ShardedDataset, side: int) -> float:
    """Return seconds of one core to decode, augment and resample an image."""
    renderer = TorchRenderer(dataset, image_size=side, device=torch.device("cpu"), num_threads=1, prefetch=2)
    stored, rows = dataset.manifest.image_size, np.arange(256) % len(dataset)
    plans = [
        (part, matrices(Augmentation(), seed=0, epoch=0, rows=part, in_size=stored, out_size=side))
        for part in np.split(rows, len(rows) // BATCH)
    ]
    begin = time.process_time()
    for _ in renderer.render(plans):
        pass
    seconds = time.process_time() - begin
    renderer.close()
    return seconds / len(rows)


def loader_figures(work: Path) -> dict[str, list[float]]:
    """Return the seconds of `load_s` of each round by case."""
    cases = {
        name: partial(load_s, ShardedDataset.open(str(work / f"jpeg-{stored}")), side)
        for name, (stored, side) in LOADS.items()
    }
    return in_turn(cases, ROUNDS)


def read_s(file: Path, *, cached: bool) -> float:
    """Return seconds to read a file from its beginning to its end, from memory or from the disk below."""
    buffer = bytearray(BLOCK_BYTES)
    with file.open("rb", buffering=0) as source:
        if not cached:
            os.posix_fadvise(source.fileno(), 0, 0, os.POSIX_FADV_DONTNEED)
        begin = time.perf_counter()
        while source.readinto(buffer):
            pass
        return time.perf_counter() - begin


def disk_figures(work: Path) -> dict[str, list[float]]:
    """Return bytes per second of each round, from the page cache and past it."""
    file = work / "shard"
    with file.open("wb") as target:
        for _ in range(FILE_BYTES // BLOCK_BYTES):
            target.write(os.urandom(BLOCK_BYTES))
        os.fsync(target.fileno())
    ways = {"disk": partial(read_s, file, cached=False), "page cache": partial(read_s, file, cached=True)}
    times = in_turn(ways, ROUNDS)
    file.unlink()
    return {name: [FILE_BYTES / seconds for seconds in values] for name, values in times.items()}


def checkpoint_figures(work: Path, recipe: str) -> Figures:
    """Return parameters of a recipe's final network, bytes of its checkpoint, and seconds to write and hash it."""
    config = override(load_recipe(recipe), {"method.weights": "none"})
    plan = catalogue.plan(config, KNOWN_TASKS)
    stage = next(each for each in plan.stages if each.name in plan.finals)
    method = catalogue.build(config.method.name, stage.settings)
    engine = build_engine(method, optim=config.optim, train=config.train, seed=0, world=World())
    for parameter in engine.network.parameters():
        parameter.grad = torch.zeros_like(parameter)
    engine.optimizer.step()  # gives it the moments that a checkpoint holds
    state = TrainState(engine)
    state.keep_best()
    seconds = []
    for _ in range(ROUNDS):
        with tempfile.TemporaryDirectory(dir=work) as folder:
            begin = time.perf_counter()
            save(state, Path(folder))
            seconds.append(time.perf_counter() - begin)
            size = sum(path.stat().st_size for path in Path(folder).iterdir())
    parameters = sum(parameter.numel() for parameter in engine.network.parameters())
    return {"parameters": parameters, "bytes": size, "seconds": statistics.median(seconds)}


def measure(work: Path) -> dict[str, Any]:
    """Return the record."""
    for stored, _ in LOADS.values():
        count = IMAGES if stored == LOADS["64 to 64 px"][0] else 128
        folder = work / f"jpeg-{stored}"
        shutil.rmtree(folder, ignore_errors=True)
        write_synthetic(str(folder), tasks=("dr",), images_per_task=count, image_size=stored, seed=0, num_workers=2)
    sets = {stored: ShardedDataset.open(str(work / f"jpeg-{stored}")) for stored, _ in LOADS.values()}
    return {
        "batch": BATCH,
        "epochs": EPOCHS,
        "training": train_in_turn(work / "jpeg-64", work),
        "all_reduce_s": all_reduce_figures(work),
        "load_s": loader_figures(work),
        "image_bytes": {f"{px}": statistics.mean(len(each.image(i)) for i in range(128)) for px, each in sets.items()},
        "read_bytes_per_s": disk_figures(work),
        "checkpoints": {name: checkpoint_figures(work, name) for name in ("sall_debug", "sall")},
    }


def here(record: Mapping[str, Any]) -> tuple[model.Cluster, model.Job]:
    """Return this machine and the network that was trained, as the model sees them from one worker's figures."""
    one = {
        name: statistics.median(run[name] for run in record["training"]["one"]) for name in record["training"]["one"][0]
    }
    link = model.fit_link({int(size): statistics.median(v) for size, v in record["all_reduce_s"].items()}, 2)
    checkpoint = record["checkpoints"]["sall_debug"]
    cluster = model.Cluster(
        workers_per_node=2,
        inside=link,
        between=link,
        trees=False,
        hides=0.0,  # adding up takes the cores that compute
        jitter=one["deviation_s"] / one["compute_s"],
        loads_apart=False,
        disk_bytes_per_s=statistics.median(record["read_bytes_per_s"]["page cache"]),
        storage_bytes_per_s=math.inf,
        storage_limit_bytes_per_s=math.inf,
        save_bytes_per_s=checkpoint["bytes"] / checkpoint["seconds"],
    )
    job = model.Job(
        batch=record["batch"],
        image_s=one["compute_s"] / record["batch"],
        parameters=checkpoint["parameters"],
        load_s=statistics.median(record["load_s"]["64 to 64 px"]),
        image_bytes=record["image_bytes"]["64"],
        backward=1 - one["forward_s"] / one["compute_s"],
        checkpoint_every_s=math.inf,
    )
    return cluster, job


def measured_tables(record: Mapping[str, Any]) -> dict[str, str]:
    """Return the tables of what was measured, and of what the model makes of it."""
    runs = {
        name: [1e3 * (r["compute_s"] + r["data_wait_s"]) for r in each] for name, each in record["training"].items()
    }
    steps = ["| | ms / step, median | lowest | highest |", "|---|---|---|---|"]
    steps += [f"| {n} | {statistics.median(v):.1f} | {min(v):.1f} | {max(v):.1f} |" for n, v in runs.items()]
    cluster, job = here(record)
    beside_s = statistics.median(runs["side by side"]) / 1e3
    predictions = {
        "one worker": model.predict(cluster, job, 2),
        "two side by side": model.predict(cluster, replace(job, image_s=beside_s / job.batch, load_s=0.0), 2),
    }
    two = statistics.median(runs["two"])
    lines = [
        "| predicted from | computing | straggler | gradients | collectives | loading | ms / step | measured / this |"
    ]
    lines.append("|" + "---|" * 8)
    for name, step in predictions.items():
        parts = (step.compute_s, step.stragglers_s, step.gradients_s, step.collectives_s, step.loading_s, step.seconds)
        shown = " | ".join(f"{1e3 * part:.1f}" for part in parts)
        lines.append(f"| {name} | {shown} | {two / 1e3 / step.seconds:.2f} |")
    return {
        f"A step of {record['batch']} images a worker, one thread each": "\n".join(steps) + "\n",
        "Two workers as the model predicts them": "\n".join(lines) + "\n",
        "Constants": constants(record),
    }


def constants(record: Mapping[str, Any]) -> str:
    """Return a table of what was fitted or measured by itself."""
    cluster, job = here(record)
    link, save_of = cluster.inside, record["checkpoints"]
    messages = {int(size): statistics.median(values) for size, values in record["all_reduce_s"].items()}
    worst = max(abs(model.all_reduce_s(cluster, 2, size) / seconds - 1) for size, seconds in messages.items())
    disk = {name: statistics.median(values) / 1e9 for name, values in record["read_bytes_per_s"].items()}
    load = {name: 1e3 * statistics.median(values) for name, values in record["load_s"].items()}
    rows = {
        "gloo between two processes": f"{link.bytes_per_s / 1e9:.2f} GB/s, {1e6 * link.latency_s:.0f} us a message",
        "worst error of that fit": f"{worst:.0%} of the time",
        "parameters": f"{job.parameters:,}",
        "share of the backward pass": f"{job.backward:.2f}",
        "deviation of a worker's step": f"{cluster.jitter:.1%}",
        **{f"loading {name}, one core": f"{value:.2f} ms, {1e3 / value:.0f} images/s" for name, value in load.items()},
        "an image of 344 px": f"{record['image_bytes']['344'] / 1e3:.1f} kB",
        "reading a shard, page cache": f"{disk['page cache']:.1f} GB/s",
        "reading a shard, past the page cache": f"{disk['disk']:.2f} GB/s",
        **{
            f"checkpoint of {name}": f"{each['bytes'] / 1e6:.1f} MB in {each['seconds']:.2f} s, "
            f"{each['bytes'] / each['parameters']:.1f} bytes a parameter"
            for name, each in save_of.items()
        },
    }
    return "\n".join(["| | |", "|---|---|", *(f"| {name} | {value} |" for name, value in rows.items())]) + "\n"


def predicted_tables() -> dict[str, str]:
    """Return the tables of what the model says of GPUs."""
    tables = {title: prediction(cluster, jobs) for title, (cluster, jobs) in model.PREDICTED.items()}
    return {**tables, "The first epoch": first_epochs(), "EfficientNet-B4 on DGX A100": published()}


def prediction(cluster: model.Cluster, jobs: Mapping[str, model.Job]) -> str:
    """Return the table of a cluster's jobs on each number of GPUs."""
    lines = [
        "| | GPUs | global batch | ms / step | images/s | efficiency | most is lost to | busiest |",
        "|" + "---|" * 8,
    ]
    for name, job in jobs.items():
        for workers in GPUS:
            step, reached = model.predict(cluster, job, workers), model.efficiency(cluster, job, workers)
            cause, first = max(step.losses, key=step.losses.__getitem__), step.saturates_first
            rate = f"{1e3 * step.seconds:.1f} | {significant(model.throughput(cluster, job, workers))} | {reached:.0%}"
            lost = f"{cause}, {step.losses[cause] / step.seconds:.0%} | {first}, {step.busy[first]:.0%}"
            lines.append(f"| {name} | {workers} | {workers * job.batch:,} | {rate} | {lost} |")
    return "\n".join(lines) + "\n"


def first_epochs() -> str:
    """Return the table of how long nodes fetch a data set and how long an epoch takes then."""
    lines = ["| | photographs | GPUs | fetching, s | an epoch, s | steps in it |", "|" + "---|" * 6]
    cluster, jobs = model.PREDICTED["p5.48xlarge, eight H100 a node"]
    for name, photographs in model.PHOTOGRAPHS.items():
        job = jobs[name]
        for workers in GPUS[1:]:
            steps = -(-photographs // (workers * job.batch))
            fetching = model.fetch_s(cluster, workers, photographs * job.image_bytes)
            epoch = steps * model.predict(cluster, job, workers).seconds
            lines.append(
                f"| {name} | {photographs:,} | {workers} | {fetching:.0f} | {significant(epoch)} | {steps:,} |"
            )
    return "\n".join(lines) + "\n"


def published() -> str:
    """Return the table of a published scaling beside the model's."""
    job = model.Job(batch=128, image_s=1 / 331, parameters=19_300_000, load_s=0.0, image_bytes=0.0)
    lines = ["| GPUs | published | the model | the model without stragglers |", "|---|---|---|---|"]
    for workers, times in PUBLISHED.items():
        even = replace(model.A100, jitter=0.0)
        ours, ideal = (workers * model.efficiency(cluster, job, workers) for cluster in (model.A100, even))
        lines.append(f"| {workers} | {times:.2f} x | {ours:.2f} x | {ideal:.2f} x |")
    return "\n".join(lines) + "\n"


def significant(value: float) -> str:
    """Return a number above 0 with three digits that count."""
    return f"{float(f'{value:.3g}'):,.{max(0, 2 - math.floor(math.log10(value)))}f}"


def main() -> None:
    """Measure, or only predict."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", nargs="?", type=Path)
    parser.add_argument("--predict", action="store_true")
    parser.add_argument("--all-reduce", type=Path)
    arguments = parser.parse_args()
    if arguments.all_reduce:
        time_all_reduce(arguments.all_reduce)
    elif arguments.predict:
        print("\n".join(f"{title}\n\n{content}" for title, content in predicted_tables().items()))
    else:
        record = measure(arguments.work.resolve())
        write("scaling", record, {**measured_tables(record), **predicted_tables()})


if __name__ == "__main__":
    main()
