"""A search in MLflow: one run for the search, and nested in it one for each trial.

A trial's run is ``FINISHED`` where it has a result, be it complete or stopped by the scheduler, ``FAILED`` where it
failed, and ``KILLED`` where the search ended first. Tags hold the trial's own state, and why it failed.
"""

from collections.abc import Iterable
from types import TracebackType
from typing import Self

from retina_ray.config import RunConfig, override
from retina_ray.errors import ConfigError
from retina_ray.registry import RunStatus, Tracker
from retina_ray.search.journal import TrialRecord

STATE_TAG = "retina_ray.state"
"""Tag of a trial's MLflow run: its state in the journal."""

REASON_TAG = "retina_ray.reason"
"""Tag of a trial's MLflow run: why it failed."""

_STATUSES: dict[str, RunStatus] = {"complete": "FINISHED", "stopped": "FINISHED", "failed": "FAILED"}
_LONGEST_REASON = 1000
"""Characters; MLflow refuses tags of several thousand."""


class SearchTracker:
    """Records the events of a search; does nothing where tracking is disabled.

    Once the search's run is open, an MLflow that fails costs records and a warning, never the search.

    Args:
        config: what the search starts from; its name is the search's.
        resume: continue the MLflow run of a search of the same address.

    Raises:
        ResourceError: on entry, when MLflow cannot be reached.
    """

    def __init__(self, config: RunConfig, *, resume: bool) -> None:
        self._config = config
        self._search = Tracker(config, run_name=config.name, resume=resume)
        self._open: dict[int, Tracker] = {}
        self._logged: dict[int, int] = {}  # reports of each open trial
        self._begun: set[int] = set()  # trials that may have a run already

    def __enter__(self) -> Self:
        self._search.__enter__()
        self._search.log_params(self._config)
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        for tracker in self._open.values():
            tracker.end("KILLED")  # whatever ended the search, the trial has not failed: it goes on when resumed
        self._search.__exit__(kind, error, traceback)

    @property
    def run_id(self) -> str:
        """The search's MLflow run; empty where tracking is disabled."""
        return self._search.run_id

    def catch_up(self, records: Iterable[TrialRecord]) -> None:
        """Record of the trials from before a restart what MLflow has not been told, such as their ends."""
        known = {record.number: record for record in records}
        self._begun |= known.keys()
        statuses = self._search.nested_statuses() if known else {}
        for record in known.values():
            if record.state == "running" or statuses.get(self._name(record)) != _STATUSES[record.state]:
                self(record)

    def __call__(self, record: TrialRecord) -> None:
        """Record a trial's latest event; of a trial that goes on after a restart, those before it too."""
        tracker = self._open.get(record.number) or self._begin(record)
        if tracker is None:
            return
        for step, report in enumerate(record.reports, start=1):
            if step > self._logged[record.number]:
                tracker.log_figures(report.figures, step=step)
        self._logged[record.number] = len(record.reports)
        if record.state != "running":
            del self._open[record.number]
            reason = {REASON_TAG: record.reason[:_LONGEST_REASON]} if record.reason else {}
            tracker.log_tags({STATE_TAG: record.state, **reason})
            tracker.end(_STATUSES[record.state])

    def _begin(self, record: TrialRecord) -> Tracker | None:
        tracker = self._search.nested(self._name(record), resume=record.number in self._begun)
        self._begun.add(record.number)  # also where MLflow failed: its answer alone may have been lost
        if tracker is None:
            return None
        self._open[record.number], self._logged[record.number] = tracker, 0
        try:
            tracker.log_params(override(self._config, record.overrides))
        except ConfigError:  # the trial fails of it
            tracker.log_values(record.overrides)
        return tracker

    def _name(self, record: TrialRecord) -> str:
        return f"{self._config.name}/trials/{record.number:05}"
