"""Epochs that a search needs, against Optuna alone and against random search, over recorded learning curves.

Run with ``python -m benchmarks.search_rivals``; it trains nothing and takes a few minutes. The curves are those of 64
random configurations of the space ``sall``, made by ``python -m benchmarks.search_epochs WORK --from-scratch`` (its
``WORK/curves.jsonl``) and kept under ``benchmarks/results/raw``. For each of 100 seeds the goal is the best of 32 of
the 64 at full budget; every contestant's suggestions are answered by the nearest curve that was not yet taken, and its
epochs are counted until a trial ends at the goal. Writes ``benchmarks/results/search-rivals.json`` and ``.md``.
"""

import argparse
import json
import math
import statistics
from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from benchmarks.in_turn import RESULTS, raw_log, versions, write
from benchmarks.search_epochs import EPOCHS, RANDOM, SEEDS, Curve, Nearest, a_config, epochs_to_reach
from retina_ray.config import RunConfig
from retina_ray.search.goals import Goal, goals_of
from retina_ray.search.space import SearchSpace, load_space

CURVES = RESULTS / "raw" / "search-curves.jsonl"
LOGARITHMIC = {"method.temperature", "method.loss_weight.amd", "method.student.lr"}

Sampler = Callable[[int], optuna.samplers.BaseSampler]
"""Seed -> sampler."""
Search = Callable[[float, Sequence[Curve], int], int | None]
"""Target, curves, seed -> epochs until a trial ends at or above the target, None where none does."""


def read_curves(file: Path) -> list[Curve]:
    """Return the recorded curves."""
    return [Curve(**json.loads(line)) for line in file.read_text(encoding="utf-8").splitlines()]


def optuna_epochs(
    target: float,
    curves: Sequence[Curve],
    seed: int,
    *,
    space: SearchSpace,
    config: RunConfig,
    goal: Goal,
    sampler: Sampler,
    pruner: Callable[[], optuna.pruners.BasePruner],
) -> int | None:
    """Search over the curves by Optuna's own loop, as its tutorial on pruning writes it.

    Args:
        target: value to end at.
        curves: all that there are.
        seed: of the sampler.
        space: what is suggested.
        config: that the space starts from.
        goal: what is optimised.
        sampler: builds Optuna's.
        pruner: builds Optuna's.

    Returns:
        Epochs until a trial ends at the target; None where all curves are used up before.
    """
    study = optuna.create_study(direction=goal.direction, sampler=sampler(seed), pruner=pruner())
    study.set_user_attr("config", config.model_dump(mode="json"))
    nearest, spent = Nearest(curves, LOGARITHMIC), 0
    for _ in range(len(curves)):
        trial = study.ask()
        space.overrides(trial)
        values = nearest.take(trial.params).values
        pruned = False
        for step, value in enumerate(values):
            spent += 1
            trial.report(value, step)
            # After the last epoch the network is there: stopping would only hide its value.
            pruned = step + 1 < len(values) and trial.should_prune()
            if pruned:
                break
        study.tell(trial, None if pruned else value, optuna.trial.TrialState.PRUNED if pruned else None)
        if value >= target:
            return spent
    return None


def our_epochs(
    target: float, curves: Sequence[Curve], seed: int, *, space: SearchSpace, config: RunConfig, goal: Goal
) -> int | None:
    """Search over the curves as `retina-ray tune` does."""
    return epochs_to_reach(target, Nearest(curves, LOGARITHMIC), space, goal, config, seed)


def contestants(space: SearchSpace, config: RunConfig, goal: Goal) -> dict[str, Search]:
    """Return the searches by name, each with the settings that its guide recommends."""
    common: dict[str, Any] = {"space": space, "config": config, "goal": goal}
    samplers = optuna.samplers
    hyperband = partial(optuna.pruners.HyperbandPruner, min_resource=1, max_resource=EPOCHS, reduction_factor=3)

    def alone(
        sampler: Callable[..., optuna.samplers.BaseSampler], pruner: Callable[[], optuna.pruners.BasePruner]
    ) -> Search:
        return partial(optuna_epochs, **common, sampler=lambda seed: sampler(seed=seed), pruner=pruner)

    return {
        "random": alone(samplers.RandomSampler, optuna.pruners.NopPruner),
        "random, median pruner": alone(samplers.RandomSampler, optuna.pruners.MedianPruner),
        "Optuna, TPE": alone(samplers.TPESampler, optuna.pruners.NopPruner),
        "Optuna, TPE and Hyperband": alone(samplers.TPESampler, hyperband),
        "Optuna, TPE and successive halving": alone(samplers.TPESampler, optuna.pruners.SuccessiveHalvingPruner),
        "retina_ray": partial(our_epochs, **common),
        "retina_ray, without the space's first points": partial(
            our_epochs, **{**common, "space": replace(space, points=lambda config: [])}
        ),
    }


def target_of(curves: Sequence[Curve], seed: int) -> float:
    """Return the best last value of 32 of the curves, drawn by the seed."""
    drawn = np.random.default_rng(seed).choice(len(curves), size=min(RANDOM, len(curves)), replace=False)
    return max(curves[index].values[-1] for index in drawn)


def compare(searches: dict[str, Search], curves: Sequence[Curve], seeds: int, log: Any) -> dict[str, list[int | None]]:
    """Run every search with every seed, in turn."""
    found: dict[str, list[int | None]] = {name: [] for name in searches}
    for seed in range(seeds):
        target = target_of(curves, seed)
        for name, search in searches.items():
            found[name].append(search(target, curves, seed))
        log({"seed": seed, "target": target, "epochs": {name: spent[-1] for name, spent in found.items()}})
    return found


def quartiles(spent: Sequence[int | None]) -> list[float]:
    """Return the lower quartile, median and upper quartile; a search that never ends there counts as infinitely long.

    Each is the epochs of one search, not a mean of two, one of which may be infinite.
    """
    ordered = sorted(math.inf if epochs is None else float(epochs) for epochs in spent)
    return [ordered[min(len(ordered) - 1, int(share * len(ordered)))] for share in (0.25, 0.5, 0.75)]


def table(found: dict[str, list[int | None]]) -> str:
    """Return a Markdown table; the last column is the share of seeds with which ours needed fewer epochs."""
    lines = [
        "| epochs | lower quartile | median | upper quartile | mean | never | retina_ray needs fewer with |",
        "|---|---|---|---|---|---|---|",
    ]
    ours = [math.inf if epochs is None else epochs for epochs in found["retina_ray"]]
    for name, spent in found.items():
        theirs = [math.inf if epochs is None else epochs for epochs in spent]
        fewer = sum(one < other for one, other in zip(ours, theirs, strict=True)) / len(ours)
        reached = [epochs for epochs in spent if epochs is not None]
        cells = [f"{value:.0f}" for value in (*quartiles(spent), statistics.mean(reached))]
        lines.append(f"| {name} | {' | '.join(cells)} | {len(spent) - len(reached)} | {fewer:.0%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Search with every contestant and write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("curves", nargs="?", type=Path, default=CURVES)
    parser.add_argument("--seeds", type=int, default=SEEDS)
    arguments = parser.parse_args()
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    space = load_space("sall")
    (goal,) = goals_of(space, None)
    config = a_config(Path("search"), "none")
    curves = read_curves(arguments.curves)
    log = raw_log("search-rivals", "optuna")
    found = compare(contestants(space, config, goal), curves, arguments.seeds, log)
    record = {
        "rivals": versions("optuna"),
        "configurations": len(curves),
        "epochs_of_a_trial": EPOCHS,
        "correlation_with_last_epoch": [
            float(row[-1]) for row in np.corrcoef([curve.values for curve in curves], rowvar=False)
        ],
        "epochs": found,
    }
    title = f"Epochs until a trial ends at the best of {RANDOM} random ones, {arguments.seeds} seeds"
    write("search-rivals", record, {title: table(found)})


if __name__ == "__main__":
    main()
