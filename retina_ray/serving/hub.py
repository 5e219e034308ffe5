"""What is kept once for all processes of an endpoint: rate limits, metrics, drift, heads of audit logs, models.

Everything here is what processes report every second or so, and can be lost: a hub that starts anew has the whole
picture again with the next reports; only rate limits, and the windows that drift is told by, begin afresh. What is not
here: the way to it (``serve_apps``).
"""

import logging
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Protocol

from prometheus_client import Metric

from retina_ray.serving.audit import Head, HeadsLog
from retina_ray.serving.drift import DriftCounts, DriftWatch
from retina_ray.serving.exchange import HostState
from retina_ray.serving.keys import KnownKeys
from retina_ray.serving.rate_limit import Bank, Lease
from retina_ray.serving.telemetry import merge

_logger = logging.getLogger(__name__)

REPORT_EVERY_S = 1.0
"""How often a process reports."""

HUB = "hub"
"""What metrics call the hub among the replicas."""

_NOTE_EVERY_S = 10.0
_SILENT_S = 10.0
"""After which a process that reports nothing counts as gone."""


Watched = tuple[str, str]
"""A served name and the hash of the bundle behind it."""


@dataclass(frozen=True)
class Report:
    """What happened in a process since its last report.

    Attributes:
        replica: its name.
        metrics: its counts since it started.
        drift: what it saw since its last report.
        audit: the end of its audit log.
        served_as: the model that it runs, if it runs one.
        host: and that model's state.
    """

    replica: str
    metrics: list[Metric] = field(default_factory=list)
    drift: dict[Watched, DriftCounts] = field(default_factory=dict)
    audit: Head | None = None
    served_as: str | None = None
    host: HostState | None = None


class HubLink(Protocol):
    """The way to the hub."""

    async def lease(self, key_id: str, wanted: int) -> Lease:
        """Ask for the right to grade photographs."""

    async def report(self, report: Report) -> None:
        """Tell what has happened in this process."""

    async def metrics(self) -> str:
        """Return the metrics of all processes."""

    async def hosts(self, served_as: str) -> list[HostState]:
        """Return the states of a served model's replicas."""


class Hub:
    """The hub itself; for one thread.

    Args:
        keys: with the rate limits; None: there are none.
        heads: where heads of audit logs are chained; None: nowhere.
        clock: seconds.
    """

    def __init__(
        self, keys: KnownKeys | None, heads: HeadsLog | None, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._keys = keys
        self._bank = Bank({})
        self._heads = heads
        self._clock = clock
        self._metrics: dict[str, tuple[float, list[Metric]]] = {}
        self._hosts: dict[str, tuple[float, str, HostState]] = {}
        self._watches: dict[Watched, DriftWatch] = {}
        self._noted: dict[str, float] = {}
        self._notes_fail = False

    def lease(self, key_id: str, wanted: int) -> Lease:
        """Give out the right to grade photographs, see `Bank.lease`."""
        if self._keys is not None:
            self._bank.know(self._keys.per_minute)
        return self._bank.lease(key_id, wanted)

    def report(self, report: Report) -> None:
        """Take in what a process has to tell."""
        now = self._clock()
        if report.metrics:
            self._metrics[report.replica] = (now, report.metrics)
        if report.audit is not None:
            self._note(report.audit, now)
        if report.served_as is not None and report.host is not None:
            self._hosts[report.replica] = (now, report.served_as, report.host)
            self._watch(report.served_as, report.host)
        for watched, counts in report.drift.items():
            if watched in self._watches:
                self._watches[watched].add(counts)

    def metrics(self) -> str:
        """Return the metrics of all processes that still report, and the drift of what is served now."""
        since = self._clock() - _SILENT_S
        self._metrics = {name: kept for name, kept in self._metrics.items() if kept[0] >= since}
        snapshots = {name: metrics for name, (_, metrics) in self._metrics.items()}
        return merge({**snapshots, HUB: [gauge for watch in self._watches.values() for gauge in watch.gauges()]})

    def hosts(self, served_as: str) -> list[HostState]:
        """Return the states of a served model's replicas that still report."""
        since = self._clock() - _SILENT_S
        self._hosts = {name: kept for name, kept in self._hosts.items() if kept[0] >= since}
        return [state for _, name, state in self._hosts.values() if name == served_as]

    def _note(self, head: Head, now: float) -> None:
        """Write a log's head down, now and then: a note of every report would be a log as long as all others."""
        if self._heads is None or now - self._noted.get(head.file, -_NOTE_EVERY_S) < _NOTE_EVERY_S:
            return
        try:
            self._heads.note(head)
        except OSError:  # a full disk, say; the next report of the log brings it again
            if not self._notes_fail:
                _logger.exception("the heads of audit logs cannot be written; make room, or mend the audit folder")
            self._notes_fail = True
            return
        self._notes_fail = False
        self._noted[head.file] = now

    def _watch(self, served_as: str, host: HostState) -> None:
        """Begin to watch what a replica answers with; what the others still answer with is watched on beside it."""
        if host.description is None or host.reference is None:
            return
        watched = (served_as, host.description.model.hash)
        if watched not in self._watches:
            present = {name.description.model.hash for name in self.hosts(served_as) if name.description}
            gone = [each for each in self._watches if each[0] == served_as and each[1] not in present]
            for each in gone:
                del self._watches[each]
            self._watches[watched] = DriftWatch(served_as, host.reference, bundle=watched[1])
