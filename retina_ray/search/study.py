"""Optuna's side of a search: it suggests trials, is told what they reach, and can be rebuilt from the journal.

A sampler's suggestions follow from its seed and from what it was asked and told, in order. So the journal is all that a
resumed search needs: replayed into a fresh study, it ends in the state of the one that was killed.
"""

import difflib
import json
import warnings
from collections.abc import Callable, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import optuna
from optuna.distributions import distribution_to_json, json_to_distribution
from optuna.trial import TrialState

from retina_ray.errors import ConfigError
from retina_ray.metrics.json_text import json_text
from retina_ray.search.goals import Goal
from retina_ray.search.journal import Event, Report, TrialRecord, events
from retina_ray.search.space import SearchSpace

optuna.logging.set_verbosity(optuna.logging.WARNING)


@dataclass(frozen=True)
class Suggestion:
    """A trial to run, its values as the journal gives them back: a tuple, of which JSON knows nothing, is a list.

    Attributes:
        params: by the names that the space gave them.
        distributions: Optuna's, as JSON.
        overrides: values by dotted path of the configuration.
    """

    params: dict[str, Any]
    distributions: dict[str, str]
    overrides: dict[str, Any]


class SearchStudy:
    """Asks and tells; trials are numbered in the order of asking.

    Args:
        space: what is varied.
        goals: what for; several make a Pareto search.
        config: the configuration that the search starts from, as plain values.
        points: parameters of the first trials.
        seed: of the sampler.

    Raises:
        ConfigError: the search space fails, or a point names a parameter that it does not draw.
    """

    def __init__(
        self,
        space: SearchSpace,
        goals: Sequence[Goal],
        *,
        config: dict[str, Any],
        points: Sequence[dict[str, Any]],
        seed: int,
    ) -> None:
        self._space = space
        self._goals = goals
        _check_points(space, config, points)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", optuna.exceptions.ExperimentalWarning)
            # The lie is that unfinished trials are bad. It is told even where trials run one by one and it changes
            # nothing, so that a search may be resumed with more or fewer side by side.
            sampler = optuna.samplers.TPESampler(seed=seed, multivariate=True, constant_liar=True)
        self._study = optuna.create_study(directions=[goal.direction for goal in goals], sampler=sampler)
        self._study.set_user_attr("config", config)
        for point in points:
            self._study.enqueue_trial(point)
        self._trials: dict[int, optuna.Trial] = {}

    def ask(self) -> Suggestion:
        """Return the next trial.

        Raises:
            ConfigError: the search space fails.
        """
        trial = self._study.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # a point outside its range is tried as the user gave it
            overrides = self._space.overrides(trial)
        self._trials[trial.number] = trial
        distributions = {name: distribution_to_json(each) for name, each in trial.distributions.items()}
        return Suggestion(_as_stored(trial.params), distributions, _as_stored(overrides))

    def report(self, number: int, report: Report, *, step: int) -> None:
        """Tell what a running trial has reached, which a Pareto search does not use."""
        value = report.figures.get(self._goals[0].metric)
        if len(self._goals) == 1 and value is not None:
            self._trials[number].report(value, step)

    def tell(self, record: TrialRecord) -> None:
        """Tell how a trial ended."""
        values = values_of(record, self._goals)
        if record.state == "stopped" and len(self._goals) == 1:
            self._study.tell(record.number, state=TrialState.PRUNED)
        elif record.state == "failed" or values is None:
            self._study.tell(record.number, state=TrialState.FAIL)
        else:
            self._study.tell(record.number, values)

    def replay(self, records: Sequence[TrialRecord], each: Callable[[Event], None] = lambda event: None) -> None:
        """Repeat what happened to the trials of a journal.

        Args:
            records: all of them.
            each: is called with every event as well, in order.

        Raises:
            ConfigError: the study would have suggested other trials.
        """
        steps = dict.fromkeys((record.number for record in records), 0)
        for event in events(records):
            record = event.trial
            if event.kind == "asked":
                self._check(record, self.ask())
            elif event.report is not None:
                self.report(record.number, event.report, step=steps[record.number])
                steps[record.number] += 1
            else:
                self.tell(record)
            each(event)

    def _check(self, record: TrialRecord, suggestion: Suggestion) -> None:
        if suggestion.params != record.params:
            raise ConfigError(
                "the search to resume would go on otherwise than it began, from trial",
                f"{record.number} with {record.params} (now {suggestion.params})",
                "give the same space, points and seed, or choose another --name",
            )


def _check_points(space: SearchSpace, config: dict[str, Any], points: Sequence[dict[str, Any]]) -> None:
    """Refuse points that Optuna would silently replace, in part, by random values."""
    study = optuna.create_study(sampler=optuna.samplers.RandomSampler(seed=0))
    study.set_user_attr("config", config)
    for point in points:
        study.enqueue_trial(point)
        trial = study.ask()
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # as in `SearchStudy.ask`
            space.overrides(trial)
        for name in point:
            if name not in trial.params:
                near = difflib.get_close_matches(str(name), trial.params, n=1, cutoff=0.0)
                hint = f"did you mean {near[0]}? " if near else ""
                fix = f"{hint}With this point it draws {', '.join(sorted(trial.params)) or 'nothing'}"
                raise ConfigError("a point names what the search space does not draw", name, fix)


def _as_stored(values: dict[str, Any]) -> dict[str, Any]:
    return dict(json.loads(json_text(values)))


def finished_study(records: Sequence[TrialRecord], goals: Sequence[Goal]) -> optuna.Study:
    """Return the trials that have a value as a study that Optuna can analyse.

    Optuna takes no trial beyond its ranges, where a point that the user gave may lie: such a trial is left out.
    """
    study = optuna.create_study(directions=[goal.direction for goal in goals])
    for record in records:
        values = values_of(record, goals)
        if record.state in ("complete", "stopped") and values is not None:
            with suppress(ValueError), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # choices that are lists do very well in memory
                distributions = {name: json_to_distribution(text) for name, text in record.distributions.items()}
                trial = optuna.trial.create_trial(params=record.params, distributions=distributions, values=values)
                study.add_trial(trial)
    return study


def values_of(record: TrialRecord, goals: Sequence[Goal]) -> list[float] | None:
    """Return the last value of every goal, or None where one has none."""
    values = [value for goal in goals if (value := record.value(goal.metric)) is not None]
    return values if len(values) == len(goals) else None
