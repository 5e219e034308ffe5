"""Silence of the libraries that decode: what they warn of, or log, may repeat what a file says of its patient."""

import logging
import threading
import warnings
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager

_SILENT = logging.CRITICAL + 1
_LOGGERS = ("PIL", "pydicom")
_SPEAKERS = r"(PIL|pydicom)(\.|$)|retina_ray\.data\."
"""Modules whose warnings are kept; a library may have its warning speak in the name of its caller."""


class _Silence:
    """Silence for as long as any thread asks for it: each restoring what it found would end that of another."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._blocks = 0
        self._before = ExitStack()

    def begin(self) -> None:
        with self._lock:
            if self._blocks == 0:
                self._before.enter_context(warnings.catch_warnings())
                warnings.filterwarnings("ignore", module=_SPEAKERS)
                for name in _LOGGERS:
                    logger = logging.getLogger(name)
                    self._before.callback(logger.setLevel, logger.level)
            self._blocks += 1
            for name in _LOGGERS:
                logger = logging.getLogger(name)
                if logger.level != _SILENT:  # at each block, since pydicom sets its level when it is imported
                    logger.setLevel(_SILENT)

    def end(self) -> None:
        with self._lock:
            self._blocks -= 1
            if self._blocks == 0:
                self._before.close()


_silence = _Silence()


@contextmanager
def quiet() -> Iterator[None]:
    """Keep warnings and logs of Pillow and pydicom to themselves for the length of a block, in all threads."""
    _silence.begin()
    try:
        yield
    finally:
        _silence.end()
