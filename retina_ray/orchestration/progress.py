"""Progress records from workers anywhere in the cluster to the driver, live and without blocking training."""

import asyncio
import logging
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Record = dict[str, Any]
Listener = Callable[[Record], None]

POLL_S = 0.5

logger = logging.getLogger(__name__)


@ray.remote(num_cpus=0)
class ProgressRelay:
    """Holds records until the driver takes them, and word from the driver until the workers hear it."""

    def __init__(self) -> None:
        self._records: list[Record] = []
        self._stop = asyncio.Event()

    async def push(self, record: Record) -> None:
        """Add a record."""
        self._records.append(record)

    async def take(self) -> list[Record]:
        """Return and forget the records so far."""
        taken, self._records = self._records, []
        return taken

    async def stop(self) -> None:
        """Tell the workers to leave."""
        self._stop.set()

    async def stopped(self) -> None:
        """Return when the workers have been told to leave."""
        await self._stop.wait()


@contextmanager
def relay_to(listener: Listener) -> Iterator[Any]:
    """Start a relay and hand its records to the listener, in a thread, until the block ends.

    Yields:
        The relay's actor handle, for workers to push to.
    """
    # On this node, so that it lives as long as whoever listens; Ray would put it anywhere.
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    relay = ProgressRelay.options(scheduling_strategy=here).remote()  # type: ignore[attr-defined]  # by the decorator
    done = threading.Event()

    def drain() -> None:
        for record in ray.get(relay.take.remote()):
            listener(record)

    def pump() -> None:
        while not done.wait(POLL_S):
            try:
                drain()
            except Exception:  # what is shown must not end what is trained
                logger.warning("progress could not be shown", exc_info=True)

    thread = threading.Thread(target=pump, name="progress", daemon=True)
    thread.start()
    try:
        yield relay
    finally:
        done.set()
        thread.join()
        with suppress(ray.exceptions.RayError):  # the relay may have gone with the cluster
            drain()
            ray.kill(relay)
