"""Which trial of a search is the best, and its configuration as a run of its own."""

from collections.abc import Sequence

import optuna

from retina_ray.config import RunConfig, override
from retina_ray.errors import ConfigError
from retina_ray.search.goals import Goal
from retina_ray.search.journal import TrialRecord
from retina_ray.search.study import values_of


def best_trial(records: Sequence[TrialRecord], goals: Sequence[Goal]) -> TrialRecord:
    """Return the trial with the best last value, stopped ones too; of a Pareto front, the best by the first goal.

    Raises:
        ConfigError: no trial has a value.
    """
    front = pareto_front(records, goals)
    if not front:
        failed = [record for record in records if record.reason]
        why = f"trial {failed[0].number}: {failed[0].reason}" if failed else f"of {len(records)} none reported"
        fix = "mend that, or widen --time-budget or --trials, and continue with --resume"
        raise ConfigError("no trial of the search has a result", why, fix)
    goal = goals[0]
    return max(front, key=lambda record: (goal.gain((values_of(record, goals) or [0.0])[0]), -record.number))


def pareto_front(records: Sequence[TrialRecord], goals: Sequence[Goal]) -> list[TrialRecord]:
    """Return the trials that no other one beats in every goal, by number; of one goal, those with the best value."""
    study = optuna.create_study(directions=[goal.direction for goal in goals])
    measured: list[tuple[TrialRecord, list[float]]] = []
    for record in records:
        values = values_of(record, goals)
        if record.state in ("complete", "stopped") and values is not None:
            measured.append((record, values))
            study.add_trial(optuna.trial.create_trial(values=values))
    best = [trial.values for trial in study.best_trials]
    return [record for record, values in measured if values in best]


def winner_config(config: RunConfig, trial: TrialRecord) -> RunConfig:
    """Return the configuration of a trial as a run of its own, named after the search and the trial."""
    return override(config, {**trial.overrides, "name": f"{config.name}-trial-{trial.number:05}"})
