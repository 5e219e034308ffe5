"""The node's cache: what makes room for what, who is spared, what a full disk says."""

import os
import shutil
from pathlib import Path
from typing import NamedTuple

import pytest

from retina_ray.data.manifest import ShardInfo, sha256_of
from retina_ray.data.node_cache import Lease, NodeCache
from retina_ray.data.store import Store
from retina_ray.errors import DataError

SHARD_BYTES = 1000


class Remote(NamedTuple):
    store: Store
    shards: list[ShardInfo]


@pytest.fixture
def remote(tmp_path: Path) -> Remote:
    """Two shards of 1,000 bytes."""
    shards = []
    for number in range(2):
        path = tmp_path / "remote" / f"{number:05d}.arrow"
        path.parent.mkdir(exist_ok=True)
        path.write_bytes(os.urandom(SHARD_BYTES))
        shards.append(ShardInfo(name=path.name, rows=1, bytes=SHARD_BYTES, sha256=sha256_of(path), labels_crc32=0))
    return Remote(Store(str(tmp_path / "remote")), shards)


def fetched(cache: NodeCache, remote: Remote, name: str, used: float) -> Lease:
    """Fetch as a data set of that name, last used at that time."""
    lease = cache.fetch(remote.store, remote.shards, name)
    os.utime(lease.folder / "in-use", (used, used))
    return lease


def kept(cache: NodeCache) -> set[str]:
    return {path.parent.name for path in cache.root.rglob("*.arrow")}


def test_the_longest_unused_makes_room(tmp_path: Path, remote: Remote) -> None:
    cache = NodeCache(tmp_path / "cache", 3 * 2 * SHARD_BYTES)
    for name, used in (("old", 1), ("older", 0), ("young", 2)):
        fetched(cache, remote, name, used)
    assert kept(cache) == {"old", "older", "young"}
    fetched(cache, remote, "new", 3)
    assert kept(cache) == {"old", "young", "new"}


def test_what_is_read_is_spared_even_beyond_the_bound(tmp_path: Path, remote: Remote) -> None:
    cache = NodeCache(tmp_path / "cache", 2 * SHARD_BYTES)
    lease = fetched(cache, remote, "read", 0)
    fetched(cache, remote, "idle", 1)
    assert kept(cache) == {"read", "idle"}
    fetched(cache, remote, "new", 2)
    assert kept(cache) == {"read", "new"}
    assert (lease.folder / "00001.arrow").read_bytes() == remote.store.read_bytes("00001.arrow")
    del lease
    fetched(cache, remote, "newest", 3)
    assert kept(cache) == {"newest"}


def test_what_was_evicted_is_fetched_again(tmp_path: Path, remote: Remote) -> None:
    cache = NodeCache(tmp_path / "cache", 2 * SHARD_BYTES)
    for name in ("one", "other", "one"):
        lease = fetched(cache, remote, name, 0)
        assert sorted(path.name for path in lease.folder.glob("*.arrow")) == ["00000.arrow", "00001.arrow"]
        del lease


def test_what_a_killed_download_left_is_cleared_and_a_cut_shard_fetched_again(tmp_path: Path, remote: Remote) -> None:
    cache = NodeCache(tmp_path / "cache", 10**9)
    folder = fetched(cache, remote, "one", 0).folder
    left = folder / f".00001.arrow.unverified.{'0' * 32}.tmp"
    left.touch()
    (folder / "00001.arrow").write_bytes(b"cut")
    fetched(cache, remote, "one", 0)
    assert not left.exists()
    assert (folder / "00001.arrow").read_bytes() == remote.store.read_bytes("00001.arrow")


def test_folders_of_others_are_left_alone(tmp_path: Path, remote: Remote) -> None:
    cache = NodeCache(tmp_path / "cache", 1)
    foreign = tmp_path / "cache" / "mine" / "precious.arrow"
    foreign.parent.mkdir(parents=True)
    foreign.write_text("precious")
    fetched(cache, remote, "new", 0)
    assert foreign.read_text() == "precious"


def test_a_disk_without_room_is_named_before_anything_is_fetched(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = NodeCache(tmp_path / "cache", 10**9)
    fetched(cache, remote, "old", 0)
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda _: usage._replace(free=SHARD_BYTES))
    with pytest.raises(DataError, match=rf"no room to cache .*{cache.root}; free some, or set runtime.cache"):
        cache.fetch(remote.store, remote.shards, "new")
    assert kept(cache) == set()  # the old one was given up for it


def test_a_disk_that_fills_up_meanwhile_leaves_nothing_half(
    tmp_path: Path, remote: Remote, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    cache = NodeCache(tmp_path / "cache", 10**9)
    with monkeypatch.context() as patch, pytest.raises(DataError, match=r"has room .No space left on device"):  # noqa: PT012
        patch.setattr("retina_ray.data.store.os.fsync", full)
        cache.fetch(remote.store, remote.shards, "new")
    assert [path.name for path in (cache.root / "new").iterdir() if path.suffix not in ("", ".lock")] == []
    assert len(list(cache.fetch(remote.store, remote.shards, "new").folder.glob("*.arrow"))) == 2


def test_two_runs_can_hold_one_data_set(tmp_path: Path, remote: Remote) -> None:
    cache = NodeCache(tmp_path / "cache", 10**9)
    first, second = (cache.fetch(remote.store, remote.shards, "one") for _ in range(2))
    assert first.folder == second.folder
    del first
    fetched(NodeCache(cache.root, 1), remote, "new", 0)
    assert kept(cache) == {"one", "new"}
    assert second.folder.is_dir()
