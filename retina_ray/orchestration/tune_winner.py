"""What becomes of a search's best trial: trained to its end, tested once, exported, registered."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from retina_ray.config import RunConfig, override, to_yaml
from retina_ray.errors import ConfigError
from retina_ray.orchestration.publish import Published, train_and_publish
from retina_ray.orchestration.tune_driver import SearchResult
from retina_ray.search.goals import Goal
from retina_ray.search.journal import TrialRecord
from retina_ray.search.study import finished_study, values_of

WINNER_YAML = "winner.yaml"


@dataclass(frozen=True)
class Winner:
    """A search's winner.

    Attributes:
        trial: the best one.
        published: its run with bundle and version.
    """

    trial: TrialRecord
    published: Published


def best_trial(records: Sequence[TrialRecord], goals: Sequence[Goal]) -> TrialRecord:
    """Return the trial with the best last value, stopped ones too; of a Pareto front, the best by the first goal.

    Raises:
        ConfigError: no trial has a value.
    """
    front = pareto_front(records, goals)
    if not front:
        failed = [record for record in records if record.reason]
        why = f"trial {failed[0].number}: {failed[0].reason}" if failed else f"{len(records)} trials, none reported"
        fix = "mend that, or widen --time-budget or --trials, and continue with --resume"
        raise ConfigError("no trial of the search has a result", why, fix)
    goal = goals[0]
    return max(front, key=lambda record: (goal.gain((values_of(record, goals) or [0.0])[0]), -record.number))


def pareto_front(records: Sequence[TrialRecord], goals: Sequence[Goal]) -> list[TrialRecord]:
    """Return the trials that no other one beats in every goal, by number."""
    usable = [record for record in records if values_of(record, goals) is not None and record.state != "failed"]
    study = finished_study(usable, goals)
    best = {tuple(trial.values) for trial in study.best_trials} if usable else set()
    return [record for record in usable if tuple(values_of(record, goals) or ()) in best]


def publish_winner(search: SearchResult, listener: Callable[[dict[str, Any]], None] = lambda record: None) -> Winner:
    """Train the winner to the end of its budget, test it, and register its bundle as ``candidate``.

    What the trial has trained is taken over. Only now is a test image looked at.

    Raises:
        RetinaRayError: no trial has a result, or as `train_and_publish`.
    """
    trial = best_trial(search.trials, search.goals)
    config = winner_config(search.config, trial)
    search.folder.store.write_bytes(WINNER_YAML, to_yaml(config).encode())
    published = train_and_publish(config, resume=True, listener=listener, parent=search.mlflow_run)
    search.folder.update(
        finished=True,
        winner=trial.number,
        run=published.result.folder.store.uri,
        bundle=published.bundle_uri,
        model_version=published.version,
    )
    return Winner(trial, published)


def winner_config(config: RunConfig, trial: TrialRecord) -> RunConfig:
    """Return the configuration of a trial as a run of its own, named after the search and the trial."""
    return override(config, {**trial.overrides, "name": f"{config.name}-trial-{trial.number:05}"})
