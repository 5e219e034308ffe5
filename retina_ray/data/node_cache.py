"""Shards of remote data sets on a node's own disk: fetched once, by whoever comes first, and kept within a bound.

Every data set has a folder named by its fingerprint, whose lock ``in-use`` is shared by all that read it. The lock
``filling`` of the whole cache is held by the process that downloads, so that what one finds free no other takes. The
system releases both when a process dies, however it dies. Folders that nobody reads make room for others, the longest
unused first.
"""

import fcntl
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

from retina_ray.config_runtime import RuntimeConfig
from retina_ray.data.manifest import ShardInfo, sha256_of
from retina_ray.data.store import Store, is_temporary, locked, writing
from retina_ray.errors import DataError

_PARALLEL_DOWNLOADS = 4
_DOWNLOAD_TRIES = 2
"""A bit that flips on the way is visible only in the hash; a second copy tells it from a damaged original."""

_FILLING, _IN_USE = "filling", "in-use"
_UNVERIFIED = ".unverified"


@dataclass(frozen=True, slots=True)
class Lease:
    """A folder of complete, verified shards that stays while the lease is held."""

    folder: Path
    descriptor: int

    def __del__(self) -> None:
        os.close(self.descriptor)


@dataclass(frozen=True, slots=True)
class NodeCache:
    """A folder for the shards of remote data sets.

    Attributes:
        root: the folder.
        limit_bytes: that all shards in it may take; a data set larger than that is kept alone.
    """

    root: Path
    limit_bytes: int

    @classmethod
    def of(cls, runtime: RuntimeConfig) -> "NodeCache":
        """Return the cache that a configuration describes."""
        return cls(Path(runtime.cache).expanduser(), round(runtime.cache_gb * 1e9))

    def fetch(self, remote: Store, shards: Sequence[ShardInfo], fingerprint: str) -> Lease:
        """Return a folder with these shards, downloading those that are missing.

        Args:
            remote: the folder that they lie in.
            shards: all of a data set.
            fingerprint: of the data set.

        Raises:
            DataError: a shard is missing or damaged there, or there is no room for it here.
        """
        folder = self.root / fingerprint
        with writing(folder):
            folder.mkdir(parents=True, exist_ok=True)
        lease = _lease(folder)
        missing = _missing(folder, shards)
        if missing:
            with locked(self.root / _FILLING):
                _tidy(folder)
                missing = _missing(folder, shards)  # the holder before us may have fetched them
                self._make_room(sum(shard.bytes for shard in missing), folder)
                with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
                    list(pool.map(lambda shard: _download(remote, shard, folder), missing))
        return lease

    def _make_room(self, needed: int, keep: Path) -> None:
        """Delete what nobody reads, the longest unused first, until there is room."""
        others = sorted((_last_used(path), path) for path in self.root.iterdir() if path.is_dir() and path != keep)
        held = sum(_size(folder) for _, folder in others) + _size(keep)
        for _, folder in others:
            if held + needed <= self.limit_bytes and needed <= shutil.disk_usage(self.root).free:
                break
            held -= _evict(folder)
        free = shutil.disk_usage(self.root).free
        if needed > free:
            what = f"there is no room to cache the data set: it needs {needed / 1e9:.1f} GB, {free / 1e9:.1f} are free"
            raise DataError(what, str(self.root), "free some, or set runtime.cache to a folder on a larger disk")


def _lease(folder: Path) -> Lease:
    """Declare a folder in use, and just used."""
    with writing(folder):
        descriptor = os.open(folder / _IN_USE, os.O_RDWR | os.O_CREAT, 0o666)
    fcntl.flock(descriptor, fcntl.LOCK_SH)
    os.utime(descriptor)
    return Lease(folder, descriptor)


def _evict(folder: Path) -> int:
    """Delete the shards of a folder unless somebody reads them; return how many bytes that gained."""
    lock = folder / _IN_USE
    if not lock.exists():  # not one of ours
        return 0
    try:
        with locked(lock, wait=False):
            gained = _size(folder)
            for shard in folder.glob("*.arrow*"):
                shard.unlink(missing_ok=True)
            return gained
    except BlockingIOError:
        return 0


def _last_used(folder: Path) -> float:
    try:
        return (folder / _IN_USE).stat().st_mtime
    except OSError:
        return 0.0


def _size(folder: Path) -> int:
    sizes = 0
    for shard in folder.glob("*.arrow"):
        with suppress(FileNotFoundError):  # evicted by another process
            sizes += shard.stat().st_size
    return sizes


def _missing(folder: Path, shards: Sequence[ShardInfo]) -> list[ShardInfo]:
    """Return the shards that are not there, or cut short."""

    def is_whole(shard: ShardInfo) -> bool:
        path = folder / shard.name
        return path.exists() and path.stat().st_size == shard.bytes

    return [shard for shard in shards if not is_whole(shard)]


def _tidy(folder: Path) -> None:
    """Delete what killed downloads left; nobody else downloads now."""
    for path in folder.iterdir():
        if is_temporary(path.name) or path.name.endswith(_UNVERIFIED):
            path.unlink()


def _download(remote: Store, shard: ShardInfo, folder: Path) -> None:
    arriving = folder / f"{shard.name}{_UNVERIFIED}"
    try:
        for _ in range(_DOWNLOAD_TRIES):
            remote.download(shard.name, arriving)
            if sha256_of(arriving) == shard.sha256:
                arriving.replace(folder / shard.name)
                return
    except FileNotFoundError:
        raise DataError(f"shard {shard.name} is missing from", remote.uri, "ingest the images again") from None
    finally:
        arriving.unlink(missing_ok=True)
    what = f"shard {shard.name} of {remote.uri} does not match its SHA-256"
    raise DataError(what, shard.sha256, "restore it or ingest the images again")
