"""What an endpoint's process needs of others, within one process: models without replicas, a hub without a network."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Never

from retina_ray.bundle import Bundle
from retina_ray.serving.audit import AuditLog
from retina_ray.serving.exchange import Answer, Failed, HostState, Job
from retina_ray.serving.grading_service import GradingService, ServiceLimits
from retina_ray.serving.hub import Hub, Report
from retina_ray.serving.model_host import HostSettings, ModelHost
from retina_ray.serving.rate_limit import Lease
from retina_ray.serving.routing import Route
from retina_ray.serving.schema import GradeResponse
from retina_ray.serving.service import GradeRequest
from retina_ray.serving.shadow_log import ShadowLog
from retina_ray.serving.telemetry import Telemetry
from tests.serving_photographs import photograph


@dataclass
class HubHere:
    """A `hub.HubLink` to a hub in this process."""

    hub: Hub = field(default_factory=lambda: Hub(None, None))

    async def lease(self, key_id: str, wanted: int) -> Lease:
        return self.hub.lease(key_id, wanted)

    async def report(self, report: Report) -> None:
        self.hub.report(report)

    async def metrics(self) -> str:
        return self.hub.metrics()

    async def hosts(self, served_as: str) -> list[HostState]:
        return self.hub.hosts(served_as)


class HubAway(HubHere):
    """A hub that is restarting: whoever asks it anything waits."""

    async def lease(self, key_id: str, wanted: int) -> Never:
        return await forever()

    async def report(self, report: Report) -> Never:
        return await forever()

    async def metrics(self) -> Never:
        return await forever()

    async def hosts(self, served_as: str) -> Never:
        return await forever()


@dataclass
class ModelsHere:
    """A `model_link.Transport` to replicas in this process, which are asked in turn."""

    hosts: list[ModelHost]
    asked: int = 0
    jobs: list[Job] = field(default_factory=list)

    def _next(self) -> ModelHost:
        self.asked += 1
        return self.hosts[self.asked % len(self.hosts)]

    async def state(self) -> HostState:
        return self._next().state

    async def answer(self, job: Job) -> Answer | HostState | Failed:
        self.jobs.append(job)
        [found] = self._next().answer([job])
        return found


@dataclass
class ModelsAway(ModelsHere):
    """Replicas that all are dead from the start, or from when ``are_away`` is set: whoever asks them waits."""

    are_away: bool = True

    async def state(self) -> HostState:
        return await forever() if self.are_away else await super().state()

    async def answer(self, job: Job) -> Answer | HostState | Failed:
        return await forever() if self.are_away else await super().answer(job)


class Slow(ModelsHere):
    """A model that answers when it is told to."""

    def __init__(self, host: ModelHost) -> None:
        super().__init__([host])
        self.go = asyncio.Event()
        self.here = asyncio.Semaphore(0)

    async def answer(self, job: Job) -> Answer | HostState | Failed:
        self.here.release()
        await self.go.wait()
        return await super().answer(job)


class Dead(ModelsHere):
    """Replicas that die over whatever they are shown."""

    async def answer(self, job: Job) -> Answer | HostState | Failed:
        raise ConnectionError("the actor is dead")


class Broken(ModelsHere):
    """Replicas whose networks raise."""

    async def answer(self, job: Job) -> Answer | HostState | Failed:
        return Failed("RuntimeError")


class Hanging(ModelsHere):
    """Replicas that say what they run, and answer nothing."""

    async def answer(self, job: Job) -> Answer | HostState | Failed:
        return await forever()


async def forever() -> Never:
    """Wait until somebody gives up."""
    await asyncio.Event().wait()
    raise AssertionError


def host_of(bundle: Bundle | None = None, *, served_as: str = "grading") -> ModelHost:
    """Return a host that answers with a bundle."""
    host = ModelHost(HostSettings(served_as, device="cpu"))
    if bundle is not None:
        assert host.load(bundle, address=bundle.store.uri)
    return host


def service_of(
    route: Route,
    *,
    limits: ServiceLimits | None = None,
    audit: AuditLog | None = None,
    shadow: ShadowLog | None = None,
    hub: HubHere | None = None,
) -> GradingService:
    """Return an endpoint's process without a network; it limits keys where it is given a hub."""
    return GradingService(
        "replica",
        {"grading": route},
        hub or HubHere(),
        limits=limits or ServiceLimits(),
        telemetry=Telemetry(["/v1/grade"]),
        audit=audit,
        rate_limited=hub is not None,
        shadow_log=shadow,
    )


def request(index: int = 0, data: bytes | None = None, **changes: object) -> GradeRequest:
    """Return a request for a drawn photograph, or for a file."""
    values = {"photograph": data or photograph(index), "request_id": f"r{index}", "key_id": "clinic", **changes}
    return GradeRequest(**values)


def run(work: Callable[[], Awaitable[GradeResponse]]) -> GradeResponse:
    """Run in an event loop of its own."""

    async def inner() -> GradeResponse:
        return await work()

    return asyncio.run(inner())
