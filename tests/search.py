"""A search without Ray or training: a space of two numbers and trials that follow a formula."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import optuna

from retina_ray.data.store import Store
from retina_ray.orchestration.halving import Halving
from retina_ray.orchestration.live_search import LiveSearch
from retina_ray.search.goals import Goal
from retina_ray.search.journal import Journal, TrialRecord
from retina_ray.search.space import SearchSpace
from retina_ray.search.study import SearchStudy

EPOCHS = 9
ACCURACY = Goal("accuracy", "max")
ECE = Goal("ece", "min")


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    return {
        "method.temperature": trial.suggest_float("method.temperature", 1.0, 20.0, log=True),
        "method.dropout": trial.suggest_float("method.dropout", 0.0, 0.9),
    }


POINTS = [{"method.temperature": 3.0, "method.dropout": 0.5}]
SPACE = SearchSpace("formula", suggest, lambda config: POINTS, "accuracy", "max")


def figures(overrides: dict[str, Any], epoch: int) -> dict[str, float]:
    """Return what a trial has reached: best at T = 8 without dropout, and rising with the epochs."""
    loss = abs(overrides["method.temperature"] - 8) / 20 + overrides["method.dropout"] / 3
    return {"accuracy": (1 - loss) * epoch / (epoch + 2), "ece": loss / epoch}


def a_search(
    folder: Path,
    *,
    trials: int,
    goals: tuple[Goal, ...] = (ACCURACY,),
    seed: int = 0,
    points: Sequence[dict[str, Any]] = POINTS,
    space: SearchSpace = SPACE,
    check: Callable[[dict[str, Any]], object] = lambda overrides: None,
    listener: Callable[[TrialRecord], None] = lambda record: None,
) -> LiveSearch:
    """Return a search on the formula, fresh or as its journal says."""
    study = SearchStudy(space, goals, config={"any": 1}, points=points, seed=seed)
    halving = Halving(EPOCHS) if len(goals) == 1 else None
    journal = Journal(Store(str(folder)), listener=listener)
    return LiveSearch(journal, study, goals, halving=halving, trials=trials, check=check)


def run_through(search: LiveSearch) -> None:
    """Run trials one after the other, as Ray Tune would, until there are no more."""
    while isinstance(following := search.next(), tuple):
        number, overrides = following
        for epoch in range(1, EPOCHS + 1):
            found = {"figures": figures(overrides, epoch), "stages": {"student": "trained"}}
            if search.report(number, {"epoch": float(epoch), "seconds": float(epoch), **found}):
                search.end(number, "stopped")
                break
        else:
            search.end(number, "complete")
