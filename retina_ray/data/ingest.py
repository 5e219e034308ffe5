"""From photographs to a data set: decode, cut the fundus disc, encode, write shards; what cannot be used is listed.

`convert` turns one file's bytes into one stored image and depends on nothing else, so any process may run it. `ingest`
runs it in threads (decoding and resizing release the interpreter's lock) and writes rows in the order of the source:
the result does not depend on the number of workers. What is not here: reading tables (``sources``) and the rules of
splitting (``splits``).
"""

import csv
import hashlib
import io
from collections import Counter, deque
from collections.abc import Callable, Generator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import simplejpeg

from retina_ray.data.decode import CorruptImageError
from retina_ray.data.fundus import PREPROCESSING_VERSION, NoFundusError, prepare_bytes
from retina_ray.data.manifest import MANIFEST, SHARDS, DatasetManifest, Encoding
from retina_ray.data.schema import NO_GRADE, Task
from retina_ray.data.shard_writer import Row, ShardWriter, check_shards_folder
from retina_ray.data.sources.base import SourceRow
from retina_ray.data.splits import assign_splits, leaks
from retina_ray.data.store import Store, is_temporary
from retina_ray.data.twins import Refusal, find_twins, place_of
from retina_ray.errors import ConfigError, DataError

QUARANTINE = "quarantine.csv"
"""Lists every refused photograph beside the data set: file, line, kind, reason, what to do."""

JPEG_QUALITY = 92
_IN_FLIGHT_PER_WORKER = 4

Progress = Callable[[int, int], None]
"""Called with the photographs done and their total."""

_Item = TypeVar("_Item")
_Result = TypeVar("_Result")


@dataclass(frozen=True, slots=True)
class Converted:
    """A stored image (JPEG, or raw uint8 HWC bytes) and the SHA-256 of the file it was made from."""

    image: bytes
    sha256: str


@dataclass(frozen=True)
class IngestSummary:
    """What became of the rows: ``rows_in == rows_out + quarantined``, and ``refusals`` (by kind) add up to the last."""

    manifest: DatasetManifest
    rows_in: int
    rows_out: int
    quarantined: int
    refusals: dict[str, int]


def convert(data: bytes, *, name: str, image_size: int, encoding: Encoding) -> Converted:
    """Turn a photograph's file into a stored image.

    Args:
        data: the file.
        name: what error messages call it.
        image_size: S, pixels of a side of the square around the fundus disc.
        encoding: jpeg (quality 92, full chroma: small lesions differ from the retina mostly in colour) or raw.

    Raises:
        CorruptImageError: the file cannot be decoded.
        NoFundusError: it shows no fundus disc.
    """
    square = prepare_bytes(data, name=name, size=image_size)
    image = square.tobytes() if encoding == "raw" else simplejpeg.encode_jpeg(square, quality=JPEG_QUALITY)
    return Converted(image=image, sha256=hashlib.sha256(data).hexdigest())


def ingest(
    rows: Sequence[SourceRow],
    out: str,
    *,
    tasks: Sequence[Task],
    image_size: int,
    encoding: Encoding = "jpeg",
    fractions: tuple[float, float, float] = (0.5, 0.25, 0.25),
    seed: int = 0,
    num_workers: int = 2,
    strict: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda done, total: None,
) -> IngestSummary:
    """Make a data set of photographs.

    A photograph that occurs twice (same bytes) is stored once, with the grades of both rows; if these contradict each
    other, neither row is used. Splits are decided before any photograph is decoded, so a damaged one moves no other.

    Args:
        rows: of one or several sources.
        out: local folder or ``s3://`` prefix.
        tasks: that the data set shall have; every grade must be one of theirs.
        image_size: S, pixels of a side of the stored squares.
        encoding: of the stored images.
        fractions: of rows for train, validation and test, where the source does not prescribe the split.
        seed: of the splits.
        num_workers: threads.
        strict: raise at the first photograph that cannot be used, instead of listing it in ``quarantine.csv``.
        overwrite: replace an earlier result in ``out``.
        progress: called after each photograph.

    Raises:
        DataError: nothing is left to store, ``out`` is taken, the source's splits separate a group, or, if
            ``strict``, a photograph cannot be used.
        ConfigError: for a number of workers below 1, or fractions that do not add up to 1.
    """
    if num_workers < 1:
        raise ConfigError("the number of workers must be positive", num_workers, "use 1 or more")
    if not rows:
        raise DataError("the source has no photographs", out, "check the path and the columns")
    store = Store(out)
    _check_out(store, overwrite)
    grades, refused = find_twins(rows, num_workers)
    splits = _splits(rows, grades, tasks, fractions, seed)
    store.delete()

    def convert_row(row: SourceRow) -> Converted | Refusal:
        try:
            return convert(row.image.read_bytes(), name=str(row.image), image_size=image_size, encoding=encoding)
        except CorruptImageError as error:
            return Refusal("damaged image", error.what, error.fix)
        except NoFundusError as error:
            return Refusal("no fundus", error.what, error.fix)
        except OSError as error:
            return Refusal("unreadable file", str(error.strerror), "check the path and its permissions")

    with ShardWriter(
        out,
        tasks=tuple(tasks),
        image_size=image_size,
        encoding=encoding,
        source=", ".join(sorted({row.source for row in rows})),
        preprocessing=PREPROCESSING_VERSION,
    ) as writer:
        with closing(_in_order(convert_row, rows, num_workers)) as results:
            for index, result in enumerate(results):
                row = rows[index]
                if isinstance(result, Refusal):  # before twins: two copies of an error page have no grades to compare
                    refused[index] = result
                if strict and index in refused:
                    raise DataError(refused[index].reason, place_of(row), refused[index].fix)
                if isinstance(result, Converted) and index not in refused:
                    writer.add(_stored(row, result, grades[index], splits[index], image_size))
                progress(index + 1, len(rows))
        store.write_bytes(QUARANTINE, _quarantine_table(rows, refused))
        kinds = dict(Counter(refusal.kind for refusal in refused.values()).most_common())
        if len(refused) == len(rows):
            raise DataError("every photograph was refused", str(kinds), f"see {store.uri}/{QUARANTINE}")
        manifest = writer.close()
    assert len(rows) == manifest.rows + len(refused)
    return IngestSummary(manifest, len(rows), manifest.rows, len(refused), kinds)


def _check_out(store: Store, overwrite: bool) -> None:
    """Refuse to touch anything but a data set, and that only when told to."""
    check_shards_folder(store)
    found = store.list()
    ours = {MANIFEST, SHARDS, QUARANTINE}
    foreign = [name for name in found if name not in ours and not is_temporary(name)]
    if foreign:
        raise DataError(f"the output folder holds other files ({foreign[0]})", store.uri, "choose an empty folder")
    if set(found) - {QUARANTINE} and not overwrite:
        raise DataError("the output folder is not empty", store.uri, "choose another, or add --overwrite to replace it")


def _splits(
    rows: Sequence[SourceRow],
    grades: Sequence[dict[str, int | None]],
    tasks: Sequence[Task],
    fractions: tuple[float, float, float],
    seed: int,
) -> list[str]:
    """Return each row's split: the one its group is prescribed, else one that is dealt."""
    prescribed = [(row.group_id, row.split) for row in rows if row.split is not None]
    leaking = leaks([group for group, _ in prescribed], [split for _, split in prescribed])
    if leaking:
        raise DataError(
            f"the source puts {len(leaking)} groups into more than one split",
            ", ".join(leaking[:5]),
            "correct the split column, or leave it out to have the rows split by group",
        )
    split_of = dict(prescribed)
    free = [index for index, row in enumerate(rows) if row.group_id not in split_of]
    arrays = {
        task.name: np.array([_number(grades[index].get(task.name)) for index in free], dtype=np.int8) for task in tasks
    }
    dealt = assign_splits([rows[index].group_id for index in free], arrays, fractions=fractions, seed=seed)
    split_of |= {rows[index].group_id: str(split) for index, split in zip(free, dealt, strict=True)}
    return [split_of[row.group_id] for row in rows]


def _number(grade: int | None) -> int:
    return NO_GRADE if grade is None else grade


def _stored(row: SourceRow, converted: Converted, grades: dict[str, int | None], split: str, image_size: int) -> Row:
    return Row(
        image_id=row.image_id,
        group_id=row.group_id,
        source=row.source,
        split=split,
        image=converted.image,
        width=image_size,
        height=image_size,
        sha256=converted.sha256,
        grades=grades,
        laterality=row.laterality,
    )


def _quarantine_table(rows: Sequence[SourceRow], refused: dict[int, Refusal]) -> bytes:
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "line", "kind", "reason", "what to do"])
    for index in sorted(refused):
        row, refusal = rows[index], refused[index]
        writer.writerow([row.image, row.line, refusal.kind, refusal.reason, refusal.fix])
    return text.getvalue().encode()


def _in_order(
    function: Callable[[_Item], _Result], items: Sequence[_Item], num_workers: int
) -> Generator[_Result, None, None]:
    """Yield ``function(item)`` in the order of the items, computed in threads, few ahead of the reader."""
    pending: deque[Future[_Result]] = deque()
    with ThreadPoolExecutor(num_workers) as pool:
        try:
            for item in items:
                pending.append(pool.submit(function, item))
                if len(pending) >= _IN_FLIGHT_PER_WORKER * num_workers:
                    yield pending.popleft().result()
            while pending:
                yield pending.popleft().result()
        finally:
            for future in pending:
                future.cancel()
