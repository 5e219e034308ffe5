"""The training loop against PyTorch Lightning and against loops under plain torchrun, in one process and in two ranks.

Run with ``python -m benchmarks.training_rivals WORK`` after ``pip install lightning``; draws its own photographs there,
taking some fifteen minutes on two cores. Every contestant of `benchmarks.training_loops` trains the same network from
the same weights for the same steps, in fresh processes, in turn; the first round does not count, nor does the first
epoch of any. A step's time is that between two optimiser steps of an epoch, whatever happens there. Writes
``benchmarks/results/training-rivals.json`` and ``.md``.
"""

import argparse
import json
import os
import shutil
import statistics
import subprocess
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

from benchmarks.in_turn import Log, raw_log, require, versions, write
from benchmarks.training_loops import TASK
from retina_ray.config import RunConfig, override
from retina_ray.data.synthetic import write_synthetic
from retina_ray.recipes import load_recipe

IMAGES = 1280
"""Of which half train."""
SIDE, EPOCHS, ROUNDS, RANKS = 64, 4, 4, 2
RIVALS = ("lightning", "torchmetrics")

Figures = dict[str, Any]


@dataclass(frozen=True)
class Contestant:
    """A way to train.

    Attributes:
        name: in the tables.
        loop: in `benchmarks.training_loops`.
        ranks: processes that train; 1 has none of what several need.
        torchrun: whether torchrun starts them; otherwise the loop itself does.
    """

    name: str
    loop: str
    ranks: int
    torchrun: bool = False


ARENAS: dict[str, tuple[Contestant, ...]] = {
    "one process": (
        Contestant("retina_ray", "ours", 1),
        Contestant("Lightning", "lightning", 1),
        Contestant("Lightning, fed by our loader", "lightning-fed", 1),
        Contestant("plain PyTorch", "plain", 1),
    ),
    "two ranks": (
        Contestant("retina_ray, Ray Train", "ray", RANKS),
        Contestant("retina_ray, torchrun", "ours", RANKS, torchrun=True),
        Contestant("Lightning", "lightning", RANKS),
        Contestant("Lightning, fed by our loader", "lightning-fed", RANKS),
        Contestant("plain PyTorch, torchrun", "plain", RANKS, torchrun=True),
    ),
}


def configure(data: Path, storage: Path, *, ranks: int, side: int, epochs: int) -> RunConfig:
    """Return a single-task run of one stage with a constant rate, and no checkpoint but the last."""
    return override(
        load_recipe("sall_debug"),
        {
            "name": "run",
            "data.path": str(data),
            "data.image_size": side,
            "method.tasks": [TASK],
            "method.synergic_labels": False,
            "method.multi_task": False,
            "method.temperature": 1.0,
            "optim.schedule": "constant",
            "train.epochs": epochs,
            "train.deterministic": False,
            "evaluate.bootstrap": 0,
            "runtime.storage": str(storage),
            "runtime.workers": ranks if ranks > 1 else 0,
            "runtime.checkpoint.every_s": None,
            "tracking.enabled": False,
        },
    )


def trained(contestant: Contestant, config: RunConfig, folder: Path, *, workers: int) -> Figures:
    """Train in fresh processes and return the figures."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    (folder / "config.json").write_text(config.model_dump_json(), encoding="utf-8")
    launcher = ["-m", "torch.distributed.run", "--standalone", f"--nproc-per-node={contestant.ranks}"]
    command = [sys.executable, *(launcher if contestant.torchrun else []), "-m", "benchmarks.training_loops"]
    threads = max(1, len(os.sched_getaffinity(0)) // contestant.ranks)
    with (folder / "output.txt").open("w", encoding="utf-8") as output:
        code = subprocess.run(
            [*command, contestant.loop, str(folder), "--workers", str(workers)],
            env={**os.environ, "OMP_NUM_THREADS": str(threads), "PYTHONPATH": os.pathsep.join(sys.path)},
            stdout=output,
            stderr=subprocess.STDOUT,
            check=False,
        ).returncode
    if code:
        raise RuntimeError(f"{contestant.name} ended with {code}:\n{(folder / 'output.txt').read_text()[-2000:]}")
    times = [[float(line) for line in file.read_text().split()] for file in sorted((folder / "steps").iterdir())]
    losses = json.loads((folder / "losses.json").read_text(encoding="utf-8"))
    return {**figures([each for each in times if each], config), "losses": losses}


def figures(times: Sequence[Sequence[float]], config: RunConfig) -> Figures:
    """Return what the times of the optimiser steps say, after the first epoch.

    Args:
        times: seconds, a list per rank, of equal length.
        config: of the run.

    Returns:
        ``step_ms``: the median time between two steps of an epoch, over all ranks; ``images_per_second``: those of the
        global batch over the mean of that time; ``epoch_s``: an epoch with validation and all else between epochs;
        ``steps``: how many each rank made.

    Raises:
        RuntimeError: the ranks made different numbers of steps, or no whole epochs.
    """
    counts = {len(each) for each in times}
    if len(counts) != 1 or (count := counts.pop()) % config.train.epochs:
        raise RuntimeError(f"{[len(each) for each in times]} steps in {config.train.epochs} epochs")
    per_epoch = count // config.train.epochs
    between = [
        later - earlier
        for each in times
        for number, (earlier, later) in enumerate(pairwise(each), start=1)
        if number > per_epoch and number % per_epoch
    ]
    first = times[0]
    return {
        "step_ms": 1e3 * statistics.median(between),
        "images_per_second": config.train.global_batch_size / statistics.mean(between),
        "epoch_s": (first[-1] - first[per_epoch - 1]) / (config.train.epochs - 1),
        "steps": count,
    }


def compare(
    arena: Sequence[Contestant], data: Path, work: Path, given: argparse.Namespace, log: Log
) -> dict[str, list[Figures]]:
    """Train with each in turn, after a round that does not count."""
    found: dict[str, list[Figures]] = {contestant.name: [] for contestant in arena}
    for number in range(given.rounds + 1):
        for contestant in arena:
            folder = work / "run"
            config = configure(data, folder / "storage", ranks=contestant.ranks, side=given.side, epochs=given.epochs)
            result = trained(contestant, config, folder, workers=given.loader_workers)
            log({"round": number, "contestant": contestant.name, "ranks": contestant.ranks, **result})
            if number:
                found[contestant.name].append(result)
    return found


def table(found: Mapping[str, Sequence[Figures]]) -> str:
    """Return a Markdown table; the first is ours, the ratio of steps the median of the rounds'."""
    lines = [
        "| | ms / step, median | lowest | highest | this / ours | images/s | s / epoch | loss, first epoch | last |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    ours = next(iter(found.values()))
    for name, rounds in found.items():
        steps = [each["step_ms"] for each in rounds]
        ratio = statistics.median(each["step_ms"] / own["step_ms"] for each, own in zip(rounds, ours, strict=True))
        cells = [
            *(f"{value:.1f}" for value in (statistics.median(steps), min(steps), max(steps))),
            f"{ratio:.2f}",
            f"{median(rounds, 'images_per_second'):.0f}",
            f"{median(rounds, 'epoch_s'):.2f}",
            *(f"{statistics.median(each['losses'][epoch] for each in rounds):.2f}" for epoch in (0, -1)),
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def median(rounds: Sequence[Figures], key: str) -> float:
    """Return the median of a figure."""
    return statistics.median(each[key] for each in rounds)


def main() -> None:
    """Draw, train by each, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, default=IMAGES)
    parser.add_argument("--side", type=int, default=SIDE)
    parser.add_argument("--epochs", type=int, default=EPOCHS)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    parser.add_argument("--loader-workers", type=int, default=1, help="processes of torch's loader, of each rank")
    given = parser.parse_args()
    require("lightning")
    work: Path = given.work.resolve()
    data = work / f"data-{given.images}-{given.side}"
    if not (data / "dataset.json").exists():
        write_synthetic(
            str(data), tasks=(TASK,), images_per_task=given.images, image_size=given.side, seed=0, num_workers=2
        )
    log = raw_log("training-rivals", *RIVALS)
    found = {name: compare(arena, data, work, given, log) for name, arena in ARENAS.items()}
    settings = {key: value for key, value in vars(given).items() if key != "work"}
    write(
        "training-rivals",
        {"rivals": versions(*RIVALS), "settings": settings, **found},
        {f"{name[0].upper()}{name[1:]}": table(results) for name, results in found.items()},
    )


if __name__ == "__main__":
    main()
