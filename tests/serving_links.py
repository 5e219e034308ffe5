"""What an endpoint's process needs of others, within one process: models without replicas, a hub without a network."""

from dataclasses import dataclass, field

from retina_ray.bundle import Bundle
from retina_ray.serving.exchange import Answer, HostState, Job
from retina_ray.serving.hub import Hub, Report
from retina_ray.serving.model_host import HostSettings, ModelHost
from retina_ray.serving.rate_limit import Lease


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

    async def answer(self, job: Job) -> Answer | HostState:
        self.jobs.append(job)
        [found] = self._next().answer([job])
        return found


def host_of(bundle: Bundle | None = None, *, served_as: str = "grading") -> ModelHost:
    """Return a host that answers with a bundle."""
    host = ModelHost(HostSettings(served_as, device="cpu"))
    if bundle is not None:
        assert host.load(bundle, address=bundle.store.uri)
    return host
