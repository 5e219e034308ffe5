"""Step time under Ray Train against the same code under torchrun, A B A B.

Run with ``python benchmarks/ray_overhead.py DATASET WORK``. Both sides train the same stage with the same ranks and
seed; only who starts the processes and takes the reports differs. The figure compared is the time per optimiser step
(computing and waiting for data), warm-up included. Writes ``benchmarks/results/ray-overhead.json``.
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
from retina_ray.orchestration.train_driver import train_driver
from retina_ray.provenance import environment
from retina_ray.recipes import load_recipe

RESULTS = Path(__file__).parent / "results"
RANKS = 2


def configure(dataset: str, storage: Path, epochs: int) -> RunConfig:
    """Return a single-task run with one stage and no checkpoint but the last."""
    return override(
        load_recipe("sall_debug"),
        {
            "name": "run",
            "data.path": dataset,
            "data.image_size": 128,
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


def step_seconds(timing: dict[str, float], steps: int) -> float:
    """Return the mean time per optimiser step."""
    return (timing["compute_s"] + timing.get("data_wait_s", 0.0)) / steps


def under_ray(config: RunConfig) -> float:
    """Train with Ray Train; return seconds per step."""
    artifact = next(iter(train_driver(config).artifacts.values()))
    return step_seconds(artifact.facts["timing"], artifact.facts["steps"])


def under_torchrun(config: RunConfig, work: Path) -> float:
    """Train the same stage under torchrun; return seconds per step."""
    work.mkdir(parents=True)
    (work / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={RANKS}"]
    subprocess.run(
        [*command, __file__, "--rank-of", str(work)],
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.DEVNULL,
    )
    described = json.loads((work / "artifact" / "artifact.json").read_text(encoding="utf-8"))
    return step_seconds(described["facts"]["timing"], described["facts"]["steps"])


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
    job = StageJob(config.model_dump(mode="json"), plan.stages[0], str(work / "artifact"), {}, threads=1)
    reporter = FolderReporter(work / "checkpoints")
    StageRun(job, world=World.detect(torch.device("cpu")), reporter=reporter).execute()
    dist.destroy_process_group()


def main() -> None:
    """Alternate the two, and write medians, spread and the ratio of each pair."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset", nargs="?")
    parser.add_argument("work", nargs="?", type=Path)
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--epochs", type=int, default=3)
    parser.add_argument("--rank-of", type=Path)
    arguments = parser.parse_args()
    if arguments.rank_of:
        run_rank(arguments.rank_of)
        return
    ray_s, torchrun_s = [], []
    for pair in range(arguments.pairs):
        storage = arguments.work / f"ray-{pair}"
        ray_s.append(under_ray(configure(arguments.dataset, storage, arguments.epochs)))
        work = arguments.work / f"torchrun-{pair}"
        torchrun_s.append(under_torchrun(configure(arguments.dataset, work, arguments.epochs), work))
        print(f"pair {pair}: ray {ray_s[-1] * 1e3:.1f} ms, torchrun {torchrun_s[-1] * 1e3:.1f} ms", flush=True)
    ratios = [ours / theirs for ours, theirs in zip(ray_s, torchrun_s, strict=True)]
    record: dict[str, Any] = {
        "ray_ms": [1e3 * value for value in ray_s],
        "torchrun_ms": [1e3 * value for value in torchrun_s],
        "median_ray_ms": 1e3 * statistics.median(ray_s),
        "median_torchrun_ms": 1e3 * statistics.median(torchrun_s),
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
