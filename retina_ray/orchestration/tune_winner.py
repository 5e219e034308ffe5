"""What becomes of a search's best trial: trained to its end, tested once, exported, registered."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from retina_ray.config import to_yaml
from retina_ray.orchestration.publish import Published, train_and_publish
from retina_ray.orchestration.tune_driver import SearchResult
from retina_ray.search.journal import TrialRecord
from retina_ray.search.winner import best_trial, winner_config

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


def publish_winner(search: SearchResult, listener: Callable[[dict[str, Any]], None] = lambda record: None) -> Winner:
    """Train the winner to the end of its budget, test it, and register its bundle as ``candidate``.

    What the trial has trained is taken over. Only now is a test image looked at.

    Raises:
        RetinaRayError: no trial has a result, or as `train_and_publish`.
    """
    trial = best_trial(search.trials, search.goals, folds=search.folder.describe()["cv"])
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
