"""Step time under Ray Train against the same code under torchrun, A B A B.

Run with ``python benchmarks/ray_overhead.py DATASET WORK``; the data set of ``retina-ray demo`` will do. Both sides
train the same stage with the same ranks, threads and seed; only who starts the processes and takes the reports differs.
The figure compared is the time per optimiser step (computing and waiting for data) after the first epoch. Writes
``benchmarks/results/ray-overhead.json``.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from retina_ray.config import RunConfig, from_mapping, override
from retina_ray.methods import catalogue
from retina_ray.orchestration.preparation import open_dataset
from retina_ray.orchestration.resources import local_resources, share_out
from retina_ray.orchestration.train_driver import train_driver
from retina_ray.provenance import environment
from retina_ray.recipes import load_recipe

RESULTS = Path(__file__).parent / "results"
RANKS = 2
RECORDS = "records.jsonl"


def configure(dataset: str, storage: Path, epochs: int) -> RunConfig:
    """Return a single-task run with one stage and no checkpoint but the last."""
    return override(
        load_recipe("sall_debug"),
        {
            "name": "run",
            "data.path": dataset,
            "method.tasks": ["dr"],
            "method.synergic_labels": False,
            "method.multi_task": False,
            "train.epochs": epochs,
            "evaluate.bootstrap": 0,
            "runtime.storage": str(storage),
            "runtime.workers": RANKS,
            "runtime.checkpoint.every_s": None,
            "tracking.enabled": False,
        },
    )


def figures(records: list[dict[str, Any]]) -> dict[str, float]:
    """Return the time per optimiser step after the first epoch, and the images per second and data wait of the run."""
    first, *_, last = [record for record in records if record["kind"] == "epoch"]
    busy = [record["compute_s"] + record.get("data_wait_s", 0.0) for record in (first, last)]
    return {
        "step_ms": 1e3 * (busy[1] - busy[0]) / (last["step"] - first["step"]),
        "images_per_second": last["images_per_second"],
        "data_wait_share": last["data_wait_share"],
    }


def under_ray(config: RunConfig) -> dict[str, float]:
    """Train with Ray Train."""
    records: list[dict[str, Any]] = []
    train_driver(config, listener=records.append)
    return figures(records)


def under_torchrun(config: RunConfig, work: Path) -> dict[str, float]:
    """Train the same stage under torchrun."""
    work.mkdir(parents=True)
    (work / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    subprocess.run(
        [*command, __file__, "--rank-of", str(work)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": str(threads(config))},
        stdout=subprocess.DEVNULL,
    )
    return figures([json.loads(line) for line in (work / RECORDS).read_text(encoding="utf-8").splitlines()])


def threads(config: RunConfig) -> int:
    """Return the threads of a rank, as Ray shares them out."""
    return share_out(config.runtime, local_resources()).cpus


def run_rank(work: Path) -> None:
    """Be one rank under torchrun."""
    import torch
    import torch.distributed as dist

    from retina_ray.training.reporter import FolderReporter
    from retina_ray.training.stage import StageJob, StageRun
    from retina_ray.training.world import World

    dist.init_process_group("gloo")
    config = from_mapping(json.loads((work / "config.json").read_text(encoding="utf-8")))
    plan = catalogue.plan(config, {task.name: task for task in open_dataset(config).tasks})
    job = StageJob(config.model_dump(mode="json"), plan.stages[0], str(work / "artifact"), {}, threads(config))
    world = World.detect(torch.device("cpu"))
    with (work / RECORDS if world.is_main else Path(os.devnull)).open("w", encoding="utf-8") as file:
        reporter = FolderReporter(work / "checkpoints", listener=lambda record: print(json.dumps(record), file=file))
        StageRun(job, world=world, reporter=reporter).execute()
    dist.destroy_process_group()


def main() -> None:
    """Alternate the two, and write medians, spread and the ratio of each pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("work", nargs="?", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--rank-of", type=Path)
    arguments = parser.parse_args()
    if arguments.rank_of:
        run_rank(arguments.rank_of)
        return
    ray, torchrun = [], []
    for pair in range(arguments.pairs):
        storage = arguments.work / f"ray-{pair}"
        ray.append(under_ray(configure(arguments.dataset, storage, arguments.epochs)))
        work = arguments.work / f"torchrun-{pair}"
        torchrun.append(under_torchrun(configure(arguments.dataset, work, arguments.epochs), work))
        print(f"pair {pair}: ray {ray[-1]}, torchrun {torchrun[-1]}", flush=True)
    ratios = [ours["step_ms"] / theirs["step_ms"] for ours, theirs in zip(ray, torchrun, strict=True)]
    record: dict[str, Any] = {
        "ray": ray,
        "torchrun": torchrun,
        "median_ray_ms": statistics.median(run["step_ms"] for run in ray),
        "median_torchrun_ms": statistics.median(run["step_ms"] for run in torchrun),
        "ratio_per_pair": ratios,
        "median_ratio": statistics.median(ratios),
        "ranks": RANKS,
        "environment": environment(),
    }
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "ray-overhead.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    print(f"median ratio ray / torchrun: {record['median_ratio']:.3f}")


if __name__ == "__main__":
    main()
