"""What SIGTERM means to a process that trains: leave with a checkpoint, within the notice that it gives."""

import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any


@contextmanager
def told_to_stop() -> Iterator[threading.Event]:
    """Yield what SIGTERM sets during a block, instead of ending the process at once; a second one does that.

    To be entered after connecting to Ray, which sets a handler of its own. Signals reach the main thread alone: in
    another one, such as a trial's of a search, nothing is ever set.
    """
    told = threading.Event()
    if threading.current_thread() is not threading.main_thread():
        yield told
        return

    def tell(number: int, frame: Any) -> None:
        told.set()
        signal.signal(signal.SIGTERM, before)

    before = signal.signal(signal.SIGTERM, tell)
    try:
        yield told
    finally:
        signal.signal(signal.SIGTERM, before)
