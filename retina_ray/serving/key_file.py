"""The API keys in a file as it is now: one that was added may be used, and one that was removed may not, in a second.

What is not here: what stands in the file, and who is let in (``keys``).
"""

import logging
import os
import time
from collections.abc import Callable
from pathlib import Path

from retina_ray.errors import ConfigError
from retina_ray.serving.keys import ApiKey, ApiKeys, Scope

_logger = logging.getLogger(__name__)

_LOOK_EVERY_S = 1.0

_Stamp = tuple[int, int, int] | None


class KeyFile:
    """The keys of a file, which is read again where it has changed.

    A file that cannot be used any more leaves the keys as they were, and says so in the log: a slip in editing must not
    lock everybody out.

    Args:
        path: of the file.
        clock: seconds.

    Raises:
        ConfigError: `ApiKeys.load` cannot use it now.
    """

    def __init__(self, path: Path, clock: Callable[[], float] = time.monotonic) -> None:
        self._path = path
        self._clock = clock
        self._looked = clock()
        self._stamp = _stamp(path)
        self._keys = ApiKeys.load(path)

    @property
    def per_minute(self) -> dict[str, int]:
        """Photographs a minute, by key id."""
        return self._present().per_minute

    def check(self, presented: str, scope: Scope) -> ApiKey:
        """Return the key that a request presents, as `ApiKeys.check` does."""
        return self._present().check(presented, scope)

    def _present(self) -> ApiKeys:
        now = self._clock()
        if now - self._looked < _LOOK_EVERY_S:
            return self._keys
        self._looked = now
        stamp = _stamp(self._path)
        if stamp != self._stamp:
            self._stamp = stamp
            try:
                self._keys = ApiKeys.load(self._path)
            except ConfigError as error:
                _logger.error("the keys stay as they were: %s", error)
        return self._keys


def _stamp(path: Path) -> _Stamp:
    """Return what differs after a file was written or replaced; None where it is missing."""
    try:
        found = os.stat(path)
    except OSError:
        return None
    return found.st_mtime_ns, found.st_ino, found.st_size
