"""One real S3 server for the session, and a bucket of its own for each test."""

import shutil
import tempfile
import uuid
from collections.abc import Iterator
from pathlib import Path

import boto3
import pytest

from retina_ray.data.store import Store
from tests.helpers import write_dataset
from tests.s3.ceph import ACCESS_KEY, SECRET_KEY, ceph, missing_programs
from tests.s3.faults import Proxy, faulty


@pytest.fixture(scope="session")
def server() -> Iterator[str]:
    """The endpoint of a real S3 server."""
    if missing := missing_programs():
        pytest.skip(f"needs an S3 server: apt-get install radosgw ceph-mon ceph-osd ceph-common (no {missing[0]})")
    folder = Path(tempfile.mkdtemp(prefix="ceph", dir="/tmp"))
    try:
        with ceph(folder) as endpoint:
            yield endpoint
    finally:
        shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture
def bucket(server: str, monkeypatch: pytest.MonkeyPatch) -> str:
    """The name of a new bucket, with the environment set for it."""
    monkeypatch.setenv("AWS_ENDPOINT_URL", server)
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", ACCESS_KEY)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", SECRET_KEY)
    monkeypatch.setenv("AWS_DEFAULT_REGION", "us-east-1")
    monkeypatch.setenv("AWS_REQUEST_CHECKSUM_CALCULATION", "when_required")
    name = f"tests-{uuid.uuid4().hex[:12]}"
    boto3.Session().client("s3").create_bucket(Bucket=name)
    return name


@pytest.fixture
def proxy(bucket: str, server: str, monkeypatch: pytest.MonkeyPatch) -> Iterator[Proxy]:
    """A proxy between the product and the server, which can be told to spoil answers."""
    with faulty(server) as running:
        monkeypatch.setenv("AWS_ENDPOINT_URL", running.endpoint)
        yield running


@pytest.fixture
def data(bucket: str, tmp_path: Path) -> str:
    """A data set, here and on S3; the address of the latter."""
    write_dataset(tmp_path / "data")
    store = Store(f"s3://{bucket}/data")
    for file in (tmp_path / "data").rglob("*.*"):
        relative = file.relative_to(tmp_path / "data")
        store.child(*relative.parent.parts).upload(file, file.name)
    return store.uri
