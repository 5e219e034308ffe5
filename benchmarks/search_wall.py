"""What sharing saves and what Ray Tune costs: the wall time of a search, and of the same trials without it.

Run with ``python -m benchmarks.search_wall WORK``. On a drawn SALL task, all in fresh folders: 16 trials by
`retina-ray tune`'s driver without early stopping; the same 16 configurations run naively, each its three stages on its
own; and, for the overhead, trials that repeat one configuration's length, by the search and in a plain loop over the
driver. Each twice, in turn. Writes ``benchmarks/results/search-wall.json`` and ``.md``.
"""

import argparse
import shutil
import statistics
import time
from pathlib import Path
from typing import Any

from benchmarks.in_turn import write
from retina_ray.cli.main import run
from retina_ray.config import RunConfig, override
from retina_ray.orchestration.preparation import plan_run
from retina_ray.orchestration.train_driver import stage_runner
from retina_ray.orchestration.tune_driver import SearchOptions, SearchResult, run_search
from retina_ray.orchestration.tune_trial import train_trial
from retina_ray.recipes import load_recipe

TRIALS = 16
LONG_TRIAL_S = 60.0


def a_config(work: Path, storage: str, epochs: int) -> RunConfig:
    """Return what every trial starts from, in a storage folder of its own."""
    shutil.rmtree(work / storage, ignore_errors=True)
    return override(
        load_recipe("sall_debug"),
        {
            "name": "search",
            "data.path": str(work / "data"),
            "runtime.storage": str(work / storage),
            "runtime.workers": 0,
            "train.epochs": epochs,
            "train.global_batch_size": 16,
            "tracking.enabled": False,
        },
    )


def searched(config: RunConfig) -> tuple[float, SearchResult]:
    """Run a search; return its wall time, Ray's start and end included."""
    start = time.perf_counter()
    result = run_search(config, SearchOptions("sall", trials=TRIALS, scheduler="none", concurrent=1))
    return time.perf_counter() - start, result


def naively(config: RunConfig, search: SearchResult, work: Path) -> tuple[float, dict[str, float]]:
    """Run the same configurations, each with its own three stages; return the wall time and that of each stage."""
    start = time.perf_counter()
    stages: dict[str, list[float]] = {}
    for record in search.trials:
        storage = work / "naive" / str(record.number)
        own = override(config, {**record.overrides, "runtime.storage": str(storage)})
        planned = plan_run(own)
        with stage_runner(planned, lambda record: None) as runner:
            artifacts = runner.run(planned.plan.without_test().stages)
        for name, artifact in artifacts.items():
            stages.setdefault(name, []).append(artifact.facts["wall_s"])
    return time.perf_counter() - start, {name: statistics.mean(seconds) for name, seconds in stages.items()}


def loop(config: RunConfig, search: SearchResult, storage: Path) -> float:
    """Train the search's configurations one after the other by the driver, teachers shared; return seconds."""
    start = time.perf_counter()
    for record in search.trials:
        own = override(config, {**record.overrides, "runtime.storage": str(storage)})
        train_trial(own, folds=None, report=lambda epoch, found, stages: None)
    return time.perf_counter() - start


def main() -> None:
    """Draw, run each in turn, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images-per-task", type=int, default=200)
    parser.add_argument("--epochs", type=int, default=6)
    parser.add_argument("--rounds", type=int, default=2)
    arguments = parser.parse_args()
    work: Path = arguments.work
    size = str(load_recipe("sall_debug").data.image_size)
    if not (work / "data" / "dataset.json").exists():
        images = str(arguments.images_per_task)
        if code := run(["data", "synth", str(work / "data"), "--images-per-task", images, "--size", size]):
            raise SystemExit(code)
    rounds: list[dict[str, Any]] = []
    for _ in range(arguments.rounds):
        config = a_config(work, "search", arguments.epochs)
        search_s, result = searched(config)
        shutil.rmtree(work / "naive", ignore_errors=True)
        naive_s, stages = naively(config, result, work)
        shutil.rmtree(work / "loop", ignore_errors=True)
        loop_s = loop(config, result, work / "loop")
        student = sum(seconds for name, seconds in stages.items() if name.startswith("student"))
        teaching = sum(stages.values()) - student
        rounds.append(
            {
                "search_s": search_s,
                "naive_s": naive_s,
                "loop_s": loop_s,
                "ratio": search_s / naive_s,
                "predicted": (teaching + TRIALS * student) / (TRIALS * (teaching + student)),
                "overhead_s_per_trial": (search_s - loop_s) / TRIALS,
                "stages_s": stages,
            }
        )
        print(rounds[-1], flush=True)
    lines = ["| | " + " | ".join(f"round {number + 1}" for number in range(len(rounds))) + " |"]
    lines.append("|---|" + "---|" * len(rounds))
    for name, unit in (
        ("search_s", "search, s"),
        ("naive_s", "16 x three stages, s"),
        ("ratio", "ratio"),
        ("predicted", "ratio from the stages' times"),
        ("loop_s", "the same trials in a loop, s"),
        ("overhead_s_per_trial", "overhead per trial, s"),
    ):
        lines.append(f"| {unit} | " + " | ".join(f"{each[name]:.2f}" for each in rounds) + " |")
    share = statistics.median(each["overhead_s_per_trial"] for each in rounds) / LONG_TRIAL_S
    lines.append("")
    lines.append(f"Of a trial of {LONG_TRIAL_S:.0f} s the overhead would be {share:.1%}.")
    settings = {"trials": TRIALS, "epochs": arguments.epochs, "images_per_task": arguments.images_per_task}
    title = f"{TRIALS} trials, by the search and without"
    write("search-wall", {"settings": settings, "rounds": rounds}, {title: "\n".join(lines) + "\n"})


if __name__ == "__main__":
    main()
