"""Processes that are killed: who belongs to a life, and what it leaves in /tmp."""

import os
import shutil
from contextlib import suppress
from pathlib import Path

from tests.helpers import descendants

MARK = "RETINA_RAY_TEST_FAMILY"
"""Environment variable by which the processes of a life are known."""


def family(mark: str) -> set[int]:
    """Return the processes that were started, at any remove, by the life with that mark, orphans included."""
    found = set()
    for entry in Path("/proc").iterdir():
        with suppress(OSError):
            if entry.name.isdigit() and f"{MARK}={mark}".encode() in (entry / "environ").read_bytes():
                found.add(int(entry.name))
    # Ray's workers write their title over their environment; they hang on the raylet.
    return found.union(*map(descendants, found))


def send(processes: set[int], number: int) -> None:
    for process in processes:
        with suppress(ProcessLookupError):
            os.kill(process, number)


def ray_folders_of(process: int) -> set[str]:
    with suppress(OSError):
        words = Path(f"/proc/{process}/cmdline").read_bytes().decode(errors="replace").replace("=", "\0").split("\0")
        return {"/".join(word.split("/")[:3]) for word in words if word.startswith("/tmp/rr-")}
    return set()


def remove(folder: str) -> None:
    shutil.rmtree(folder, ignore_errors=True)
