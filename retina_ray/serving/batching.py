"""Jobs that arrive while others are computed are the next batch."""

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from concurrent.futures import Executor
from typing import Generic, TypeVar

_Job = TypeVar("_Job")
_Answer = TypeVar("_Answer")


class Batcher(Generic[_Job, _Answer]):
    """Computes one batch after the other; a batch is what waits when the one before it is done.

    So a job that comes alone is begun at once, and batches grow with the load by themselves. Ray Serve's own batches
    are cut when jobs arrive, and then wait: they are as small as their waiting time is short.

    Args:
        compute: maps jobs to as many answers, in an executor.
        most: jobs in a batch, 1 or more.
        executor: of one thread, if batches are not to be computed side by side.
    """

    def __init__(
        self, compute: Callable[[Sequence[_Job]], Sequence[_Answer]], *, most: int, executor: Executor
    ) -> None:
        self._compute = compute
        self._most = most
        self._executor = executor
        self._waiting: deque[tuple[_Job, asyncio.Future[_Answer]]] = deque()
        self._working: asyncio.Task[None] | None = None

    async def answer(self, job: _Job) -> _Answer:
        """Return the answer to a job; what the computation of its batch raises, all of the batch raise."""
        loop = asyncio.get_running_loop()
        answer: asyncio.Future[_Answer] = loop.create_future()
        self._waiting.append((job, answer))
        if self._working is None or self._working.done():
            self._working = loop.create_task(self._work())
        return await answer

    async def _work(self) -> None:
        while self._waiting:
            batch = [self._waiting.popleft() for _ in range(min(self._most, len(self._waiting)))]
            batch = [(job, answer) for job, answer in batch if not answer.done()]  # nobody waits for a cancelled one
            if batch:
                await self._settle([job for job, _ in batch], [answer for _, answer in batch])

    async def _settle(self, jobs: list[_Job], answers: "list[asyncio.Future[_Answer]]") -> None:
        try:
            found = await asyncio.get_running_loop().run_in_executor(self._executor, self._compute, jobs)
        except Exception as error:
            for answer in answers:
                if not answer.done():
                    answer.set_exception(error)
            return
        for answer, value in zip(answers, found, strict=True):
            if not answer.done():
                answer.set_result(value)
