"""Files behind one class: local folders, and S3 over real HTTP."""

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest
from moto.server import ThreadedMotoServer

from retina_ray.data.store import Store, atomic_file, is_temporary, locked
from retina_ray.errors import DataError


@pytest.fixture(scope="module")
def s3_endpoint() -> Iterator[str]:
    server = ThreadedMotoServer("127.0.0.1", port=0)
    server.start()
    host, port = server.get_host_and_port()
    yield f"http://{host}:{port}"
    server.stop()


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Store:
    if request.param == "local":
        return Store(str(tmp_path / "place"))
    monkeypatch.setenv("AWS_ENDPOINT_URL", request.getfixturevalue("s3_endpoint"))
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    boto3.client("s3").create_bucket(Bucket="bucket")
    return Store(f"s3://bucket/{tmp_path.name}")


def test_what_is_written_is_read(store: Store) -> None:
    assert not store.exists("a.json")
    store.write_bytes("a.json", b"one")
    store.write_bytes("a.json", b"two")
    assert store.exists("a.json")
    assert store.read_bytes("a.json") == b"two"


def test_an_empty_file_is_a_file(store: Store) -> None:
    store.write_bytes("empty", b"")
    assert store.read_bytes("empty") == b""


def test_a_missing_file_is_file_not_found(store: Store, tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        store.read_bytes("nothing")
    with pytest.raises(FileNotFoundError):
        store.download("nothing", tmp_path / "copy")
    assert list(tmp_path.glob("*copy*")) == []


def test_list_names_what_lies_directly_below(store: Store) -> None:
    assert store.list() == []
    store.write_bytes("b", b"")
    store.child("a").write_bytes("deep", b"")
    assert store.list() == ["a", "b"]
    assert store.child("a").list() == ["deep"]


def test_upload_and_download_copy_large_files(store: Store, tmp_path: Path) -> None:
    data = os.urandom(17_000_003)
    (tmp_path / "source").write_bytes(data)
    store.upload(tmp_path / "source", "deep/file")
    store.child("deep").download("file", tmp_path / "new" / "copy")
    assert (tmp_path / "new" / "copy").read_bytes() == data
    assert [path.name for path in (tmp_path / "new").iterdir()] == ["copy"]


def test_delete_takes_the_folder_and_nothing_beside_it(store: Store) -> None:
    store.child("old").write_bytes("deep/file", b"x")
    store.child("older").write_bytes("file", b"x")
    store.child("old").delete()
    store.child("old").delete()
    assert store.list() == ["older"]


@pytest.mark.parametrize("name", ["../x", "a/../../x", "/etc/passwd", "", "a\0b"])
def test_names_stay_below_their_folder(store: Store, name: str) -> None:
    with pytest.raises(DataError, match="leaves its folder"):
        store.write_bytes(name, b"x")
    with pytest.raises(DataError, match="leaves its folder"):
        store.child(name)


@pytest.mark.parametrize("uri", ["gs://bucket/x", "s3://", "http://host/x"])
def test_other_storage_is_refused_by_name(uri: str) -> None:
    with pytest.raises(DataError) as raised:
        Store(uri)
    assert raised.value.value == uri


@pytest.mark.parametrize("uri", ["s3://bucket", "/"])
def test_a_whole_bucket_or_disk_is_not_deleted(uri: str) -> None:
    with pytest.raises(DataError, match="refusing"):
        Store(uri).delete()


def test_only_a_local_store_has_a_local_path(tmp_path: Path) -> None:
    assert Store(str(tmp_path)).child("a", "b").local_path == tmp_path / "a" / "b"
    with pytest.raises(DataError, match="not a local folder"):
        _ = Store("s3://bucket/x").local_path


@pytest.mark.parametrize("store", ["s3"], indirect=True)
@pytest.mark.usefixtures("store")
def test_a_server_that_refuses_is_named() -> None:
    with pytest.raises(DataError, match="no such bucket: s3://no-such-bucket"):
        Store("s3://no-such-bucket").write_bytes("x", b"x")


def fail_half_way(path: Path) -> None:
    with atomic_file(path) as file:
        file.write(b"half")
        raise RuntimeError


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"old")
    with pytest.raises(RuntimeError):
        fail_half_way(tmp_path / "file")
    assert (tmp_path / "file").read_bytes() == b"old"
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_what_is_being_written_is_told_by_its_name(tmp_path: Path) -> None:
    with atomic_file(tmp_path / "file"):
        [name] = [path.name for path in tmp_path.iterdir()]
        assert is_temporary(name)
    assert not any(is_temporary(name) for name in ("file", ".file.tmp", "file.tmp", ".tmp", name.removeprefix(".")))


def test_a_local_place_that_cannot_be_written_to_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("precious")
    with pytest.raises(DataError, match=r"cannot be written to: .*file/below/x; .*Not a directory"):
        Store(str(tmp_path / "file" / "below")).write_bytes("x", b"x")
    with pytest.raises(DataError, match=r"cannot be written to: .*file;"):
        Store(str(tmp_path / "file")).delete()
    assert (tmp_path / "file").read_text() == "precious"


def test_a_lock_keeps_others_out_until_it_is_released(tmp_path: Path) -> None:
    path = tmp_path / "new" / "lock"
    with locked(path), path.open() as other, pytest.raises(BlockingIOError):
        fcntl.flock(other, fcntl.LOCK_EX | fcntl.LOCK_NB)
    with locked(path):
        pass
