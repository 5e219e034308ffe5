"""Searches as they lie on storage, without Ray and without training: a study suggests, and a formula is the result."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import optuna

from retina_ray.data.store import Store
from retina_ray.orchestration.search_folder import SearchFolder, plain_goals
from retina_ray.search.goals import Goal
from retina_ray.search.journal import Journal, State
from retina_ray.search.space import SearchSpace
from retina_ray.search.study import SearchStudy
from tests.helpers import tiny_config

EPOCHS = 9
ACCURACY, ECE = Goal("accuracy", "max"), Goal("ece", "min")

Fate = Callable[[int], State]
"""Returns how a trial ends."""


def mixed(number: int) -> State:
    """Let 24 trials end in every way: 13 complete, 7 stopped, 2 failed, 2 that still run."""
    if number in (5, 17):
        return "failed"
    if number >= 22:
        return "running"
    return "stopped" if number % 3 == 1 else "complete"


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Draw what the product's space for SALL does, and how dropout is drawn."""
    return {
        "method.temperature": trial.suggest_float("method.temperature", 1.0, 20.0, log=True),
        "method.ratio.dr": trial.suggest_float("method.ratio.dr", 0.25, 1.0),
        "method.ratio.amd": trial.suggest_float("method.ratio.amd", 0.25, 1.0),
        "method.loss_weight.amd": trial.suggest_float("method.loss_weight.amd", 0.25, 4.0, log=True),
        "method.student.lr": trial.suggest_float("method.student.lr", 4e-4, 1e-2, log=True),
        "method.student.dropout": trial.suggest_categorical("method.student.dropout", [0.0, 0.25, 0.5]),
    }


def figures(params: Mapping[str, Any], number: int, epoch: int) -> dict[str, float | None]:
    """Return what a trial reaches: the temperature matters most, then the learning rate."""
    noise = np.random.default_rng((number, epoch)).normal(size=3) * 0.006
    heat = math.log(params["method.temperature"])
    rise = 1.0 - math.exp(-epoch / 2.5)
    rate = math.log10(params["method.student.lr"] / 2e-3)
    dr = 0.45 + rise * (0.36 - 0.05 * (heat - 2.0) ** 2 - 0.06 * rate**2) + noise[0]
    amd = 0.50 + rise * (0.33 - 0.03 * (heat - 2.4) ** 2 - 0.05 * rate**2) + noise[1]
    ece = 0.03 + 0.05 * (heat - 0.9) ** 2 / 4.0 + 0.02 / epoch + abs(noise[2])
    return {"accuracy_dr": dr, "accuracy_amd": amd, "accuracy": (dr + amd) / 2.0, "ece": ece, "criterion": 1.0 / dr}


def write_search(
    folder: Path,
    *,
    trials: int,
    planned: int | None = None,
    goals: Sequence[Goal] = (ACCURACY,),
    fate: Fate = lambda number: "complete",
    reason: str = "too few graded images of a task: amd (add some)",
    space: Callable[[optuna.Trial], dict[str, Any]] = suggest,
    reached: Callable[[Mapping[str, Any], int, int], dict[str, float | None]] = figures,
    points: Sequence[dict[str, Any]] = (),
    stages: Mapping[str, str] | None = None,
    **changes: Any,
) -> SearchFolder:
    """Write a search with its trials.

    Args:
        folder: storage of searches and runs.
        trials: how many were begun.
        planned: how many there are to be; those that were begun by default.
        goals: what is searched for.
        fate: how a trial ends; ``failed`` ones never report.
        reason: of failures.
        space: what is searched.
        reached: returns figures by parameters, number and epoch.
        points: of the first trials.
        stages: what became of each stage.
        **changes: see `tiny_config`.
    """
    config = tiny_config(folder / "data", folder, **changes)
    described = {
        "space": "sall",
        "goals": plain_goals(tuple(goals)),
        "trials": trials if planned is None else planned,
        "scheduler": "asha" if len(goals) == 1 else "none",
        "cv": None,
        "points": list(points),
        "fingerprint": "0" * 8,
    }
    search = SearchFolder(Store(str(folder)).child(config.name))
    search.begin(config, described)
    journal = Journal(search.store)
    named = SearchSpace("sall", space, lambda config: [], "accuracy", "max")
    plain = config.model_dump(mode="json")
    study = SearchStudy(named, goals, config=plain, points=list(points), seed=0)
    for number in range(trials):
        asked = study.ask()
        journal.ask(number, params=asked.params, distributions=asked.distributions, overrides=asked.overrides)
        state = fate(number)
        epochs = {"complete": EPOCHS, "stopped": 1 + 2 * (number % 2), "running": number % 4, "failed": 0}[state]
        for epoch in range(1, epochs + 1):
            journal.report(
                number,
                epoch=float(epoch),
                figures=reached(asked.params, number, epoch),
                stopped=state == "stopped" and epoch == epochs,
                seconds=4.2 * epoch,
                stages=stages or {"teacher-dr": "reused", "student": "trained"},
            )
        if state != "running":
            journal.end(number, state, reason=reason if state == "failed" else "")
            study.tell(journal.trials[number])
    return search
