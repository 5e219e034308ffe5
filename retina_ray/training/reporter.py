"""What the loop tells the outside, and where it finds its checkpoints; a folder will do.

Ray Train's counterpart lives in ``orchestration``.
"""

import shutil
from collections.abc import Callable, Generator
from pathlib import Path
from typing import Any, Protocol

Record = dict[str, Any]


class Reporter(Protocol):
    """Progress out, checkpoints out and in. Every rank calls each method equally often."""

    def progress(self, record: Record) -> None:
        """Pass on a progress record of this rank; must not block."""

    def report(self, metrics: Record, checkpoint: Path | None) -> None:
        """Report an epoch or a checkpoint.

        Args:
            metrics: of this report.
            checkpoint: folder written by rank 0, which may be moved away; none on other ranks or without one.
        """

    def leaving(self) -> bool:
        """Return whether this process has been told that it will be ended; asked at every step, must not block."""

    def checkpoints(self) -> Generator[Path]:
        """Yield local folders of the reported checkpoints, newest first.

        A remote one is fetched when asked for, and stays until the next is asked for or the generator is closed.
        """


class FolderReporter:
    """Keeps checkpoints as numbered folders, without Ray.

    Args:
        folder: where they lie; created when the first one comes.
        keep: how many are kept.
        listener: receives the progress records.
        told: returns whether this process has been told that it will be ended.
    """

    def __init__(
        self,
        folder: Path,
        *,
        keep: int = 2,
        listener: Callable[[Record], None] = lambda record: None,
        told: Callable[[], bool] = lambda: False,
    ) -> None:
        self._folder = folder
        self._keep = keep
        self._listener = listener
        self._told = told

    def progress(self, record: Record) -> None:
        """Hand the record to the listener."""
        self._listener(record)

    def report(self, metrics: Record, checkpoint: Path | None) -> None:
        """Move a checkpoint into place and drop those beyond the newest ``keep``."""
        if checkpoint is None:
            return
        self._folder.mkdir(parents=True, exist_ok=True)
        target = self._folder / f"checkpoint_{metrics['step']:09d}"
        shutil.rmtree(target, ignore_errors=True)
        # Moved under another name first: the numbered name appears with the complete content or not at all.
        arriving = self._folder / f".{target.name}"
        shutil.rmtree(arriving, ignore_errors=True)
        shutil.move(checkpoint, arriving)
        arriving.rename(target)
        for old in list(self.checkpoints())[self._keep :]:
            shutil.rmtree(old)

    def leaving(self) -> bool:
        """Return what the process was told."""
        return self._told()

    def checkpoints(self) -> Generator[Path]:
        """Yield the numbered folders, newest first."""
        yield from sorted(self._folder.glob("checkpoint_*"), reverse=True)
