"""Grades photographs on behalf of an endpoint: prepares them, asks the model, draws, logs, watches.

One of these lives in each process that takes requests. What is not here: HTTP (``http``), the way to the models
(``model_link``), and what is kept for all processes together (``hub``).
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any, TypeVar

from retina_ray.data.fundus import NoFundusError
from retina_ray.errors import DataError
from retina_ray.serving.answer_cache import AnswerCache
from retina_ray.serving.audit import AuditEntry, AuditLog, graded, refused
from retina_ray.serving.drift import DriftCounts
from retina_ray.serving.exchange import Answer
from retina_ray.serving.hub import HubLink, Report, Watched
from retina_ray.serving.model_link import ModelLink, ReadyModel
from retina_ray.serving.pictures import with_pictures
from retina_ray.serving.preparation import Preparation, Prepared
from retina_ray.serving.rate_limit import Wallet
from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.routing import Route
from retina_ray.serving.schema import GradeResponse, ImageQuality, ModelsResponse, Rollout
from retina_ray.serving.service import GradeOptions, GradeRequest
from retina_ray.serving.shadow_log import ShadowLog
from retina_ray.serving.shadowing import Shadow
from retina_ray.serving.telemetry import Telemetry

T = TypeVar("T")

_logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ServiceLimits:
    """What one process takes on.

    Attributes:
        in_flight: photographs at a time; more are refused as overload.
        seconds: that a photograph may take.
        threads: that decode and draw.
    """

    in_flight: int = 32
    seconds: float = 30.0
    threads: int = 2


class GradingService:
    """The `service.Service` of an endpoint's process.

    Args:
        replica: name of this process.
        routes: the models by what they are served as; the first is asked where a request names none.
        hub: what is kept for all processes.
        limits: what it takes on.
        telemetry: counts.
        audit: where each answer is logged before it leaves; None: nowhere.
        rate_limited: whether keys have limits.
        shadow_log: where what a shadowing candidate answers is recorded; None: none sees anything.
    """

    def __init__(
        self,
        replica: str,
        routes: Mapping[str, Route],
        hub: HubLink,
        *,
        limits: ServiceLimits,
        telemetry: Telemetry,
        audit: AuditLog | None,
        rate_limited: bool,
        shadow_log: ShadowLog | None,
    ) -> None:
        self._replica = replica
        self._routes = dict(routes)
        self._hub = hub
        self._limits = limits
        self._telemetry = telemetry
        self._audit = audit
        self._wallet = Wallet(hub.lease) if rate_limited else None
        self._shadow = None if shadow_log is None else Shadow(shadow_log, telemetry, self.prepare)
        self._answers = AnswerCache()
        self._threads = ThreadPoolExecutor(limits.threads, thread_name_prefix="prepare")
        self._in_flight = 0
        self._drift: dict[Watched, DriftCounts] = {}

    async def grade(self, request: GradeRequest) -> GradeResponse:
        """Grade one photograph.

        Raises:
            RefusedError: it is not graded.
        """
        image = hashlib.sha256(request.photograph).hexdigest()
        question = (image, request.model, request.options)
        if request.idempotency_key is not None:
            given = self._answers.find(request.key_id, request.idempotency_key, question)
            if given is not None:
                return given
        route = self._route(request.model)
        if self._in_flight >= self._limits.in_flight:
            self._telemetry.refused("overloaded")
            detail = f"{self._in_flight} photographs are being graded, the most that this process takes; repeat it"
            raise RefusedError("overloaded", detail, retry_after=1.0)
        self._in_flight += 1
        try:
            async with asyncio.timeout(self._limits.seconds):
                answer = await self._grade(request, route, image)
        except TimeoutError:
            detail = f"the answer took longer than {self._limits.seconds:g} s; repeat the request"
            raise self._refusal(request, image, RefusedError("timeout", detail, retry_after=1.0)) from None
        except RefusedError as error:
            raise self._refusal(request, image, error) from None
        finally:
            self._in_flight -= 1
        if request.idempotency_key is not None:
            self._answers.keep(request.key_id, request.idempotency_key, question, answer)
        return answer

    async def models(self) -> ModelsResponse:
        """Return the models that can be asked, with how many processes answer with each."""
        found = []
        for name, route in self._routes.items():
            description = (await route.champion.look()).description
            states = await self._hub.hosts(name)
            here = Counter(state.description.model.hash for state in states if state.description)
            swap = next((state.swap for state in states if state.swap), None)
            rollout = None
            if swap is not None:
                others = sum(here.values()) - here[description.model.hash]
                rollout = Rollout(bundle=swap.bundle, state=swap.state, replicas=others, detail=swap.detail)
            update = {"replicas": here[description.model.hash], "rollout": rollout}
            found.append(description.model_copy(update=update))
        return ModelsResponse(models=found)

    async def admit(self, key_id: str, photographs: int) -> None:
        """Count photographs against a key's rate limit."""
        if self._wallet is None:
            return
        try:
            await self._wallet.admit(key_id, photographs)
        except RefusedError:
            raise
        except Exception as error:  # of the transport: the hub is restarting
            detail = "the service cannot look up the key's rate limit at the moment; repeat the request"
            raise RefusedError("overloaded", detail, retry_after=1.0) from error

    async def metrics(self) -> str:
        """Return the metrics of all processes in Prometheus's text format."""
        await self.report()
        return await self._hub.metrics()

    async def not_ready(self) -> str | None:
        """Return why no photograph can be graded at the moment; None where one can."""
        try:
            for route in self._routes.values():
                await route.champion.ready()
        except RefusedError as error:
            return error.detail
        return None

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count a finished request."""
        self._telemetry.request(route, status, seconds)

    async def report(self) -> None:
        """Tell the hub what has happened since the last time."""
        drift, self._drift = self._drift, {}
        self._telemetry.in_flight(self._in_flight)
        head = None if self._audit is None else self._audit.head()
        await self._hub.report(Report(self._replica, metrics=self._telemetry.snapshot(), drift=drift, audit=head))

    def _route(self, name: str | None) -> Route:
        if name is None:
            return next(iter(self._routes.values()))
        if name not in self._routes:
            known = ", ".join(self._routes)
            raise RefusedError("unknown-model", f"no such model is served: {name!r}; served are {known}")
        return self._routes[name]

    async def _grade(self, request: GradeRequest, route: Route, image: str) -> GradeResponse:
        start = time.perf_counter()
        link, prepared, answer = await self._ask(request, route, image)
        asked_ms = 1e3 * (time.perf_counter() - start)
        response = await self._in_thread(lambda: with_pictures(answer, prepared, request.options))
        timing = response.timing.model_copy(update={"total_ms": 1e3 * (time.perf_counter() - start)})
        response = response.model_copy(update={"request_id": request.request_id, "timing": timing})
        self._log(request, image, response.model.hash, graded(response))
        self._telemetry.graded(link.served_as, answer.batch_size, response.timing.network_ms / 1e3)
        if not request.options.low_resolution:  # such photographs are measured at another size than the reference
            self._count(link.served_as, prepared, response)
        if self._shadow is not None and route.trial.shadow and link is route.champion and route.candidate is not None:
            self._shadow.offer(route.candidate, request, image, response, latency_ms=asked_ms)
        return response

    async def _ask(self, request: GradeRequest, route: Route, image: str) -> tuple[ModelLink, Prepared, Answer]:
        """Ask the candidate, if the photograph goes to it and it can answer, or else the champion."""

        async def prepare(preparation: Preparation) -> Prepared:
            return await self.prepare(preparation, request.photograph)

        if route.candidate is not None and route.goes_to_candidate(image):
            try:
                check_options(await route.candidate.ready(), request.options)
                return route.candidate, *await route.candidate.answer(prepare, request.options)
            except RefusedError as error:
                if error.kind in ("unreadable-image", "no-fundus"):
                    raise
                _logger.warning("the candidate did not answer, so the champion does (%s)", error.detail)
        check_options(await route.champion.ready(), request.options)
        return route.champion, *await route.champion.answer(prepare, request.options)

    async def prepare(self, preparation: Preparation, photograph: bytes) -> Prepared:
        """Prepare a photograph in one of the threads that do so.

        Raises:
            RefusedError: it cannot be read (``unreadable-image``) or shows no fundus (``no-fundus``).
        """
        try:
            return await self._in_thread(lambda: preparation.prepare(photograph))
        except NoFundusError as error:
            verdict = ImageQuality(ok=False, reason=f"retake: no fundus found ({error.what})")
            raise RefusedError("no-fundus", f"{error.what}; {error.fix}", image=verdict) from None
        except DataError as error:
            verdict = ImageQuality(ok=False, reason=f"send it again: {error.what}")
            raise RefusedError("unreadable-image", f"{error.what}; {error.fix}", image=verdict) from None

    async def _in_thread(self, work: Callable[[], T]) -> T:
        return await asyncio.get_running_loop().run_in_executor(self._threads, work)

    def _count(self, served_as: str, prepared: Prepared, response: GradeResponse) -> None:
        watched = (served_as, response.model.hash)
        counts = DriftCounts.of(prepared.measures, response)
        self._drift[watched] = self._drift[watched] + counts if watched in self._drift else counts

    def _refusal(self, request: GradeRequest, image: str, error: RefusedError) -> RefusedError:
        self._telemetry.refused(error.kind)
        self._log(request, image, None, refused(error))
        return error

    def _log(self, request: GradeRequest, image: str, model: str | None, answer: dict[str, Any]) -> None:
        """Write the audit line, which must be on its way to the disk before the answer leaves."""
        if self._audit is not None:
            try:
                self._audit.append(AuditEntry(request.request_id, request.key_id, image, model, answer))
            except OSError as error:
                _logger.exception("the audit log cannot be written, so nothing is answered")
                raise RefusedError("internal", "the audit log cannot be written; tell the service's owner") from error


def check_options(model: ReadyModel, options: GradeOptions) -> None:
    """Check that a model can do what is asked.

    Raises:
        RefusedError: it cannot (``unsupported``).
    """
    description = model.description
    lacking = [
        what
        for what, lacks in (
            (
                f"draw {options.explain}",
                options.explain is not None and options.explain not in description.explanations,
            ),
            ("segment lesions", options.lesions and not description.lesions),
            ("enhance photographs", options.enhance and not description.enhances),
        )
        if lacks
    ]
    if lacking:
        can = ", ".join(description.explanations) or "none"
        detail = f"the model {description.served_as} cannot {' or '.join(lacking)}; it draws: {can}"
        raise RefusedError("unsupported", detail)
