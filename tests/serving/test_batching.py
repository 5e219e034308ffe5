"""Batches are what waits when the one before them is done; nobody waits for more, and nobody fails for another."""

import asyncio
import threading
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor

import pytest

from retina_ray.serving.batching import Batcher

MOST = 4


class Slow:
    """Doubles numbers, when it is let."""

    def __init__(self) -> None:
        self.batches: list[list[int]] = []
        self.begun = threading.Semaphore(0)
        self.let = threading.Semaphore(0)

    def __call__(self, jobs: Sequence[int]) -> list[int]:
        self.batches.append(list(jobs))
        self.begun.release()
        assert self.let.acquire(timeout=10)
        if 13 in jobs:
            raise ValueError("thirteen")
        return [2 * job for job in jobs]


@pytest.fixture
def executor() -> Iterator[ThreadPoolExecutor]:
    with ThreadPoolExecutor(1) as threads:
        yield threads


async def has_begun(slow: Slow) -> None:
    assert await asyncio.to_thread(slow.begun.acquire, timeout=10)


def test_a_batch_is_what_came_while_the_one_before_was_computed(executor: ThreadPoolExecutor) -> None:
    slow = Slow()

    async def run() -> list[int]:
        batcher = Batcher(slow, most=MOST, executor=executor)
        first = asyncio.create_task(batcher.answer(0))
        await has_begun(slow)
        others = [asyncio.create_task(batcher.answer(number)) for number in range(1, 7)]
        for _ in range(3):
            slow.let.release()
        return list(await asyncio.gather(first, *others))

    assert asyncio.run(run()) == [2 * number for number in range(7)]
    assert slow.batches == [[0], [1, 2, 3, 4], [5, 6]]


def test_it_begins_again_after_a_pause(executor: ThreadPoolExecutor) -> None:
    slow = Slow()
    slow.let.release(2)

    async def run() -> list[int]:
        batcher = Batcher(slow, most=MOST, executor=executor)
        return [await batcher.answer(1), await batcher.answer(2)]

    assert asyncio.run(run()) == [2, 4]


def test_what_a_batch_raises_its_own_jobs_raise(executor: ThreadPoolExecutor) -> None:
    slow = Slow()
    slow.let.release(3)

    async def run() -> list[int | BaseException]:
        batcher = Batcher(slow, most=MOST, executor=executor)
        first = asyncio.create_task(batcher.answer(1))
        await asyncio.sleep(0)
        others = [asyncio.create_task(batcher.answer(number)) for number in (13, 2)]
        found = await asyncio.gather(first, *others, return_exceptions=True)
        return [*found, await batcher.answer(3)]

    one, thirteen, two, three = asyncio.run(run())
    assert (one, three) == (2, 6)
    assert isinstance(thirteen, ValueError)
    assert isinstance(two, ValueError)


def test_nothing_is_computed_for_who_no_longer_waits(executor: ThreadPoolExecutor) -> None:
    slow = Slow()

    async def run() -> list[int]:
        batcher = Batcher(slow, most=MOST, executor=executor)
        first = asyncio.create_task(batcher.answer(0))
        await has_begun(slow)
        gone, stays = (asyncio.create_task(batcher.answer(number)) for number in (1, 2))
        await asyncio.sleep(0)
        gone.cancel()
        slow.let.release(2)
        found = [await first, await stays]
        assert gone.cancelled()
        return found

    assert asyncio.run(run()) == [0, 4]
    assert slow.batches == [[0], [2]]
