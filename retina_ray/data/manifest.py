"""What ``dataset.json`` says: the content of a data set, its shards and its fingerprint."""

import hashlib
import json
import zlib
from pathlib import Path
from typing import Literal

import pyarrow as pa
from pydantic import BaseModel, ConfigDict, Field

from retina_ray.data.schema import SCHEMA_VERSION, Task
from retina_ray.data.store import Store
from retina_ray.errors import DataError

MANIFEST = "dataset.json"
SHARDS = "shards"
SHARD_NAME = r"^[0-9]{5}\.arrow$"

Encoding = Literal["jpeg", "raw"]


class ShardInfo(BaseModel):
    """A shard's file name below ``shards/``, its rows, size in bytes, SHA-256, and the checksum of its labels.

    ``labels_crc32`` is that of all columns but the images and masks (`labels_crc32`), checked whenever the shard is
    opened; the images have theirs, checked whenever they are read.
    """

    model_config = ConfigDict(frozen=True, extra="forbid")
    name: str = Field(pattern=SHARD_NAME)
    rows: int = Field(gt=0)
    bytes: int = Field(gt=0)
    sha256: str = Field(pattern=r"^[0-9a-f]{64}$")
    labels_crc32: int = Field(ge=0)


class DatasetManifest(BaseModel):
    """The fields of ``dataset.json``."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    schema_version: int
    fingerprint: str
    """SHA-256 over the fields that define the content: the same content has the same one wherever it lies."""

    tasks: tuple[Task, ...]

    counts: dict[str, dict[str, list[int]]]
    """Images per split, task and grade."""

    rows: int = Field(ge=0)

    preprocessing: int
    """Version of how the photographs were cropped and resized."""

    image_size: int = Field(gt=0)
    """Side of the stored square images in pixels."""

    encoding: Encoding
    shards: tuple[ShardInfo, ...]

    source: str
    """Where the images come from, in words."""


def labels_crc32(table: pa.Table) -> int:
    """Return the CRC-32 of a shard's columns, those of images and masks left out."""
    crc = 0
    for name in sorted(set(table.column_names) - {"image", "mask"}):
        cells = table[name].cast(pa.string()).fill_null("\0").to_pylist()
        crc = zlib.crc32("\x1f".join([name, *cells]).encode(), crc)
    return crc


def fingerprint_of(
    *, tasks: tuple[Task, ...], image_size: int, encoding: str, preprocessing: int, shards: tuple[ShardInfo, ...]
) -> str:
    """Return the SHA-256 (hexadecimal) of what defines a data set's content."""
    content = {
        "schema_version": SCHEMA_VERSION,
        "tasks": [task.model_dump(mode="json") for task in tasks],
        "image_size": image_size,
        "encoding": encoding,
        "preprocessing": preprocessing,
        "shards": [shard.sha256 for shard in shards],
    }
    return hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()


def read_manifest(store: Store) -> DatasetManifest:
    """Read and check ``dataset.json``.

    Raises:
        DataError: when it is missing, damaged, of another schema version or lists no rows.
    """
    make_one = "make one with `retina-ray data ingest` or `retina-ray data synth`"
    if store.is_local and not store.local_path.is_dir():
        raise DataError("there is no such folder", store.uri, f"check the path, or {make_one}")
    try:
        text = store.read_bytes(MANIFEST)
    except FileNotFoundError:
        raise DataError(f"not a data set, it has no {MANIFEST}", store.uri, make_one) from None
    place = f"{store.uri}/{MANIFEST}"
    try:
        fields = json.loads(text)
        version = fields["schema_version"]
        if version != SCHEMA_VERSION:
            fix = f"this release reads version {SCHEMA_VERSION}: ingest the images again"
            raise DataError(f"the data set {store.uri} has another schema version", version, fix)
        manifest = DatasetManifest.model_validate(fields)
    except (ValueError, KeyError, TypeError) as error:
        raise DataError(f"{place} is damaged", str(error), "restore it or ingest the images again") from error
    if manifest.rows == 0 or manifest.rows != sum(shard.rows for shard in manifest.shards):
        raise DataError(f"{place} lists no rows, or not as many as its shards", manifest.rows, make_one)
    expected = fingerprint_of(
        tasks=manifest.tasks,
        image_size=manifest.image_size,
        encoding=manifest.encoding,
        preprocessing=manifest.preprocessing,
        shards=manifest.shards,
    )
    if manifest.fingerprint != expected:
        raise DataError(f"{place} was edited", manifest.fingerprint, f"its content has the fingerprint {expected}")
    return manifest


def sha256_of(path: Path) -> str:
    """Return the SHA-256 of a file in hexadecimal."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
