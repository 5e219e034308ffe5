"""How many epochs a search needs for what random search at full budget finds, on a drawn SALL task.

Run with ``python -m benchmarks.search_epochs WORK``. Draws two diseases, and trains a network on other drawn
photographs, from whose weights every trial starts, as trials on real ones start from ImageNet's; ``--from-scratch``
starts from random ones. Trains 64 random configurations of the space ``sall`` to the full budget once and keeps their
curves. Then, for each of 100 seeds: the goal is the best of 32 of the 64 at full budget; the search (TPE and successive
halving, as `retina-ray tune` does it) runs over the stored curves, a suggestion being answered by the nearest stored
configuration that was not yet tried; counted are its epochs until a trial ends at the goal.
At last the search runs live once, on Ray. Resumes where it stopped; about half an hour on two cores. Writes
``benchmarks/results/search-epochs.json`` and ``.md``, from random weights ``search-epochs-scratch``.
"""

import argparse
import json
import statistics
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from benchmarks.in_turn import write
from retina_ray.cli.main import run
from retina_ray.config import RunConfig, override
from retina_ray.data.store import Store
from retina_ray.metrics.json_text import json_text
from retina_ray.orchestration.halving import Halving
from retina_ray.orchestration.live_search import LiveSearch
from retina_ray.orchestration.tune_driver import SearchOptions, run_search
from retina_ray.orchestration.tune_trial import train_trial
from retina_ray.recipes import load_recipe
from retina_ray.search.goals import Goal, goals_of
from retina_ray.search.journal import Journal, TrialRecord
from retina_ray.search.space import SearchSpace, load_space
from retina_ray.search.study import SearchStudy

CONFIGURATIONS, RANDOM, SEEDS = 64, 32, 100
EPOCHS = 9


@dataclass(frozen=True)
class Curve:
    """A configuration trained to the full budget.

    Attributes:
        params: by name.
        values: of the goal, after each epoch.
    """

    params: dict[str, float]
    values: list[float]


def called(*words: str) -> None:
    """Run a command of retina-ray, and end where it fails."""
    if code := run(list(words)):
        raise SystemExit(code)


def draw(folder: Path, size: int, images_per_task: int, seed: int) -> None:
    """Draw photographs of two diseases, unless they are there."""
    if not (folder / "dataset.json").exists():
        images = ("--images-per-task", str(images_per_task), "--size", str(size), "--seed", str(seed))
        called("data", "synth", str(folder), *images)


def first_weights(work: Path, size: int, images_per_task: int) -> str:
    """Return the file of a network's weights that learnt the diseases from drawn photographs of its own."""
    draw(work / "first-data", size, images_per_task, seed=1)
    where = ("--data", str(work / "first-data"), "--storage", str(work / "runs"), "--name", "first")
    settings = ("--set", "runtime.workers=0", "--set", "tracking.enabled=false")
    called("train", "--recipe", "sall_debug", *where, *settings, "--resume")
    return str(work / "runs" / "first" / "bundle" / "model.safetensors")


def a_config(work: Path, weights: str) -> RunConfig:
    """Return what every trial starts from."""
    return override(
        load_recipe("sall_debug"),
        {
            "name": "live",
            "method.weights": weights,
            "data.path": str(work / "data"),
            "runtime.storage": str(work / "runs"),
            "runtime.workers": 0,
            "train.epochs": EPOCHS,
            "train.global_batch_size": 16,
            "tracking.enabled": False,
        },
    )


def random_curves(config: RunConfig, space: SearchSpace, goal: Goal, file: Path) -> list[Curve]:
    """Train random configurations to the full budget, those that the file does not hold yet."""
    known = [Curve(**json.loads(line)) for line in file.read_text().splitlines()] if file.exists() else []
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=7))
    study.set_user_attr("config", config.model_dump(mode="json"))
    for number in range(CONFIGURATIONS):
        trial = study.ask()
        overrides = space.overrides(trial)
        if number < len(known):
            continue
        values: list[float] = []
        train_trial(
            override(config, overrides),
            folds=None,
            report=lambda epoch, found, stages, values=values: values.append(found[goal.metric]),
        )
        known.append(Curve(dict(trial.params), values))
        with file.open("a") as out:
            out.write(json.dumps(vars(known[-1])) + "\n")
        print(f"curve {number + 1}/{CONFIGURATIONS}: {values[-1]:.3f}", flush=True)
    return known


class Nearest:
    """Finds the stored configuration that is nearest to a suggestion, each once, by parameters scaled to their ranges.

    Args:
        curves: the stored ones.
        logarithmic: names of parameters with a logarithmic range.
    """

    def __init__(self, curves: Sequence[Curve], logarithmic: set[str]) -> None:
        self._curves = curves
        self._names = sorted(curves[0].params)
        self._logarithmic = logarithmic
        points = np.array([self._scaled(curve.params) for curve in curves])
        self._low, self._span = points.min(axis=0), np.ptp(points, axis=0)
        self._points = (points - self._low) / self._span
        self._left = np.ones(len(curves), dtype=bool)

    def take(self, params: dict[str, float]) -> Curve:
        """Return the nearest of those that were not yet taken."""
        point = (np.array(self._scaled(params)) - self._low) / self._span
        distance = np.where(self._left, ((self._points - point) ** 2).sum(axis=1), np.inf)
        nearest = int(np.argmin(distance))
        self._left[nearest] = False
        return self._curves[nearest]

    def _scaled(self, params: dict[str, float]) -> list[float]:
        return [np.log(params[name]) if name in self._logarithmic else params[name] for name in self._names]


def epochs_to_reach(
    target: float, nearest: Nearest, space: SearchSpace, goal: Goal, config: RunConfig, seed: int
) -> int | None:
    """Return the epochs of a search over stored curves until a trial ends at or above the target.

    None where every trial above it was stopped before. What a trial only passes through on its way does not count.
    """
    plain = config.model_dump(mode="json")
    points = space.first(plain)
    study = SearchStudy(space, (goal,), config=plain, points=points, seed=seed)
    with tempfile.TemporaryDirectory(dir="/dev/shm") as folder:
        journal = Journal(Store(folder))
        search = LiveSearch(journal, study, (goal,), halving=Halving(EPOCHS), trials=CONFIGURATIONS)
        spent = 0
        while isinstance(following := search.next(), tuple):
            number, _ = following
            values = nearest.take(journal.trials[number].params).values
            stopped = False
            for epoch, value in enumerate(values, start=1):
                spent += 1
                found = {"figures": {goal.metric: value}, "stages": {}, "seconds": 0.0}
                stopped = search.report(number, {"epoch": float(epoch), **found})
                if stopped:
                    break
            search.end(number, "stopped" if stopped else "complete")
            if value >= target:
                return spent
    return None


def replay(curves: Sequence[Curve], space: SearchSpace, goal: Goal, config: RunConfig) -> list[dict[str, Any]]:
    """Search over the stored curves with many seeds."""
    logarithmic = {"method.temperature", "method.loss_weight.amd", "method.student.lr"}
    rows = []
    for seed in range(SEEDS):
        drawn = np.random.default_rng(seed).choice(len(curves), size=RANDOM, replace=False)
        target = max(curves[index].values[-1] for index in drawn)
        spent = epochs_to_reach(target, Nearest(curves, logarithmic), space, goal, config, seed)
        rows.append({"seed": seed, "target": target, "epochs": spent})
    return rows


def live_epochs(records: Sequence[TrialRecord], target: float, metric: str) -> int | None:
    """Return the epochs that a search had trained when a trial ended at or above the target, or None."""
    events = [report.event for record in records for report in record.reports]
    reached = [record.reports[-1].event for record in records if (record.value(metric) or 0.0) >= target]
    return sum(event <= min(reached) for event in events) if reached else None


def main() -> None:
    """Draw, train, replay, search live, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images-per-task", type=int, default=300)
    parser.add_argument("--from-scratch", action="store_true")
    arguments = parser.parse_args()
    work: Path = arguments.work
    work.mkdir(parents=True, exist_ok=True)
    size = load_recipe("sall_debug").data.image_size
    weights = "none" if arguments.from_scratch else first_weights(work, size, arguments.images_per_task)
    draw(work / "data", size, arguments.images_per_task, seed=0)
    config, space = a_config(work, weights), load_space("sall")
    (goal,) = goals_of(space, None)
    curves = random_curves(config, space, goal, work / "curves.jsonl")
    full = RANDOM * EPOCHS
    rows = replay(curves, space, goal, config)
    spent = [row["epochs"] if row["epochs"] is not None else float("inf") for row in rows]
    found = run_search(config, SearchOptions("sall", trials=RANDOM, concurrent=1), resume=True)
    target = max(curve.values[-1] for curve in curves[:RANDOM])
    live = live_epochs(found.trials, target, goal.metric)
    all_epochs = sum(len(record.reports) for record in found.trials)
    quartiles = statistics.quantiles(spent, n=4)
    record = {
        "settings": {
            "epochs": EPOCHS,
            "images_per_task": arguments.images_per_task,
            "space": "sall",
            "initial_weights": "random" if arguments.from_scratch else "of a network trained on other photographs",
        },
        "correlation_with_last_epoch": [
            float(row[-1]) for row in np.corrcoef([c.values for c in curves], rowvar=False)
        ],
        "full_values": [curve.values[-1] for curve in curves],
        "replay": rows,
        "live": {"target": target, "epochs": live, "epochs_of_all_trials": all_epochs},
        "random_epochs": full,
    }
    lines = ["| | epochs | share of random search's |", "|---|---|---|", f"| random search, 32 trials | {full} | 1 |"]
    for name, value in zip(("lower quartile", "median", "upper quartile"), quartiles, strict=True):
        lines.append(f"| replay, {name} of {SEEDS} seeds | {value:.0f} | {value / full:.2f} |")
    lines.append(f"| replay, seeds that never reach it | {sum(row['epochs'] is None for row in rows)} | |")
    reached = f"{live} | {live / full:.2f}" if live is not None else f"not within {all_epochs} |"
    lines.append(f"| live, once | {reached} |")
    title = "Epochs until the best of 32 random trials at full budget is reached"
    (work / "record.json").write_text(json_text(record))
    write(
        "search-epochs-scratch" if arguments.from_scratch else "search-epochs", record, {title: "\n".join(lines) + "\n"}
    )


if __name__ == "__main__":
    main()
