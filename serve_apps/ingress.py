"""Replicas that take requests: they decode and check photographs, and ask the models about them."""

import asyncio
import logging
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI
from ray import serve

from retina_ray.serving.audit import AuditLog
from retina_ray.serving.exchange import Answer, Failed, HostState, Job
from retina_ray.serving.grading_service import GradingService, ServiceLimits
from retina_ray.serving.http import ROUTES, HttpSettings, build_app
from retina_ray.serving.hub import REPORT_EVERY_S
from retina_ray.serving.key_file import KeyFile
from retina_ray.serving.model_link import ModelLink
from retina_ray.serving.routing import Route, Trial
from retina_ray.serving.shadow_log import ShadowLog
from retina_ray.serving.telemetry import Telemetry
from serve_apps.arguments import Arguments, IngressSettings, ModelSettings
from serve_apps.hub import HubHandle, reporting

if TYPE_CHECKING:  # at run time it would bring torch along, which a process without networks does without
    from serve_apps.hosted_model import HostedModel

_logger = logging.getLogger("ray.serve")


class HandleTransport:
    """The way to a model's replicas through a Serve handle.

    Args:
        handle: of the model's deployment.
    """

    def __init__(self, handle: Any) -> None:
        # By value: a photograph's pixels are a few hundred kilobytes, for which the object store is a detour.
        self._handle = handle.options(_by_reference=False)

    async def state(self) -> HostState:
        """Return what one of the replicas says of itself."""
        found: HostState = await self._handle.state.remote()
        return found

    async def answer(self, job: Job) -> Answer | HostState | Failed:
        """Have a job answered by one of the replicas."""
        found: Answer | HostState | Failed = await self._handle.answer.remote(job)
        return found


class LocalTransport:
    """The way to a model in this process.

    Args:
        model: the model.
    """

    def __init__(self, model: "HostedModel") -> None:
        self._model = model

    async def state(self) -> HostState:
        """Return what the model says of itself."""
        return self._model.state()

    async def answer(self, job: Job) -> Answer | HostState | Failed:
        """Have a job answered by the model."""
        return await self._model.answer(job)


@serve.deployment(name="Http")
@serve.ingress()
class HttpReplica:
    """A replica that takes requests.

    Args:
        arguments: of the application.
        hub: handle of the hub.
        models: handles of the models' deployments by served name; none where the models run in this process.
        candidates: handles of the candidates' deployments.
    """

    def __init__(self, arguments: Arguments, hub: Any, models: dict[str, Any], candidates: dict[str, Any]) -> None:
        self._arguments = arguments
        self._replica = serve.get_replica_context().replica_id.unique_id
        self._hub = HubHandle(hub)
        self._here = {} if models else _models_here(arguments)
        self._routes = {
            name: Route(
                ModelLink(name, HandleTransport(models[name]) if models else LocalTransport(self._here[name])),
                ModelLink(name, HandleTransport(candidates[name]), waits=False) if name in candidates else None,
            )
            for name in arguments.models
        }
        self._service = self._make_service()
        self._tasks = [asyncio.get_running_loop().create_task(self._report())]
        self._tasks += [reporting(self._hub, name, model.state) for name, model in self._here.items()]

    def __serve_build_asgi_app__(self) -> FastAPI:
        """Return the application that answers; Serve calls this after the constructor."""
        http, keys = self._arguments.http, self._arguments.keys
        settings = HttpSettings(
            max_body_bytes=int(http.max_megabytes * 1e6),
            body_seconds=http.body_seconds,
            max_batch=http.max_photographs,
            batch_share=max(1, http.in_flight // 4),
        )
        return build_app(self._service, settings, None if keys is None else KeyFile(Path(keys)))

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Try candidates otherwise, or take other bundles; Serve calls this whenever the configuration changes."""
        settings = IngressSettings.model_validate(user_config)
        for name, route in self._routes.items():
            trial = settings.trials.get(name)
            route.trial = Trial() if trial is None else Trial(trial.canary_percent, trial.shadow)
        for name, model in self._here.items():
            await model.use(settings.models.get(name, ModelSettings()))

    def _make_service(self) -> GradingService:
        arguments, telemetry = self._arguments, Telemetry(ROUTES)
        http = arguments.http
        return GradingService(
            self._replica,
            self._routes,
            self._hub,
            limits=ServiceLimits(http.in_flight, http.seconds, max(1, int(http.num_cpus))),
            telemetry=telemetry,
            audit=None if arguments.audit is None else AuditLog(Path(arguments.audit), self._replica),
            shadow_log=None if arguments.shadow is None else ShadowLog(Path(arguments.shadow), self._replica),
            rate_limited=arguments.keys is not None,
        )

    async def _report(self) -> None:
        """Tell the hub every second what has happened here."""
        while True:
            await asyncio.sleep(REPORT_EVERY_S)
            try:
                await self._service.report()
            except Exception:  # the hub is restarting; counts are kept until it takes them
                _logger.debug("the hub did not take a report", exc_info=True)


def _models_here(arguments: Arguments) -> dict[str, "HostedModel"]:
    from serve_apps.hosted_model import HostedModel

    return {name: HostedModel(name, each, arguments.storage) for name, each in arguments.models.items()}
