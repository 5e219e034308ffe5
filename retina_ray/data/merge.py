"""Several data sets made into one, so that a model can learn from some of them and be tested on another.

Rows keep their grades, splits, masks and images, bit for bit. Names are made unique: an image or patient ``x`` of a set
called ``aptos`` becomes ``aptos/x``, whether or not another set has an ``x``, so a name does not depend on what else is
merged. The result depends on neither the order of the sets nor on where they lie. What is not here: the same picture in
other bytes, which `inspect` finds in the merged set, and which source is held out (``selection``).
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from itertools import combinations

import numpy as np

from retina_ray.data.ingest import LOCK, QUARANTINE, Progress, alone_in, check_out
from retina_ray.data.manifest import MANIFEST, DatasetManifest
from retina_ray.data.parts import PARTS
from retina_ray.data.schema import NO_GRADE, Task
from retina_ray.data.selection import sources_of
from retina_ray.data.shard_writer import Row, ShardWriter
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.store import Store
from retina_ray.errors import DataError

_TOLD = 3
"""Photographs of two sets that an error names."""


@dataclass(frozen=True)
class Member:
    """A data set that is to be merged.

    Attributes:
        path: local folder or ``s3://`` prefix.
        name: replaces the ``source`` of its rows; None: they keep theirs.
    """

    path: str
    name: str | None = None


@dataclass(frozen=True)
class _Opened:
    path: str
    name: str | None
    dataset: ShardedDataset

    @property
    def sources(self) -> tuple[str, ...]:
        return tuple(sources_of(self.dataset)) if self.name is None else (self.name,)

    @property
    def prefix(self) -> str:
        """What its names begin with once merged; one for the whole set, since its sources may share patients."""
        return "+".join(self.sources)


def merge(
    members: Sequence[Member],
    out: str,
    *,
    overwrite: bool = False,
    progress: Progress = lambda phase, done, total: None,
) -> DatasetManifest:
    """Write one data set with the rows of several.

    Every shard is verified before anything is written, and every image as it is copied. The manifest is written last,
    so a merge that was killed has left no data set; it is simply started again.

    Args:
        members: two or more; their order has no effect.
        out: local folder or ``s3://`` prefix.
        overwrite: replace a data set that is there.
        progress: called as the phases, checking and writing, go on.

    Returns:
        The new data set's; its tasks are those of any of the members, grades that a member lacks are missing.

    Raises:
        DataError: members differ in what must be the same (image size, encoding, preprocessing, a task's grades), share
            a source's name or a photograph, or are damaged; ``out`` is taken or one of them.
    """
    if len(members) < 2:
        raise DataError("a merge takes two data sets or more", len(members), "name them all, then the folder to write")
    store = Store(out)
    if store.uri in {Store(member.path).uri for member in members}:
        raise DataError("a data set cannot be merged into itself", store.uri, "choose another folder to write")
    opened = [_Opened(member.path, member.name, ShardedDataset.open(member.path)) for member in members]
    opened.sort(key=lambda each: each.prefix)
    _require_same_form(opened)
    _require_own_sources(opened)
    _require_own_photographs(opened)
    tasks = _tasks(opened)
    _check_place(store, overwrite)
    _verify(opened, progress)
    with alone_in(store):
        _check_place(store, overwrite)  # another may have finished just now
        for name in (MANIFEST, QUARANTINE):
            store.remove(name)
        manifest = _write(opened, out, tasks, progress)
        store.child(PARTS).delete()  # the lock
    return manifest


def _check_place(store: Store, overwrite: bool) -> None:
    check_out(store, (), overwrite)
    if set(store.child(PARTS).list()) - {LOCK}:
        fix = "finish it with its own command, or choose another folder"
        raise DataError("an ingest has begun there", store.uri, fix)


def _require_same_form(opened: Sequence[_Opened]) -> None:
    advice = {
        "image_size": "ingest one of them again with the --size of the other",
        "encoding": "ingest one of them again with the --encoding of the other",
        "preprocessing": "ingest the older one again with this release",
    }
    first = opened[0]
    for other in opened[1:]:
        for field, fix in advice.items():
            values = getattr(first.dataset.manifest, field), getattr(other.dataset.manifest, field)
            if values[0] != values[1]:
                what = f"the data sets {first.path} and {other.path} differ in {field}"
                raise DataError(what, f"{values[0]} and {values[1]}", fix)


def _tasks(opened: Sequence[_Opened]) -> tuple[Task, ...]:
    """Return every task of any member, in the order of the members."""
    holder: dict[str, tuple[Task, _Opened]] = {}
    for each in opened:
        for task in each.dataset.tasks:
            known, other = holder.setdefault(task.name, (task, each))
            if known != task:
                what = f"the data sets {other.path} and {each.path} name the grades of task {task.name} differently"
                value = f"{', '.join(known.grades)} and {', '.join(task.grades)}"
                raise DataError(what, value, "ingest one of them again, under another task's name if they mean another")
    return tuple(task for task, _ in holder.values())


def _require_own_sources(opened: Sequence[_Opened]) -> None:
    for each in opened:
        if "/" in each.prefix:  # would make a/b of source a out of b of source a, or of source a/b
            raise DataError(f"a source of {each.path} has a / in its name", each.prefix, f"write NAME={each.path}")
    for one, other in combinations(opened, 2):
        shared = sorted(set(one.sources) & set(other.sources)) or [one.prefix] * (one.prefix == other.prefix)
        if shared:
            what = f"the data sets {one.path} and {other.path} call their source the same"
            raise DataError(what, shared[0], f"tell them apart: write NAME={other.path}")


def _require_own_photographs(opened: Sequence[_Opened]) -> None:
    """Refuse the same photograph in two members: in a test on one, it would have been learnt from the other."""
    holder: dict[str, tuple[_Opened, str]] = {}
    twice: list[str] = []
    for each in opened:
        own = dict(zip(each.dataset.source_sha256(np.arange(len(each.dataset))), each.dataset.image_ids, strict=True))
        twice += [
            f"{holder[digest][1]} of {holder[digest][0].path} is {image_id} of {each.path}"
            for digest, image_id in own.items()
            if digest in holder
        ]
        holder = {digest: (each, str(image_id)) for digest, image_id in own.items()} | holder
    if twice:
        told = ", ".join(twice[:_TOLD]) + (", ..." if len(twice) > _TOLD else "")
        fix = "leave them out of one of the sets and ingest that again"
        raise DataError(f"{len(twice)} photograph(s) lie in two of the data sets", told, fix)


def _verify(opened: Sequence[_Opened], progress: Progress) -> None:
    total, done = sum(len(each.dataset) for each in opened), 0
    progress("checking", 0, total)
    for each in opened:
        if damaged := each.dataset.verify():
            fix = "restore it or ingest the images again"
            raise DataError(f"shards of {each.path} are damaged", ", ".join(damaged), fix)
        done += len(each.dataset)
        progress("checking", done, total)


def _write(opened: Sequence[_Opened], out: str, tasks: tuple[Task, ...], progress: Progress) -> DatasetManifest:
    form = opened[0].dataset.manifest
    total = sum(len(each.dataset) for each in opened)
    progress("writing", 0, total)
    with ShardWriter(
        out,
        tasks=tasks,
        image_size=form.image_size,
        encoding=form.encoding,
        source=", ".join(sorted(source for each in opened for source in each.sources)),
        preprocessing=form.preprocessing,
    ) as writer:
        for done, row in enumerate((row for each in opened for row in _rows(each)), start=1):
            writer.add(row)
            progress("writing", done, total)
    manifest = writer.close()
    if manifest.rows != total:
        raise AssertionError(f"{total} rows became {manifest.rows}")
    return manifest


def _rows(member: _Opened) -> Iterator[Row]:
    dataset = member.dataset
    size = dataset.manifest.image_size
    digests = dataset.source_sha256(np.arange(len(dataset)))
    for i, digest in enumerate(digests):
        if not dataset.check(i):
            raise DataError(f"an image of {member.path} is damaged", dataset.image_ids[i], "restore its shard")
        yield Row(
            image_id=f"{member.prefix}/{dataset.image_ids[i]}",
            group_id=f"{member.prefix}/{dataset.group_ids[i]}",
            source=member.name or str(dataset.sources[i]),
            split=str(dataset.splits[i]),
            image=bytes(dataset.image(i)),
            width=size,
            height=size,
            sha256=digest,
            grades={task: None if grades[i] == NO_GRADE else int(grades[i]) for task, grades in dataset.grades.items()},
            laterality=str(dataset.lateralities[i]) or None,
            mask=dataset.mask(i),
        )
