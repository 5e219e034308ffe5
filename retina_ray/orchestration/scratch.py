"""The temporary folder of a private Ray cluster, which outlives no later one even if its process is killed."""

import fcntl
import os
import shutil
import tempfile
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path

from retina_ray.data.store import locked

PARENT = Path("/tmp")  # short: Ray puts sockets below it, whose paths may have 107 characters
PREFIX = "rr-"
OWNER = ".owner"
"""A file that the owner of a folder holds a lock on as long as it lives."""


@contextmanager
def scratch_folder() -> Iterator[str]:
    """Yield a new folder that is removed afterwards; those of killed processes are removed first."""
    with ExitStack() as stack:
        # One process at a time looks and creates, so none sees a folder whose owner has no lock yet.
        with locked(PARENT / f"{PREFIX}{os.getuid()}.lock"):
            for folder in PARENT.glob(f"{PREFIX}*"):
                _remove_orphan(folder)
            own = tempfile.mkdtemp(prefix=PREFIX, dir=PARENT)
            stack.callback(shutil.rmtree, own, ignore_errors=True)
            stack.enter_context(locked(Path(own) / OWNER))
        yield own


def _remove_orphan(folder: Path) -> None:
    try:
        file = os.open(folder / OWNER, os.O_RDWR)
    except OSError:  # not a folder of ours
        return
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return
    else:
        shutil.rmtree(folder, ignore_errors=True)
    finally:
        os.close(file)
