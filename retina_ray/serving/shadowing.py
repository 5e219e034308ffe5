"""Shows a candidate copies of the photographs that the champion has answered, off the way of any answer.

Copies wait in a short queue; where it is full they are dropped and counted, since the candidate must never slow the
champion down. What is not here: reading what was recorded (``shadow_comparison``).
"""

import asyncio
import logging
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

from retina_ray.serving.model_link import ModelLink
from retina_ray.serving.preparation import Preparation, Prepared
from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.schema import GradeResponse
from retina_ray.serving.service import GradeOptions, GradeRequest
from retina_ray.serving.shadow_log import ShadowAnswer, ShadowLog, ShadowRecord
from retina_ray.serving.telemetry import Telemetry

_WAITING = 32

_logger = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class _Copy:
    candidate: ModelLink
    request: GradeRequest
    image: str
    answer: GradeResponse
    latency_ms: float


class Shadow:
    """Keeps the queue, and works it off one copy at a time; for one event loop.

    Args:
        log: where both models' answers are recorded.
        telemetry: counts copies that were dropped.
        seconds: that the candidate may take for a copy.
    """

    def __init__(self, log: ShadowLog, telemetry: Telemetry, *, seconds: float) -> None:
        self._log = log
        self._telemetry = telemetry
        self._seconds = seconds
        # Of its own: among the threads that prepare photographs to be answered, copies would stand before these.
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="shadow")
        self._queue: asyncio.Queue[_Copy] = asyncio.Queue(_WAITING)
        self._worker: asyncio.Task[None] | None = None

    def offer(
        self, candidate: ModelLink, request: GradeRequest, image: str, answer: GradeResponse, *, latency_ms: float
    ) -> None:
        """Have the candidate see a copy, if it keeps up.

        Args:
            candidate: the model that is tried.
            request: that the champion has answered.
            image: SHA-256 of the photograph's file.
            answer: the champion's.
            latency_ms: of preparing the photograph and asking the champion, as it is measured of the candidate.
        """
        try:
            self._queue.put_nowait(_Copy(candidate, request, image, answer, latency_ms))
        except asyncio.QueueFull:
            self._telemetry.shadow_dropped(candidate.served_as)
        if self._worker is None or self._worker.done():
            self._worker = asyncio.create_task(self._work())

    async def drained(self) -> None:
        """Wait until all copies that were taken have been shown."""
        await self._queue.join()

    async def _work(self) -> None:
        while True:
            copy = await self._queue.get()
            try:
                await self._show(copy)
            except Exception:  # a candidate's failure concerns nobody who waits for an answer
                _logger.warning("a copy was not shown to the candidate", exc_info=True)
            finally:
                self._queue.task_done()

    async def _show(self, copy: _Copy) -> None:
        options = GradeOptions(low_resolution=copy.request.options.low_resolution)
        try:
            model = await copy.candidate.ready()
        except RefusedError:  # it is still starting; there is nobody yet to compare with
            self._telemetry.shadow_dropped(copy.candidate.served_as)
            return
        seen: ShadowAnswer | None = None
        found = model.description.model.hash
        start = time.perf_counter()
        try:
            async with asyncio.timeout(self._seconds):
                _, answer = await copy.candidate.answer(lambda way: self._prepare(way, copy), options)
            elapsed_ms = 1e3 * (time.perf_counter() - start)
            seen, found = ShadowAnswer.of(answer.response, latency_ms=elapsed_ms), answer.response.model.hash
        except Exception as error:  # recorded as no answer, whatever it is: else a candidate that dies looks flawless
            _logger.warning("the candidate did not answer a copy (%s)", type(error).__name__)
        record = ShadowRecord(
            image=copy.image,
            served_as=copy.candidate.served_as,
            champion=copy.answer.model.hash,
            candidate=found,
            champion_answer=ShadowAnswer.of(copy.answer, latency_ms=copy.latency_ms),
            candidate_answer=seen,
        )
        self._log.append(record)

    async def _prepare(self, preparation: Preparation, copy: _Copy) -> Prepared:
        work = partial(preparation.prepare, copy.request.photograph)
        return await asyncio.get_running_loop().run_in_executor(self._thread, work)
