"""The first half of an ingest: photographs converted in parts, each a file that a later start finds and uses.

A part holds what became of `PART_ROWS` rows of the source, refusals included. Its name is made of what it depends on
(the files' addresses, sizes and times, and what they are turned into), so a start after a kill, or after some files
were replaced, converts just what is missing. Parts lie beside the data set that is being made and are deleted when it
is complete. What is not here: what is decided over all rows (``ingest``).
"""

import hashlib
import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt
import pyarrow as pa

from retina_ray.data.conversion import UNREADABLE, Converted, Target, convert_row
from retina_ray.data.fundus import PREPROCESSING_VERSION
from retina_ray.data.lookalikes import LOOK_BYTES
from retina_ray.data.refusals import Refusal
from retina_ray.data.sources.base import SourceRow
from retina_ray.data.sources.files import Version
from retina_ray.data.store import Store

PARTS = "parts"
"""Folder of the parts, beside the data set."""

PART_NAME = r"\d{6}-[0-9a-f]{16}\.arrow"
"""Pattern of the files' names there."""

PART_ROWS = 32
"""Rows of a part: what a kill costs each worker at most, and what it holds in memory."""

_SCHEMA = pa.schema(
    [
        pa.field("image", pa.large_binary()),
        pa.field("mask", pa.large_binary()),
        pa.field("sha256", pa.string()),
        pa.field("look", pa.binary(LOOK_BYTES)),
        pa.field("crc32", pa.uint32()),
        pa.field("kind", pa.string()),
        pa.field("reason", pa.string()),
        pa.field("fix", pa.string()),
    ]
)
"""Of a part; a row has either an image or a refusal. ``crc32`` is that of all other cells."""

_LIGHT = ("sha256", "look", "kind", "reason", "fix")


@dataclass(frozen=True, slots=True)
class Part:
    """A part to be made.

    Attributes:
        rows: of the source; none of them is refused by it.
        target: what they are turned into.
        folder: where the part shall lie, an address.
        name: of its file there.
    """

    rows: tuple[SourceRow, ...]
    target: Target
    folder: str
    name: str


@dataclass(frozen=True, slots=True)
class Finding:
    """What conversion found out about a row, without the image: a refusal, or hash and look."""

    refusal: Refusal | None
    sha256: str
    look: npt.NDArray[np.int8]


def plan_parts(rows: Sequence[SourceRow], target: Target, out: Store, version_of: Mapping[Path, Version]) -> list[Part]:
    """Divide the rows into parts, in order.

    Args:
        rows: of the source that can be used.
        target: what they are turned into.
        out: where the data set will be.
        version_of: versions of all their files.
    """
    folder = out.child(PARTS).uri
    parts = []
    for number, start in enumerate(range(0, len(rows), PART_ROWS)):
        chunk = tuple(rows[start : start + PART_ROWS])
        parts.append(Part(chunk, target, folder, f"{number:06d}-{_key(chunk, target, version_of)}.arrow"))
    return parts


def ensure_part(part: Part) -> Part:
    """Convert the rows of a part and write it, unless a sound one is there already. Runs on any worker.

    Raises:
        DataError: the storage does not answer or cannot be written to.
    """
    if not _is_sound(part):
        rows = [_cells(convert_row(row, part.target)) for row in part.rows]
        sink = pa.BufferOutputStream()
        with pa.ipc.new_file(sink, _SCHEMA) as writer:
            writer.write_batch(pa.RecordBatch.from_pylist(rows, schema=_SCHEMA))
        Store(part.folder).write_bytes(part.name, sink.getvalue().to_pybytes())
    return part


def findings(part: Part) -> Iterator[Finding]:
    """Yield what was found out about each row of a part, without reading its images where the storage allows it."""
    batch = _read(part, _LIGHT)
    for cells in batch.to_pylist():
        if cells["kind"] is not None:
            yield Finding(Refusal(cells["kind"], cells["reason"], cells["fix"]), "", np.zeros(LOOK_BYTES, np.int8))
        else:
            yield Finding(None, cells["sha256"], np.frombuffer(cells["look"], np.int8))


def images(part: Part) -> Iterator[Converted | None]:
    """Yield each row's stored image, None where it was refused."""
    for cells in _read(part).to_pylist():
        yield None if cells["kind"] is not None else _converted(cells)


def image_at(part: Part, number: int) -> Converted:
    """Return the stored image of one row of a part that was not refused."""
    return _converted(_read(part).slice(number, 1).to_pylist()[0])


def _converted(cells: dict[str, Any]) -> Converted:
    return Converted(cells["image"], cells["mask"], cells["sha256"], cells["look"])


def _is_sound(part: Part) -> bool:
    """Tell whether a part's file is there, complete, undamaged and final; reads it."""
    try:
        batch = _read(part)
        batch.validate(full=True)
    except (OSError, pa.ArrowException):
        return False
    return batch.num_rows == len(part.rows) and all(
        cells["crc32"] == _crc(cells) and cells["kind"] != UNREADABLE for cells in batch.to_pylist()
    )


def _read(part: Part, columns: Sequence[str] = ()) -> pa.RecordBatch:
    fields = [_SCHEMA.get_field_index(name) for name in columns] or None
    with Store(part.folder).open(part.name) as file:
        reader = pa.ipc.open_file(file, options=pa.ipc.IpcReadOptions(included_fields=fields))
        return reader.get_batch(0)


def _key(rows: Sequence[SourceRow], target: Target, version_of: Mapping[Path, Version]) -> str:
    """Return what tells apart parts that differ: everything that their content depends on, hashed."""
    depends = [
        [(plane, str(file), version_of[file]) for plane, file in (("", row.image), *sorted((row.masks or {}).items()))]
        + [row.masks is None]
        for row in rows
    ]
    text = json.dumps([PREPROCESSING_VERSION, target.image_size, target.encoding, depends])
    return hashlib.sha256(text.encode()).hexdigest()[:16]


def _cells(result: Converted | Refusal) -> dict[str, Any]:
    """Return a row of a part."""
    cells = {name: getattr(result, name, None) for name in _SCHEMA.names}
    return cells | {"crc32": _crc(cells)}


def _crc(cells: Mapping[str, Any]) -> int:
    crc = 0
    for name in _SCHEMA.names:
        value = cells[name]
        if name != "crc32" and value is not None:
            crc = zlib.crc32(value.encode() if isinstance(value, str) else value, crc)
    return crc
