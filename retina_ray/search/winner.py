"""Which trial of a search is the best, and its configuration as a run of its own."""

from collections.abc import Sequence

import optuna

from retina_ray.config import RunConfig, override
from retina_ray.errors import ConfigError
from retina_ray.search.goals import Goal
from retina_ray.search.journal import TrialRecord
from retina_ray.search.study import values_of


def best_trial(records: Sequence[TrialRecord], goals: Sequence[Goal], *, folds: int | None = None) -> TrialRecord:
    """Return the trial with the best last value; of a Pareto front, the best by the first goal.

    Args:
        records: of a search.
        goals: what it optimises.
        folds: as for `pareto_front`.

    Raises:
        ConfigError: no trial has a value.
    """
    front = pareto_front(records, goals, folds=folds)
    if not front:
        failed = [record for record in records if record.reason]
        why = f"trial {failed[0].number}: {failed[0].reason}" if failed else f"of {len(records)} none reported"
        fix = "mend that, or widen --time-budget or --trials, and continue with --resume"
        raise ConfigError("no trial of the search has a result", why, fix)
    goal = goals[0]
    return max(front, key=lambda record: (goal.gain((values_of(record, goals) or [0.0])[0]), -record.number))


def pareto_front(
    records: Sequence[TrialRecord], goals: Sequence[Goal], *, folds: int | None = None
) -> list[TrialRecord]:
    """Return the trials that no other one beats in every goal, by number; of one goal, those with the best value.

    Stopped ones too: the winner is trained to its end; those cut by a time budget where no other has a value. With
    cross-validation only those that got through the most folds, all of them where any trial did, since a mean over
    fewer is one over other images.

    Args:
        records: of a search.
        goals: what it optimises.
        folds: of cross-validation; None: none.
    """
    study = optuna.create_study(directions=[goal.direction for goal in goals])
    measured = _measured(records, goals, ("complete", "stopped")) or _measured(records, goals, ("running",))
    if folds is not None:
        most = max((record.reports[-1].epoch for record, _ in measured), default=0.0)
        measured = [(record, values) for record, values in measured if record.reports[-1].epoch == most]
    for _, values in measured:
        study.add_trial(optuna.trial.create_trial(values=values))
    best = [trial.values for trial in study.best_trials]
    return [record for record, values in measured if values in best]


def _measured(
    records: Sequence[TrialRecord], goals: Sequence[Goal], states: Sequence[str]
) -> list[tuple[TrialRecord, list[float]]]:
    found = [(record, values_of(record, goals)) for record in records if record.state in states]
    return [(record, values) for record, values in found if values is not None]


def winner_config(config: RunConfig, trial: TrialRecord) -> RunConfig:
    """Return the configuration of a trial as a run of its own, named after the search and the trial."""
    return override(config, {**trial.overrides, "name": f"{config.name}-trial-{trial.number:05}"})
