"""Opening a data set, local or on S3: random access to its rows without copies, shared by the processes of a node.

What is not here: decoding (``decode``, ``dali_loader``); the writer and the manifest live in ``shard_writer`` and
``manifest`` and are offered here too.

A local data set is mapped into memory where it lies, one on S3 where the node's cache keeps it (``node_cache``).
"""

import zlib
from pathlib import Path

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from retina_ray.config_runtime import RuntimeConfig
from retina_ray.data.manifest import SHARDS, DatasetManifest, ShardInfo, labels_crc32, read_manifest, sha256_of
from retina_ray.data.node_cache import Lease, NodeCache
from retina_ray.data.schema import NO_GRADE, Task, arrow_schema, grade_column
from retina_ray.data.shard_writer import Row, ShardWriter
from retina_ray.data.store import Store
from retina_ray.errors import DataError

__all__ = ["DatasetManifest", "Row", "ShardInfo", "ShardWriter", "ShardedDataset"]


class ShardedDataset:
    """A data set's rows; open it with `ShardedDataset.open`.

    Reading is thread safe. A pickle holds the address alone and opens the data set again where it is loaded.

    Attributes:
        manifest: what ``dataset.json`` says.
        image_ids, group_ids, sources, splits: (N,) str.
        grades: per task (N,) int8, -1 where there is no grade.
        lateralities: (N,) str, left or right, empty where it is not known.
        has_mask: (N,) bool.
    """

    def __init__(
        self, uri: str, cache: NodeCache, manifest: DatasetManifest, folder: Path, lease: Lease | None
    ) -> None:
        self._uri, self._cache, self._folder = uri, cache, folder
        self._lease = lease  # keeps the folder from being evicted as long as it is read
        self.manifest = manifest
        schema = arrow_schema(manifest.tasks)
        table = pa.concat_tables([_map_shard(folder / shard.name, shard, schema) for shard in manifest.shards])
        self.image_ids, self.group_ids, self.sources, self.splits = (
            table[name].to_numpy().astype(str) for name in ("image_id", "group_id", "source", "split")
        )
        self.lateralities = table["laterality"].fill_null("").to_numpy().astype(str)
        self.grades: dict[str, NDArray[np.int8]] = {
            task.name: table[grade_column(task.name)].fill_null(NO_GRADE).to_numpy() for task in manifest.tasks
        }
        for task in manifest.tasks:
            if self.grades[task.name].max() >= task.num_grades or self.grades[task.name].min() < NO_GRADE:
                raise DataError(f"{uri} holds grades that task {task.name} does not have", task.num_grades, "verify it")
        self.has_mask: NDArray[np.bool_] = table["mask"].is_valid().to_numpy()
        self._crc32: NDArray[np.uint32] = table["crc32"].to_numpy()
        self._sha256 = table["sha256"]  # stays mapped: as an array of str it would take 256 bytes per image
        self._images, self._masks = ([_Chunk(chunk) for chunk in table[name].chunks] for name in ("image", "mask"))
        self._chunk_starts = np.cumsum([0, *(len(chunk) for chunk in table["image"].chunks)])[:-1]

    @classmethod
    def open(cls, path: str, *, cache: NodeCache | None = None) -> "ShardedDataset":
        """Open a data set.

        Args:
            path: local folder or ``s3://`` prefix.
            cache: where shards from S3 are kept; None for the default configuration's.

        Raises:
            DataError: when there is no data set, it is of another schema version, or a shard is missing, of another
                size or damaged.
        """
        store = Store(path)
        manifest = read_manifest(store)
        cache = cache or NodeCache.of(RuntimeConfig())
        shards = store.child(SHARDS)
        lease = None if store.is_local else cache.fetch(shards, manifest.shards, manifest.fingerprint)
        folder = shards.local_path if lease is None else lease.folder
        for shard in manifest.shards:
            fix = f"restore it with {shard.bytes} bytes, or ingest the images again"
            if not (folder / shard.name).exists():
                raise DataError(f"shard {shard.name} is missing", shards.uri, fix)
            if (found := (folder / shard.name).stat().st_size) != shard.bytes:
                raise DataError(f"shard {shard.name} of {store.uri} is of another size", found, fix)
        return cls(store.uri, cache, manifest, folder, lease)

    def __reduce__(self) -> tuple[object, ...]:
        return _reopen, (self._uri, self._cache)

    def __len__(self) -> int:
        return len(self.image_ids)

    @property
    def tasks(self) -> tuple[Task, ...]:
        """The tasks, in the manifest's order."""
        return self.manifest.tasks

    def image(self, i: int) -> memoryview:
        """Return the stored bytes of an image, without a copy and without a check.

        Raises:
            IndexError: when there is no such row.
        """
        return self._cell(self._images, i)

    def check(self, i: int) -> bool:
        """Tell whether the stored bytes of an image are those that were written (CRC-32)."""
        return zlib.crc32(self.image(i)) == int(self._crc32[i])

    def source_sha256(self, rows: NDArray[np.int64]) -> list[str]:
        """Return the SHA-256 (hexadecimal) of the files that rows (n,) were made from."""
        return [str(digest) for digest in self._sha256.take(pa.array(rows)).to_pylist()]

    def mask(self, i: int) -> bytes | None:
        """Return the stored mask of a row (for `data.masks.decode_mask`), or None where it has none."""
        cell = self._cell(self._masks, i)
        return bytes(cell) if self.has_mask[i] else None

    def shard_of(self, i: int) -> str:
        """Return the name of the shard that holds a row."""
        ends = np.cumsum([shard.rows for shard in self.manifest.shards])
        return self.manifest.shards[int(np.searchsorted(ends, i, side="right"))].name

    def verify(self) -> list[str]:
        """Return the names of the shards whose SHA-256 is wrong; reads everything."""
        return [shard.name for shard in self.manifest.shards if sha256_of(self._folder / shard.name) != shard.sha256]

    def _cell(self, chunks: "list[_Chunk]", i: int) -> memoryview:
        if not 0 <= i < len(self):
            raise IndexError(f"row {i} of {len(self)}")
        chunk = int(np.searchsorted(self._chunk_starts, i, side="right")) - 1
        return chunks[chunk].cell(i - int(self._chunk_starts[chunk]))


class _Chunk:
    """A binary column of one record batch; Arrow's own access to a cell would copy it."""

    def __init__(self, column: pa.LargeBinaryArray) -> None:
        _, offsets, data = column.buffers()
        self._offsets = np.frombuffer(offsets, np.int64)[column.offset :]
        self._data = memoryview(data).cast("B")

    def cell(self, i: int) -> memoryview:
        return self._data[self._offsets[i] : self._offsets[i + 1]]


def _reopen(uri: str, cache: NodeCache) -> ShardedDataset:
    return ShardedDataset.open(uri, cache=cache)


def _map_shard(path: Path, shard: ShardInfo, schema: pa.Schema) -> pa.Table:
    """Map a shard into memory and check its structure, so that no offset leads out of the file."""
    try:
        table = pa.ipc.open_file(pa.memory_map(str(path))).read_all()
        table.validate(full=True)
    except (pa.ArrowException, OSError) as error:
        raise DataError(f"shard {path} is damaged", str(error), "restore it or ingest the images again") from error
    if table.schema.equals(schema) and labels_crc32(table) != shard.labels_crc32:
        raise DataError(f"shard {path} is damaged", "grades, splits or names", "restore it or ingest the images again")
    if not table.schema.equals(schema) or len(table) != shard.rows:
        what = f"shard {path} has other columns or rows than the manifest says"
        raise DataError(what, len(table), "restore it or ingest the images again")
    return table
