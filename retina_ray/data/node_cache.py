"""Shards of remote data sets on a node's own disk: fetched once, by whoever comes first, and kept within a bound.

Every data set has a folder named by its fingerprint. Its lock ``filling`` is held by the process that downloads, its
lock ``in-use`` is shared by all that read; the system releases both when a process dies, however it dies. Folders that
nobody reads make room for others, the longest unused first.
"""

import fcntl
import os
import shutil
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

from retina_ray.config import RuntimeConfig
from retina_ray.data.manifest import ShardInfo, sha256_of
from retina_ray.data.store import Store, locked, writing
from retina_ray.errors import DataError

_PARALLEL_DOWNLOADS = 4
_DOWNLOAD_TRIES = 2
"""A bit that flips on the way is visible only in the hash; a second copy tells it from a damaged original."""

_FILLING, _IN_USE = "filling", "in-use"


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
            with locked(folder / _FILLING):
                missing = _missing(folder, shards)  # the holder before us may have fetched them
                self._make_room(sum(shard.bytes for shard in missing), folder)
                with ThreadPoolExecutor(_PARALLEL_DOWNLOADS) as pool:
                    list(pool.map(lambda shard: _download(remote, shard, folder), missing))
        return lease

    def _make_room(self, needed: int, keep: Path) -> None:
        """Delete what nobody reads, the longest unused first, until there is room."""
        others = sorted((_last_used(folder), folder) for folder in self.root.iterdir() if folder != keep)
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
    try:
        descriptor = os.open(folder / _IN_USE, os.O_RDWR)
    except OSError:  # not one of ours
        return 0
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        gained = _size(folder)
        for shard in folder.glob("*.arrow*"):
            shard.unlink(missing_ok=True)
        return gained
    except BlockingIOError:
        return 0
    finally:
        os.close(descriptor)


def _last_used(folder: Path) -> float:
    try:
        return (folder / _IN_USE).stat().st_mtime
    except OSError:
        return 0.0


def _size(folder: Path) -> int:
    return sum(shard.stat().st_size for shard in folder.glob("*.arrow"))


def _missing(folder: Path, shards: Sequence[ShardInfo]) -> list[ShardInfo]:
    return [shard for shard in shards if not (folder / shard.name).exists()]


def _download(remote: Store, shard: ShardInfo, folder: Path) -> None:
    arriving = folder / f"{shard.name}.unverified"
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
