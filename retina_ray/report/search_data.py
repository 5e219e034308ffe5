"""Everything that the report of a hyper-parameter search shows, as gathered from its folder."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from retina_ray.metrics.summary import TaskSummary
from retina_ray.search.goals import Goal
from retina_ray.search.journal import TrialRecord


@dataclass(frozen=True, kw_only=True)
class WinnerRun:
    """The run in which a search's winner was trained to its end.

    Attributes:
        uri: of its folder.
        link: of its report as seen from the search's; empty where there is none.
        bundle: address of the bundle.
        model_version: of the registered model; None where tracking is disabled.
        summaries: on test images; empty where they are not at hand.
    """

    uri: str
    link: str = ""
    bundle: str = ""
    model_version: int | None = None
    summaries: Sequence[TaskSummary] = ()


@dataclass(frozen=True, kw_only=True)
class SearchData:
    """Everything that a search's report shows.

    Attributes:
        title: the search's name.
        space: name of its space.
        goals: at least one.
        trials: by number.
        planned: how many trials there are to be.
        scheduler: what stops trials that fall behind, or ``none``.
        folds: of cross-validation, or None.
        tasks: names of all tasks.
        winner: number of the winner, or of the best trial so far; None where no trial has a value.
        run: the winner's; None where it has not been trained to its end.
        front: numbers of the trials that no other one beats in every goal.
        config_yaml: the winner's configuration; empty without one.
        environment: versions and machine; may be nested.
        notes: what the reader should know.
        level: of the intervals of the winner's test figures, in (0, 1).
    """

    title: str
    space: str
    goals: Sequence[Goal]
    trials: Sequence[TrialRecord]
    planned: int
    scheduler: str
    folds: int | None
    tasks: Sequence[str]
    winner: int | None
    run: WinnerRun | None
    front: Sequence[int]
    config_yaml: str
    environment: Mapping[str, Any] = field(default_factory=dict)
    notes: Sequence[str] = ()
    level: float = 0.95


def named(numbers: Sequence[int]) -> str:
    """Return trials by their numbers, at least one, as prose names them."""
    return f"trial{'s' if len(numbers) > 1 else ''} {', '.join(map(str, numbers))}"
