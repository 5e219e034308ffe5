"""The one replica that keeps what all replicas share: rate limits, merged metrics, heads of audit logs."""

import asyncio
import logging
from collections.abc import Callable
from pathlib import Path
from typing import Any

from ray import serve

from retina_ray.serving.audit import HeadsLog
from retina_ray.serving.exchange import HostState
from retina_ray.serving.hub import REPORT_EVERY_S, Hub, HubLink, Report
from retina_ray.serving.key_file import KeyFile
from retina_ray.serving.rate_limit import Lease
from serve_apps.arguments import Arguments

_logger = logging.getLogger("ray.serve")


@serve.deployment(name="Hub", num_replicas=1, max_ongoing_requests=1_000, ray_actor_options={"num_cpus": 0})
class HubReplica:
    """`retina_ray.serving.hub.Hub` behind a handle.

    Args:
        arguments: of the application.
    """

    def __init__(self, arguments: Arguments) -> None:
        keys = None if arguments.keys is None else KeyFile(Path(arguments.keys))
        heads = None if arguments.audit is None else HeadsLog(Path(arguments.audit))
        self._hub = Hub(keys, heads)

    async def lease(self, key_id: str, wanted: int) -> Lease:
        """Return what `Hub.lease` does."""
        return self._hub.lease(key_id, wanted)

    async def report(self, report: Report) -> None:
        """Take a report, as `Hub.report` does."""
        self._hub.report(report)

    async def metrics(self) -> str:
        """Return what `Hub.metrics` does."""
        return self._hub.metrics()

    async def hosts(self, served_as: str) -> list[HostState]:
        """Return what `Hub.hosts` does."""
        return self._hub.hosts(served_as)


class HubHandle:
    """The hub as other replicas see it: a `retina_ray.serving.hub.HubLink`.

    Args:
        handle: of the deployment.
    """

    def __init__(self, handle: Any) -> None:
        self._handle = handle

    async def lease(self, key_id: str, wanted: int) -> Lease:
        """Ask for the right to grade photographs."""
        found: Lease = await self._handle.lease.remote(key_id, wanted)
        return found

    async def report(self, report: Report) -> None:
        """Tell what has happened in this process."""
        await self._handle.report.remote(report)

    async def metrics(self) -> str:
        """Return the metrics of all processes."""
        found: str = await self._handle.metrics.remote()
        return found

    async def hosts(self, served_as: str) -> list[HostState]:
        """Return the states of a served model's replicas."""
        found: list[HostState] = await self._handle.hosts.remote(served_as)
        return found


def reporting(hub: HubLink, served_as: str, state: Callable[[], HostState]) -> "asyncio.Task[None]":
    """Tell the hub every second which model a replica runs, as long as the task that is returned is kept.

    Args:
        hub: the way to it.
        served_as: what requests call the model.
        state: returns what the model says of itself.
    """
    replica = serve.get_replica_context().replica_id.unique_id

    async def report() -> None:
        while True:
            try:
                await hub.report(Report(f"{replica}-model", served_as=served_as, host=state()))
            except Exception:  # the hub is restarting; the next report has everything again
                _logger.debug("the hub did not take a report", exc_info=True)
            await asyncio.sleep(REPORT_EVERY_S)

    return asyncio.get_running_loop().create_task(report())
