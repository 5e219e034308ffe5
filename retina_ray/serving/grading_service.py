"""Grades photographs on behalf of an endpoint: prepares them, asks the model, draws, logs, watches.

One of these lives in each process that takes requests. What is not here: HTTP (``http``), the way to the models
(``model_link``), and what is kept for all processes together (``hub``).
"""

import asyncio
import hashlib
import logging
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
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
from retina_ray.serving.model_link import ModelLink, Prepare
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

_CANDIDATE_SHARE = 1 / 3
"""Of a request's seconds, for the candidate: the champion, asked in its place, must have time enough left to answer."""

_HUB_S = 3.0
"""Seconds in which the hub has to answer, which takes it milliseconds; while it restarts, Serve waits forever."""

_SILENT_S = 15.0
"""Seconds without an answer of a model, after which no request should come here: a replica that was killed is back
sooner, and requests wait for it."""

_OF_THE_PHOTOGRAPH = ("unreadable-image", "no-fundus")
"""Refusals that another model would only repeat."""


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
        self._shadow = None if shadow_log is None else Shadow(shadow_log, telemetry, seconds=limits.seconds)
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
            states = await _of_hub(self._hub.hosts(name), "count the models' replicas")
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
        await _of_hub(self._wallet.admit(key_id, photographs), "look up the key's rate limit")

    async def metrics(self) -> str:
        """Return the metrics of all processes in Prometheus's text format.

        Raises:
            RefusedError: the hub does not answer (``overloaded``).
        """

        async def collect() -> str:
            await self.report()
            return await self._hub.metrics()

        return await _of_hub(collect(), "collect the metrics")

    async def not_ready(self) -> str | None:
        """Return why no photograph can be graded at the moment; None where one can."""
        try:
            for name, route in self._routes.items():
                await route.champion.ready()
                if await route.champion.is_silent(_SILENT_S):
                    return f"no replica of the model answers: {name}; wait, or look at `retina-ray serve status`"
        except RefusedError as error:
            return error.detail
        return None

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count a finished request."""
        self._telemetry.request(route, status, seconds)

    async def report(self) -> None:
        """Tell the hub what has happened since the last time; what it does not take, it is told the next time."""
        self._telemetry.in_flight(self._in_flight)
        metrics = self._telemetry.snapshot()
        head = None if self._audit is None else self._audit.head()
        drift, self._drift = self._drift, {}
        report = Report(self._replica, metrics=metrics, drift=drift, audit=head)
        try:
            async with asyncio.timeout(_HUB_S):
                await self._hub.report(report)
        except BaseException:  # cancelled, too; what it took without saying so in time counts twice, which is rare
            for watched, counts in drift.items():
                self._add(watched, counts)
            raise

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
            return await self._prepare(preparation, request.photograph)

        if route.candidate is not None and route.goes_to_candidate(image):
            answered = await self._try(route.candidate, prepare, request.options)
            if answered is not None:
                return route.candidate, *answered
        return route.champion, *await route.champion.answer(prepare, request.options)

    async def _try(
        self, candidate: ModelLink, prepare: Prepare, options: GradeOptions
    ) -> tuple[Prepared, Answer] | None:
        """Return the candidate's answer; None where it gives none in time, whatever the reason.

        Raises:
            RefusedError: the photograph cannot be graded by any model.
        """
        try:
            async with asyncio.timeout(_CANDIDATE_SHARE * self._limits.seconds):
                return await candidate.answer(prepare, options)
        except RefusedError as error:
            if error.kind in _OF_THE_PHOTOGRAPH:
                raise
            why = error.detail
        except Exception as error:  # a dead replica, say; its message may quote what identifies a patient
            why = type(error).__name__
        _logger.warning("the candidate did not answer, so the champion does (%s)", why)
        return None

    async def _prepare(self, preparation: Preparation, photograph: bytes) -> Prepared:
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
        self._add((served_as, response.model.hash), DriftCounts.of(prepared.measures, response))

    def _add(self, watched: Watched, counts: DriftCounts) -> None:
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


async def _of_hub(answer: Awaitable[T], what: str) -> T:
    """Wait for an answer that needs the hub, which may be restarting, but not for long.

    Args:
        answer: to be waited for.
        what: what cannot be done without it.

    Raises:
        RefusedError: the hub does not answer (``overloaded``), or the answer is a refusal itself.
    """
    try:
        async with asyncio.timeout(_HUB_S):
            return await answer
    except RefusedError:
        raise
    except Exception as error:
        _logger.warning("the hub did not answer (%s)", type(error).__name__)
        detail = f"the service cannot {what} at the moment; repeat the request"
        raise RefusedError("overloaded", detail, retry_after=1.0) from error
