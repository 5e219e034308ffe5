"""Writing a data set: rows in, shards and manifest out, crash-safe.

Shards come first and the manifest last, so a folder without ``dataset.json`` is no data set.
"""

import re
import tempfile
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Self

import pyarrow as pa
import simplejpeg

from retina_ray.data.fundus import PREPROCESSING_VERSION
from retina_ray.data.manifest import (
    MANIFEST,
    SHARD_NAME,
    SHARDS,
    DatasetManifest,
    Encoding,
    ShardInfo,
    fingerprint_of,
    labels_crc32,
    sha256_of,
)
from retina_ray.data.schema import SCHEMA_VERSION, SPLITS, Task, arrow_schema, grade_column
from retina_ray.data.store import Store, atomic_file, is_temporary, writing
from retina_ray.errors import DataError

_RECORD_BATCH_BYTES = 8 << 20
_ROW_OVERHEAD_BYTES = 1024
"""More than the other columns of a row take, Arrow's padding and metadata included."""


@dataclass
class Row:
    """One image on its way into a shard."""

    image_id: str
    group_id: str
    source: str
    split: str

    image: bytes
    """A JPEG file, or raw uint8 HWC RGB."""

    width: int
    height: int

    sha256: str
    """Of the source file, in hexadecimal."""

    grades: dict[str, int | None]
    laterality: str | None = None

    mask: bytes | None = None
    """As made by `data.masks.encode_mask`."""

    @property
    def size(self) -> int:
        """Bytes it takes in a shard, generously."""
        return len(self.image) + len(self.mask or b"") + _ROW_OVERHEAD_BYTES


def check_shards_folder(store: Store) -> None:
    """Check that nothing is lost when the shards in a data set's place are deleted.

    Args:
        store: the data set's place, whether one is there or not.

    Raises:
        DataError: when it is a file, or its folder of shards holds anything but shards.
    """
    for place in (store, store.child(SHARDS)):
        if place.is_local and place.local_path.exists() and not place.local_path.is_dir():
            raise DataError("the output is a file", place.uri, "name a folder")
    names = store.child(SHARDS).list()
    foreign = [name for name in names if not (re.fullmatch(SHARD_NAME, name) or is_temporary(name))]
    if foreign:
        what = f"the output folder holds other files ({SHARDS}/{foreign[0]})"
        raise DataError(what, store.uri, "choose another folder, or move them away")


class ShardWriter:
    """Writes a data set; a ``with`` block publishes the manifest only when it succeeds.

    Holds the rows of one shard in memory. Shards that an interrupted writer left are deleted, other files never.

    Args:
        out: local folder or ``s3://`` prefix.
        tasks: in the order they shall be listed.
        image_size: side of the square images in pixels.
        encoding: of ``Row.image``.
        source: where the images come from, in words.
        shard_bytes: upper limit of a shard's size.
        preprocessing: version of how the images were cropped and resized.

    Raises:
        DataError: when ``out`` already holds a data set, its folder of shards holds other files, or it cannot be
            written to.
    """

    def __init__(
        self,
        out: str,
        *,
        tasks: tuple[Task, ...],
        image_size: int,
        encoding: Encoding,
        source: str,
        shard_bytes: int = 256 << 20,
        preprocessing: int = PREPROCESSING_VERSION,
    ) -> None:
        self._store = Store(out)
        if self._store.exists(MANIFEST):
            raise DataError("a data set is already there", self._store.uri, "choose another folder or delete it")
        check_shards_folder(self._store)
        # What an interrupted writer left would otherwise lie there unlisted for ever.
        self._store.child(SHARDS).delete()
        if self._store.is_local:  # tried at once, since the first shard may be minutes of work away
            folder = self._store.child(SHARDS).local_path
            with writing(folder):
                folder.mkdir(parents=True)
                folder.rmdir()
        self._tasks, self._image_size, self._encoding = tuple(tasks), image_size, encoding
        self._source, self._preprocessing, self._shard_bytes = source, preprocessing, shard_bytes
        self._schema = arrow_schema(self._tasks)
        self._counts = {split: {task.name: [0] * task.num_grades for task in self._tasks} for split in SPLITS}
        self._ids: set[str] = set()
        self._shards: list[ShardInfo] = []
        self._rows: list[Row] = []
        self._rows_bytes = 0
        self._manifest: DatasetManifest | None = None

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if kind is None:
            self.close()

    def add(self, row: Row) -> None:
        """Append a row.

        Raises:
            DataError: when it repeats an image id, or does not fit the data set.
        """
        self._check(row)
        if self._rows and self._rows_bytes + row.size > self._shard_bytes:
            self._write_shard()
        self._rows.append(row)
        self._rows_bytes += row.size
        self._ids.add(row.image_id)
        for task, grade in row.grades.items():
            if grade is not None:
                self._counts[row.split][task][grade] += 1

    def close(self) -> DatasetManifest:
        """Write the last shard, then the manifest; a second call returns the same manifest.

        Raises:
            DataError: when no row was added, or somebody else has written a manifest meanwhile.
        """
        if self._manifest is not None:
            return self._manifest
        if not self._ids:
            raise DataError("no image was written", self._store.uri, "check the source and the reasons of refusal")
        if self._rows:
            self._write_shard()
        shards = tuple(self._shards)
        fingerprint = fingerprint_of(
            tasks=self._tasks,
            image_size=self._image_size,
            encoding=self._encoding,
            preprocessing=self._preprocessing,
            shards=shards,
        )
        manifest = DatasetManifest(
            schema_version=SCHEMA_VERSION,
            fingerprint=fingerprint,
            tasks=self._tasks,
            counts=self._counts,
            rows=len(self._ids),
            preprocessing=self._preprocessing,
            image_size=self._image_size,
            encoding=self._encoding,
            shards=shards,
            source=self._source,
        )
        if not self._store.create_bytes(MANIFEST, manifest.model_dump_json(indent=2).encode()):
            raise DataError("another process has written a data set there", self._store.uri, "choose another folder")
        self._manifest = manifest
        return manifest

    def _check(self, row: Row) -> None:
        if row.image_id in self._ids:
            raise DataError("this image id occurs twice", row.image_id, "give every image its own id")
        if row.split not in SPLITS:
            raise DataError(f"image {row.image_id} is in an unknown split", row.split, f"use one of {SPLITS}")
        num_grades = {task.name: task.num_grades for task in self._tasks}
        for task, grade in row.grades.items():
            if grade is not None and not 0 <= grade < num_grades.get(task, 0):
                fix = f"use grades from 0 of the tasks {sorted(num_grades)}"
                raise DataError(f"image {row.image_id} has no such grade", f"{task} {grade}", fix)
        size = self._image_size
        if (row.height, row.width) != (size, size) or not self._holds(row.image):
            what = f"image {row.image_id} is not {self._encoding} of {size} x {size} pixels"
            raise DataError(what, f"{row.width} x {row.height}, {len(row.image)} bytes", "resize and encode it first")

    def _holds(self, image: bytes) -> bool:
        """Tell whether the bytes are an image of the data set's size and encoding."""
        size = self._image_size
        if self._encoding == "raw":
            return len(image) == size * size * 3
        try:
            height, width, *_ = simplejpeg.decode_jpeg_header(image)
        except ValueError:
            return False
        return bool((height, width) == (size, size))

    def _write_shard(self) -> None:
        name = f"{len(self._shards):05d}.arrow"
        with tempfile.TemporaryDirectory() as folder:
            path = (self._store.child(SHARDS).local_path if self._store.is_local else Path(folder)) / name
            with writing(path), atomic_file(path) as file, pa.ipc.new_file(file, self._schema) as writer:
                for rows in _record_batches(self._rows):
                    writer.write_batch(self._record_batch(rows))
            with pa.memory_map(str(path)) as file:
                labels = labels_crc32(pa.ipc.open_file(file).read_all())
            shard = ShardInfo(
                name=name,
                rows=len(self._rows),
                bytes=path.stat().st_size,
                sha256=sha256_of(path),
                labels_crc32=labels,
            )
            if not self._store.is_local:
                self._store.child(SHARDS).upload(path, name)
        self._shards.append(shard)
        self._rows, self._rows_bytes = [], 0

    def _record_batch(self, rows: list[Row]) -> pa.RecordBatch:
        grades = {grade_column(task.name) for task in self._tasks}
        columns: dict[str, list[Any]] = {
            name: [getattr(row, name) for row in rows] for name in self._schema.names if name not in grades | {"crc32"}
        }
        columns["crc32"] = [zlib.crc32(row.image) for row in rows]
        for task in self._tasks:
            columns[grade_column(task.name)] = [row.grades.get(task.name) for row in rows]
        return pa.RecordBatch.from_pydict(columns, schema=self._schema)


def _record_batches(rows: list[Row]) -> Iterator[list[Row]]:
    """Cut a shard's rows into batches, which bounds the memory of the copy into Arrow."""
    batch: list[Row] = []
    size = 0
    for row in rows:
        batch.append(row)
        size += row.size
        if size >= _RECORD_BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch
