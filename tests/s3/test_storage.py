"""The store against a real S3 server, sound and faulty: nothing lost, nothing wrong, nothing obscure."""

import hashlib
import os
import threading
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import boto3
import pytest
from botocore.config import Config

from retina_ray.data.store import Store
from retina_ray.errors import DataError
from tests.s3.faults import OTHER_REGION, Fault, Proxy

BIG = 24 << 20
"""Bytes; several parts of a multipart upload."""


def test_files_of_many_parts_arrive_whole(bucket: str, tmp_path: Path) -> None:
    data = os.urandom(BIG + 1)
    (tmp_path / "big").write_bytes(data)
    store = Store(f"s3://{bucket}/deep/place")
    store.upload(tmp_path / "big", "big")
    etag = boto3.Session().client("s3").head_object(Bucket=bucket, Key="deep/place/big")["ETag"]
    assert "-" in etag  # a multipart upload's
    store.download("big", tmp_path / "back")
    assert (tmp_path / "back").read_bytes() == data == store.read_bytes("big")


def test_ranges_are_read_without_the_rest(proxy: Proxy, bucket: str) -> None:
    store = Store(f"s3://{bucket}/place")
    store.write_bytes("big", bytes(range(256)) * 40_000)
    proxy.requests.clear()
    with store.open("big") as file:
        file.seek(5_000_003)
        assert file.read(3) == bytes([67, 68, 69])
    assert [method for method, _ in proxy.requests if method == "GET"] == ["GET"]


def test_listing_goes_on_beyond_a_page(bucket: str) -> None:
    client = boto3.Session().client("s3", config=Config(max_pool_connections=16))
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda number: client.put_object(Bucket=bucket, Key=f"many/{number:04d}"), range(1003)))
    assert Store(f"s3://{bucket}/many").list() == [f"{number:04d}" for number in range(1003)]
    assert len(Store(f"s3://{bucket}/many").versions()) == 1003


def test_of_many_that_create_a_file_one_does(bucket: str) -> None:
    store = Store(f"s3://{bucket}/place")
    store.list()
    won: list[int] = []

    def create(number: int) -> None:
        if store.create_bytes("dataset.json", b"by %d" % number):
            won.append(number)

    threads = [threading.Thread(target=create, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(won) == 1
    assert store.read_bytes("dataset.json") == b"by %d" % won[0]


def test_a_creation_whose_answer_is_lost_counts(proxy: Proxy, bucket: str) -> None:
    proxy.faults = [Fault("drop_after", "PUT")]
    assert Store(f"s3://{bucket}/place").create_bytes("dataset.json", b"mine")
    assert [method for method, path in proxy.requests if "dataset.json" in path].count("PUT") == 2


READ_FAULTS = [
    Fault("status", times=2, code=503),
    Fault("status", times=3, code=500),
    Fault("drop", times=2),
    Fault("truncate"),
]
WRITE_FAULTS = [Fault("status", "PUT", times=2, code=503), Fault("drop", "PUT", times=2), Fault("drop_after", "PUT")]


@pytest.mark.parametrize("fault", READ_FAULTS, ids=lambda fault: f"{fault.kind} {fault.times}")
def test_passing_faults_of_reading_are_ridden_out(proxy: Proxy, bucket: str, tmp_path: Path, fault: Fault) -> None:
    data = os.urandom(BIG)
    store = Store(f"s3://{bucket}/place")
    store.write_bytes("big", data)
    proxy.faults = [Fault(fault.kind, "GET", "big", fault.times, fault.code)]
    store.download("big", tmp_path / "back")
    assert proxy.faults[0].hits == fault.times
    assert hashlib.sha256((tmp_path / "back").read_bytes()).digest() == hashlib.sha256(data).digest()


@pytest.mark.parametrize("fault", WRITE_FAULTS, ids=lambda fault: f"{fault.kind} {fault.times}")
@pytest.mark.parametrize("size", [1000, BIG])
def test_passing_faults_of_writing_are_ridden_out(
    proxy: Proxy, bucket: str, tmp_path: Path, fault: Fault, size: int
) -> None:
    data = os.urandom(size)
    (tmp_path / "file").write_bytes(data)
    store = Store(f"s3://{bucket}/place")
    proxy.faults = [Fault(fault.kind, "PUT", "file", fault.times, fault.code)]
    store.upload(tmp_path / "file", "file")
    assert proxy.faults[0].hits == fault.times
    proxy.faults = []
    assert store.read_bytes("file") == data


@pytest.mark.long
def test_a_stalled_answer_is_asked_for_again(proxy: Proxy, bucket: str) -> None:
    data = os.urandom(BIG)
    store = Store(f"s3://{bucket}/place")
    store.write_bytes("big", data)
    proxy.faults = [Fault("stall", "GET", "big")]
    assert store.read_bytes("big") == data


@pytest.mark.long
def test_a_server_that_stays_out_of_order_is_named_in_bounded_time(proxy: Proxy, bucket: str) -> None:
    store = Store(f"s3://{bucket}/place")
    store.write_bytes("a", b"")
    proxy.faults = [Fault("status", method, times=1000) for method in ("GET", "HEAD")]
    with pytest.raises(DataError, match=rf"s3://{bucket}/place/a"):
        store.read_bytes("a")


WRONG = [
    ({"AWS_ACCESS_KEY_ID": "nobody"}, "refuses these credentials: s3://{bucket}/place.*AWS_ACCESS_KEY_ID"),
    ({"AWS_SECRET_ACCESS_KEY": "wrong"}, "refuses these credentials: s3://{bucket}/place.*AWS_SECRET_ACCESS_KEY"),
    ({"AWS_ENDPOINT_URL": "http://127.0.0.1:1"}, "cannot be reached: s3://{bucket} at http://127.0.0.1:1"),
    ({"AWS_ENDPOINT_URL": "http://nowhere.invalid"}, "cannot be reached: .*nowhere.invalid.*AWS_ENDPOINT_URL"),
]


@pytest.mark.parametrize(("environment", "message"), WRONG, ids=[next(iter(env)) for env, _ in WRONG])
def test_wrong_settings_are_named(
    bucket: str, monkeypatch: pytest.MonkeyPatch, environment: dict[str, str], message: str
) -> None:
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    store = Store(f"s3://{bucket}/place")
    for attempt in (store.list, lambda: store.read_bytes("x"), lambda: store.write_bytes("x", b"x")):
        with pytest.raises(DataError, match=message.format(bucket=bucket)):
            attempt()


def test_a_bucket_in_another_region_is_asked_there(proxy: Proxy, bucket: str) -> None:
    proxy.faults = [Fault("region", "HEAD", f"^/{bucket}$")]
    store = Store(f"s3://{bucket}/place")
    store.write_bytes("a", b"1")
    assert store.read_bytes("a") == b"1"
    assert proxy.faults[0].hits == 1
    assert all(f"/{OTHER_REGION}/s3/" in signature for signature in proxy.signatures[1:])
    assert f"/{OTHER_REGION}/" not in proxy.signatures[0]


def test_a_missing_bucket_and_missing_credentials_are_named(bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(DataError, match="no such bucket: s3://no-such-bucket"):
        Store("s3://no-such-bucket/place").list()
    for name in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
        monkeypatch.delenv(name)
    with pytest.raises(DataError, match=f"no credentials for the storage: s3://{bucket}"):
        Store(f"s3://{bucket}/place").list()
