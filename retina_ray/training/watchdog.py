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

_LOOKS = 10
"""How often it looks in the time that a rank may stand still."""

_GRACE_S = 30.0
"""Beyond which the interpreter itself is stuck, and a signal of the C library's does what the thread cannot."""


class Watchdog:
    """Ends the process when nothing has moved for too long.

    Args:
        seconds: that may pass between two beats, the first of which may take its time: kernels are compiled before it.
        tell: receives what all threads were doing, before the process ends; must not wait for other ranks.
        still: receives at every look how long nothing has moved.
    """

    def __init__(
        self, seconds: float, tell: Callable[[str], None], still: Callable[[float], None] = lambda seconds: None
    ) -> None:
        self._seconds = seconds
        self._tell = tell
        self._still = still
        self._beaten: float | None = None
        self._over = threading.Event()

    def beat(self) -> None:
        """Say that something has moved."""
        self._beaten = time.monotonic()
        faulthandler.dump_traceback_later(self._seconds + _GRACE_S, exit=True)

    @contextmanager
    def watching(self) -> Iterator[None]:
        """Watch for the length of a block."""
        thread = threading.Thread(target=self._watch, name="watchdog", daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._over.set()
            faulthandler.cancel_dump_traceback_later()

    def _watch(self) -> None:
        while not self._over.wait(self._seconds / _LOOKS):
            if self._beaten is None:
                continue
            silence = time.monotonic() - self._beaten
            self._still(silence)
            if silence > self._seconds:
                self._tell(stacks())
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
