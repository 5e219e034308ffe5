"""Who makes the parts of an ingest: this process, or all cores of this machine.

What is not here: the machines of a Ray cluster (``orchestration.ingest_driver``), which keep the same contract.
"""

import multiprocessing
import os
import signal
import threading
from collections.abc import Callable, Generator, Iterator, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ProcessPoolExecutor, wait
from concurrent.futures.process import BrokenProcessPool
from contextlib import contextmanager
from itertools import islice
from typing import Protocol

import cv2

from retina_ray.data.parts import Part
from retina_ray.errors import ConfigError, DataError

_IN_FLIGHT_PER_WORKER = 2


class Work(Protocol):
    """Calls a function with each part, anywhere and in any order, and yields each part when it is made.

    Raises:
        Exception: what the function raises, in the caller.
    """

    def __call__(self, function: Callable[[Part], Part], parts: Sequence[Part]) -> Generator[Part, None, None]:
        """Do the work."""


def serially(function: Callable[[Part], Part], parts: Sequence[Part]) -> Generator[Part, None, None]:
    """Make the parts one after the other, in this process."""
    yield from map(function, parts)


def in_processes(number: int) -> Work:
    """Return what makes parts in that many processes.

    Processes rather than threads, because finding the disc, a quarter of the work on a small photograph, holds the
    interpreter's lock for much of its time. They end with their parent, however that ends.

    Raises:
        ConfigError: for a number below 1.
    """
    if number < 1:
        raise ConfigError("the number of workers must be positive", number, "use 1 or more")

    def work(function: Callable[[Part], Part], parts: Sequence[Part]) -> Generator[Part, None, None]:
        processes = min(number, len(parts))
        if processes < 2:
            yield from serially(function, parts)
            return
        waiting = iter(parts)
        context = multiprocessing.get_context("spawn")
        with ProcessPoolExecutor(processes, mp_context=context, initializer=_begin) as pool:
            running: set[Future[Part]] = set()
            try:
                while True:
                    room = _IN_FLIGHT_PER_WORKER * processes - len(running)
                    with interrupts_held():  # submitting is what starts a process
                        running |= {pool.submit(function, part) for part in islice(waiting, room)}
                    if not running:
                        return
                    finished, running = wait(running, return_when=FIRST_COMPLETED)
                    yield from (future.result() for future in finished)
            except BrokenProcessPool as error:
                fix = "run the command again, which goes on from there, with more memory or fewer workers"
                raise DataError("a worker process died, perhaps for want of memory", processes, fix) from error
            finally:
                for future in running:
                    future.cancel()

    return work


@contextmanager
def interrupts_held() -> Iterator[None]:
    """Hold Ctrl-C back; processes that the block starts never meet it, and end with their parent, which does."""
    before = signal.pthread_sigmask(signal.SIG_BLOCK, {signal.SIGINT})
    try:
        yield
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def _begin() -> None:
    """Prepare a worker: one thread each, and no life after the parent's."""
    cv2.setNumThreads(1)
    parent = multiprocessing.parent_process()
    assert parent is not None

    def follow() -> None:
        parent.join()
        os._exit(1)

    threading.Thread(target=follow, daemon=True).start()
