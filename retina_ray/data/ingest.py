"""From photographs to a data set: what gets in, with which grades and in which split; what does not is listed.

Photographs are converted in parts by any number of workers (``parts``); everything that concerns more than one of them
is decided afterwards, here, from what the parts say, in the order of the source. So the result depends neither on the
number of workers nor on how often the work was interrupted. What is not here: reading tables (``sources``), converting
one photograph (``conversion``), and workers on other machines (``orchestration.ingest_driver``).
"""

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from contextlib import ExitStack, closing, contextmanager
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from retina_ray.data.conversion import Target
from retina_ray.data.division import Division, divide
from retina_ray.data.fundus import PREPROCESSING_VERSION
from retina_ray.data.lookalikes import alike
from retina_ray.data.manifest import MANIFEST, SHARDS, DatasetManifest, Encoding
from retina_ray.data.parts import PART_NAME, PARTS, Finding, Part, ensure_part, findings, image_at, images, plan_parts
from retina_ray.data.refusals import Entry, Refusal, place_of, quarantine_table, refusal_of
from retina_ray.data.schema import Task
from retina_ray.data.shard_writer import Row, ShardWriter, check_shards_folder
from retina_ray.data.sources.base import SourceRow
from retina_ray.data.sources.files import MISSING, Version, versions
from retina_ray.data.store import Store, is_temporary, locked, writing
from retina_ray.data.twins import Twins, find_twins
from retina_ray.data.workers import Work, serially
from retina_ray.errors import DataError

LOCK = "lock"
"""Beside the parts; held by the process that makes the data set."""

QUARANTINE = "quarantine.csv"
"""Lists every refused photograph beside the data set, and every warning: file, line, kind, reason, what to do."""

Progress = Callable[[str, int, int], None]
"""Called with the phase (checking, reading, comparing, writing), the photographs done in it and their total."""


@dataclass(frozen=True)
class IngestSummary:
    """What became of the rows: ``rows_in == rows_out + quarantined``, and ``refusals`` (by kind) add up to the last.

    ``warnings`` (by kind) are of rows that are stored.
    """

    manifest: DatasetManifest
    rows_in: int
    rows_out: int
    quarantined: int
    refusals: dict[str, int]
    warnings: dict[str, int]


def ingest(
    rows: Sequence[SourceRow],
    out: str,
    *,
    tasks: Sequence[Task],
    image_size: int,
    encoding: Encoding = "jpeg",
    fractions: tuple[float, float, float] = (0.5, 0.25, 0.25),
    seed: int = 0,
    work: Work = serially,
    strict: bool = False,
    overwrite: bool = False,
    progress: Progress = lambda phase, done, total: None,
) -> IngestSummary:
    """Make a data set of photographs; called again after a kill, it goes on with what is missing.

    A photograph that occurs twice (same bytes) is stored once, with the grades and the lesions of both rows; if the
    grades contradict each other, neither row is used. Photographs that show one picture are kept in one split. Rows
    that cannot be used take part in the division nevertheless, so a damaged photograph moves no other.

    Args:
        rows: of one or several sources.
        out: local folder or ``s3://`` prefix; workers on other machines must reach it, and the photographs.
        tasks: that the data set shall have; every grade must be one of theirs.
        image_size: S, pixels of a side of the stored squares.
        encoding: of the stored images.
        fractions: of rows for train, validation and test, where the source does not prescribe the split.
        seed: of the splits.
        work: how the parts are made; see `data.workers`.
        strict: raise at the first photograph that is to be listed, instead of listing it.
        overwrite: replace an earlier result in ``out``, once the new one is ready to be written.
        progress: called when a phase begins, and as it goes on; what an earlier start has read is only checked.

    Raises:
        DataError: nothing is left to store, ``out`` is taken, or, if ``strict``, a photograph is to be listed.
        ConfigError: for fractions that do not add up to 1.
    """
    if not rows:
        raise DataError("the source has no photographs", out, "check the path and the columns")
    store = Store(out)
    version_of = versions(file for row in rows for file in row.files)
    refused = _refused_beforehand(rows, version_of)
    if strict:
        _raise_first(rows, refused)
    usable = [index for index in range(len(rows)) if index not in refused]
    parts = plan_parts([rows[index] for index in usable], Target(image_size, encoding), store, version_of)
    check_out(store, parts, overwrite)
    with alone_in(store):
        check_out(store, parts, overwrite)  # another may have finished just now
        before = _manifest(store)
        if not any(rows[index].is_labelled for index in usable):
            raise _nothing_left(store, rows, refused, before)
        _convert(parts, work, progress, known=store.child(PARTS).list(), strict=strict)
        _check_unchanged(store, before)
        progress("comparing", 0, len(usable))
        verdict = _decide(rows, usable, refused, parts, tasks=tasks, fractions=fractions, seed=seed)
        progress("comparing", len(usable), len(usable))
        if strict:
            _raise_first(rows, {**verdict.division.warnings, **verdict.refused})
        _check_unchanged(store, before)
        if len(verdict.refused) == len(rows):
            raise _nothing_left(store, rows, verdict.refused, before)
        store.remove(MANIFEST)
        store.write_bytes(QUARANTINE, quarantine_table(_entries(rows, verdict.refused, verdict.division.warnings)))
        with ShardWriter(
            out,
            tasks=tuple(tasks),
            image_size=image_size,
            encoding=encoding,
            source=", ".join(sorted({row.source for row in rows})),
            preprocessing=PREPROCESSING_VERSION,
        ) as writer:
            left = len(rows) - len(verdict.refused)
            progress("writing", 0, left)
            for done, row in enumerate(_stored_rows(rows, verdict, parts, image_size), start=1):
                writer.add(row)
                progress("writing", done, left)
        manifest = writer.close()
        if len(rows) != manifest.rows + len(verdict.refused):
            raise AssertionError(f"{len(rows)} rows became {manifest.rows} and {len(verdict.refused)} refused ones")
        store.child(PARTS).delete()
    return IngestSummary(
        manifest,
        rows_in=len(rows),
        rows_out=manifest.rows,
        quarantined=len(verdict.refused),
        refusals=_by_kind(verdict.refused),
        warnings=_by_kind(verdict.division.warnings),
    )


@contextmanager
def alone_in(store: Store) -> Iterator[None]:
    """Keep other writers out of a local folder for a block; S3 has no locks, there `_check_unchanged` has to do.

    Args:
        store: the data set's place.

    Raises:
        DataError: another process makes a data set there.
    """
    if not store.is_local:
        yield
        return
    lock = store.child(PARTS).local_path / LOCK
    with writing(lock):
        lock.parent.mkdir(parents=True, exist_ok=True)
    with ExitStack() as held:
        try:
            held.enter_context(locked(lock, wait=False))
        except BlockingIOError:
            fix = "wait for it, or choose another folder"
            raise DataError("another ingest is writing there", store.uri, fix) from None
        yield


def _manifest(store: Store) -> bytes | None:
    return store.read_bytes(MANIFEST) if store.exists(MANIFEST) else None


def _check_unchanged(store: Store, before: bytes | None) -> None:
    """Refuse to destroy what another process has finished meanwhile."""
    if _manifest(store) != before:
        raise DataError("another process has written a data set there meanwhile", store.uri, "choose another folder")


def _refused_beforehand(rows: Sequence[SourceRow], version_of: Mapping[Path, Version]) -> dict[int, Refusal]:
    """Return what need not be tried: rows that their source refuses, and files that are not there."""
    refused = {}
    for index, row in enumerate(rows):
        missing = [file for file in row.files if version_of[file] == MISSING]
        if (refusal := refusal_of(row)) is not None:
            refused[index] = refusal
        elif missing:
            reason = f"label without image: there is no file {missing[0]}"
            refused[index] = Refusal("label without image", reason, "check the path")
    return refused


@dataclass(frozen=True, slots=True)
class _Verdict:
    """What becomes of the rows: those that their source can use, those that are refused after all, and why."""

    usable: Sequence[int]
    refused: dict[int, Refusal]
    twins: Twins
    division: Division


def check_out(store: Store, parts: Sequence[Part], overwrite: bool) -> None:
    """Refuse to touch anything but a data set, and a complete one only when told to.

    Args:
        store: the data set's place, whether one is there or not.
        parts: that the caller would make there.
        overwrite: a complete data set may be replaced.

    Raises:
        DataError: other files are there, or a data set.
    """
    check_shards_folder(store)
    found, begun = set(store.list()), set(store.child(PARTS).list())
    foreign = sorted(found - {MANIFEST, SHARDS, QUARANTINE, PARTS})
    foreign += [f"{PARTS}/{name}" for name in sorted(begun - {LOCK}) if not re.fullmatch(PART_NAME, name)]
    foreign = [name for name in foreign if not is_temporary(name.rpartition("/")[2])]
    if foreign:
        raise DataError(f"the output folder holds other files ({foreign[0]})", store.uri, "choose an empty folder")
    is_this_one = not begun.isdisjoint(part.name for part in parts)  # killed just before its parts were deleted
    if MANIFEST in found and not (overwrite or is_this_one):
        raise DataError("a data set is already there", store.uri, "choose another folder, or add --overwrite")


def _convert(parts: Sequence[Part], work: Work, progress: Progress, *, known: Collection[str], strict: bool) -> None:
    """Make the parts; those of known names need but a look, and their pace says nothing of the others'."""
    phases = {part.name: "checking" if part.name in known else "reading" for part in parts}
    totals: Counter[str] = Counter()
    for part in parts:
        totals[phases[part.name]] += len(part.rows)
    for phase, total in totals.items():
        progress(phase, 0, total)
    done: Counter[str] = Counter()
    with closing(work(ensure_part, parts)) as finished:
        for part in finished:
            phase = phases[part.name]
            done[phase] += len(part.rows)
            if strict:
                refused = {row: finding.refusal for row, finding in enumerate(findings(part)) if finding.refusal}
                _raise_first(part.rows, refused)
            progress(phase, done[phase], totals[phase])


def _decide(
    rows: Sequence[SourceRow],
    usable: Sequence[int],
    refused: dict[int, Refusal],
    parts: Sequence[Part],
    *,
    tasks: Sequence[Task],
    fractions: tuple[float, float, float],
    seed: int,
) -> _Verdict:
    """Compare all rows with each other, and divide them."""
    found = dict(zip(usable, (finding for part in parts for finding in findings(part)), strict=True))
    refused = refused | {index: finding.refusal for index, finding in found.items() if finding.refusal is not None}
    twins = find_twins(rows, {index: found[index].sha256 for index in usable if index not in refused})
    refused |= twins.refused
    stored = [index for index in usable if index not in refused]
    pairs = _lookalikes(stored, found)
    dealt = [index for index, row in enumerate(rows) if row.refused is None]
    division = divide(rows, dealt, twins, pairs, tasks=tasks, fractions=fractions, seed=seed, stored=stored)
    return _Verdict(usable, refused | division.refused, twins, division)


def _nothing_left(
    store: Store, rows: Sequence[SourceRow], refused: Mapping[int, Refusal], before: bytes | None
) -> DataError:
    """Return the error of an ingest that has nothing to store, and list what was refused.

    A data set that was to be replaced stays, with its own list and without the parts of this ingest.
    """
    store.child(PARTS).delete()
    if not refused:
        return DataError("no image has a grade", f"{len(rows)} rows", "check the columns or folders of the grades")
    first = min(refused)
    kinds = ", ".join(f"{count} {kind}" for kind, count in _by_kind(refused).items())
    value = f"{kinds}; the first is {place_of(rows[first])}, {refused[first].reason}"
    if before is None:
        store.write_bytes(QUARANTINE, quarantine_table(_entries(rows, refused, {})))
        fix = f"see {store.uri}/{QUARANTINE}"
    else:
        fix = "name another folder to have them listed there: the data set in this one is kept as it is"
    left = "no photograph that is left has a grade" if len(refused) < len(rows) else "every photograph was refused"
    return DataError(left, value, fix)


def _entries(rows: Sequence[SourceRow], refused: Mapping[int, Refusal], warnings: Mapping[int, Refusal]) -> list[Entry]:
    return [Entry(rows[index], refusal, stored=False) for index, refusal in sorted(refused.items())] + [
        Entry(rows[index], warning, stored=True) for index, warning in sorted(warnings.items())
    ]


def _by_kind(refused: Mapping[int, Refusal]) -> dict[str, int]:
    """Return how many there are of each kind, the most frequent first."""
    return dict(Counter(refusal.kind for refusal in refused.values()).most_common())


def _raise_first(rows: Sequence[SourceRow], refused: dict[int, Refusal]) -> None:
    if refused:
        index = min(refused)
        raise DataError(refused[index].reason, place_of(rows[index]), refused[index].fix)


def _lookalikes(stored: Sequence[int], found: dict[int, Finding]) -> list[tuple[int, int]]:
    """Return the pairs of rows that show one picture."""
    if not stored:
        return []
    return [(stored[one], stored[other]) for one, other in alike(np.stack([found[row].look for row in stored]))]


def _stored_rows(rows: Sequence[SourceRow], verdict: _Verdict, parts: Sequence[Part], image_size: int) -> Iterator[Row]:
    """Yield what is to be stored, in the order of the source; holds one part in memory."""
    places = [(part, number) for part in parts for number in range(len(part.rows))]
    place_of_row = dict(zip(verdict.usable, places, strict=True))
    converted = (image for part in parts for image in images(part))
    for index, image in zip(verdict.usable, converted, strict=True):
        if image is None or index in verdict.refused:
            continue
        mask = image.mask
        if index in verdict.twins.mask_of:
            part, number = place_of_row[verdict.twins.mask_of[index]]
            mask = image_at(part, number).mask
        row = rows[index]
        yield Row(
            image_id=row.image_id,
            group_id=row.group_id,
            source=row.source,
            split=verdict.division.splits[index],
            image=image.image,
            width=image_size,
            height=image_size,
            sha256=image.sha256,
            grades=verdict.twins.grades[index],
            laterality=row.laterality,
            mask=mask,
        )
