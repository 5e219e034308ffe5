"""A rank that gets nowhere says where it is and ends, so that nobody waits for ever for it or with it."""

import faulthandler
import os
import sys
import threading
import time
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager

STALLED = 75
"""Exit status of a process that its watchdog ended."""

FIRST_S = 3600.0
"""For what comes before the first step: a data set is fetched, ranks find each other, kernels are compiled."""

_LOOKS = 10
"""How often it looks in the time that a rank may stand still."""

_GRACE_S = 30.0
"""Beyond which the interpreter itself is stuck, and a signal of the C library's does what the thread cannot."""


class Watchdog:
    """Ends the process when nothing has moved for too long.

    Args:
        seconds: that may pass between two beats.
        tell: receives what all threads were doing, and for how long, before the process ends; must not wait for other
            ranks.
        still: receives at every look how long nothing has moved, from the first beat on.
        first_s: seconds that may pass before the first beat, if they are more.
    """

    def __init__(
        self,
        seconds: float,
        tell: Callable[[str, float], None],
        still: Callable[[float], None] = lambda seconds: None,
        *,
        first_s: float = FIRST_S,
    ) -> None:
        self._seconds = seconds
        self._first_s = max(seconds, first_s)
        self._has_begun = False
        self._tell = tell
        self._still = still
        self._beaten = time.monotonic()
        self._over = threading.Event()

    def beat(self) -> None:
        """Say that something has moved."""
        self._has_begun = True
        self._wind_up()

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for the length of a block."""
        self._wind_up()
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            faulthandler.cancel_dump_traceback_later()

    @property
    def _limit(self) -> float:
        return self._seconds if self._has_begun else self._first_s

    def _wind_up(self) -> None:
        self._beaten = time.monotonic()
        faulthandler.dump_traceback_later(self._limit + _GRACE_S, exit=True)

    def _watch(self) -> None:
        while not self._over.wait(self._seconds / _LOOKS):
            silence = time.monotonic() - self._beaten
            if self._has_begun:
                self._still(silence)
            if silence > self._limit:
                self._tell(stacks(), self._limit)
                # The others stand still as well, since some moments more or less: the end of this rank would end them
                # before they have told where they are.
                time.sleep(2 * self._seconds / _LOOKS)
                os._exit(STALLED)


def stacks() -> str:
    """Return what every thread of this process is doing, the innermost call last."""
    names = {thread.ident: thread.name for thread in threading.enumerate()}
    return "\n".join(
        f"thread {names.get(ident, ident)}\n{''.join(traceback.format_stack(frame))}"
        for ident, frame in sys._current_frames().items()
    )
