"""What happened in a search, on storage: the one truth that it is resumed and reported from.

A file per trial, ``trials/00007.json``, rewritten whole at each event of that trial, so that it works on object
storage too and is complete or old, never torn. Every event has a number, which puts the events of all trials in order.
"""

import json
import math
from collections.abc import Callable, Iterable, Mapping
from dataclasses import asdict, dataclass, field
from typing import Any, Literal

from retina_ray.data.store import Store
from retina_ray.metrics.json_text import json_text

State = Literal["running", "complete", "stopped", "failed"]


@dataclass
class Report:
    """What a trial had reached at one epoch.

    Attributes:
        event: number of the event.
        epoch: epochs done; with cross-validation, folds done.
        figures: by name; None for what is not a number.
        stopped: whether the scheduler then stopped the trial.
        seconds: since the trial began in the process that runs it.
    """

    event: int
    epoch: float
    figures: dict[str, float | None]
    stopped: bool
    seconds: float


@dataclass
class TrialRecord:
    """A trial.

    Attributes:
        number: from 0.
        params: by the names that the space gave them.
        distributions: Optuna's, as JSON, by the same names.
        overrides: values by dotted path of the configuration.
        asked: event at which it was suggested.
        state: ``stopped`` is by the scheduler; ``failed`` has a reason.
        ended: event at which it ended.
        reason: why it failed.
        reports: in order.
        stages: ``trained`` or ``reused``, by stage.
    """

    number: int
    params: dict[str, Any]
    distributions: dict[str, str]
    overrides: dict[str, Any]
    asked: int
    state: State = "running"
    ended: int | None = None
    reason: str = ""
    reports: list[Report] = field(default_factory=list)
    stages: dict[str, str] = field(default_factory=dict)

    def value(self, metric: str) -> float | None:
        """Return the last value of a figure, if there is one."""
        return self.reports[-1].figures.get(metric) if self.reports else None


@dataclass(frozen=True)
class Event:
    """Something that happened.

    Attributes:
        number: its place in the search, from 0.
        kind: what.
        trial: to which trial.
        report: what was reported.
    """

    number: int
    kind: Literal["asked", "reported", "ended"]
    trial: TrialRecord
    report: Report | None = None


class Journal:
    """The trials of a search.

    Args:
        store: its folder.
        listener: is told of every event, after it is written, with the trial.
    """

    def __init__(self, store: Store, *, listener: Callable[[TrialRecord], None] = lambda record: None) -> None:
        self._store = store.child("trials")
        self._listener = listener
        self.trials: dict[int, TrialRecord] = {record.number: record for record in read_trials(store)}
        self._event = 1 + max((event.number for event in events(self.trials.values())), default=-1)

    def ask(
        self, number: int, *, params: dict[str, Any], distributions: dict[str, str], overrides: dict[str, Any]
    ) -> None:
        """Record that a trial was suggested."""
        record = TrialRecord(number, params, distributions, overrides, asked=self._next())
        self.trials[number] = record
        self._write(record)

    def report(
        self,
        number: int,
        *,
        epoch: float,
        figures: Mapping[str, float | None],
        stopped: bool,
        seconds: float,
        stages: Mapping[str, str],
    ) -> None:
        """Record what a running trial has reached; what is not finite becomes None, here as on storage."""
        record = self.trials[number]
        known = {name: value if value is not None and math.isfinite(value) else None for name, value in figures.items()}
        record.reports.append(Report(self._next(), epoch, known, stopped, seconds))
        record.stages |= stages
        self._write(record)

    def end(self, number: int, state: State, *, reason: str = "") -> None:
        """Record that a trial ended."""
        record = self.trials[number]
        record.state, record.ended, record.reason = state, self._next(), reason
        self._write(record)

    def _next(self) -> int:
        self._event += 1
        return self._event - 1

    def _write(self, record: TrialRecord) -> None:
        self._store.write_bytes(f"{record.number:05}.json", json_text(asdict(record)).encode())
        self._listener(record)


def read_trials(store: Store) -> list[TrialRecord]:
    """Return the trials in a search's folder, by number."""
    folder = store.child("trials")
    records = []
    for name in sorted(folder.list()):
        if name.endswith(".json"):
            values = json.loads(folder.read_bytes(name))
            records.append(TrialRecord(**{**values, "reports": [Report(**report) for report in values["reports"]]}))
    return records


def events(records: Iterable[TrialRecord]) -> list[Event]:
    """Return what happened to the trials, in order."""
    found: list[Event] = []
    for record in records:
        found.append(Event(record.asked, "asked", record))
        found += [Event(report.event, "reported", record, report) for report in record.reports]
        if record.ended is not None:
            found.append(Event(record.ended, "ended", record))
    return sorted(found, key=lambda event: event.number)
