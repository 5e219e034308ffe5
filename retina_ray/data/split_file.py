"""Splits that somebody else has made: a CSV file that names photographs and the split of each.

Comparable results need the very splits of others. Published ones are tables with a column of file names or ids and a
column of splits; names of both columns differ, and so do the words for the splits.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from retina_ray.data.schema import SPLIT_WORDS
from retina_ray.data.sources.base import SUFFIXES, SourceRow
from retina_ray.data.sources.files import csv_lines
from retina_ray.errors import DataError

_IMAGE_COLUMNS = (
    "image",
    "image_id",
    "imagename",
    "image_name",
    "image_path",
    "filename",
    "file",
    "path",
    "name",
    "id",
)
_SPLIT_COLUMNS = ("split", "subset", "set", "fold", "partition", "usage")


def read_split_file(path: Path) -> dict[str, str]:
    """Return the split of each photograph that a file names: name -> train, validation or test.

    Args:
        path: CSV in UTF-8 with a header that has one of `_IMAGE_COLUMNS` and one of `_SPLIT_COLUMNS`, in any case.

    Raises:
        DataError: it cannot be read, lacks a column, uses another word, or gives a name two splits.
    """
    lines = list(csv_lines(path))
    header = [name.strip().lower() for name in lines[0]] if lines else []
    image, split = (_column(header, names, path) for names in (_IMAGE_COLUMNS, _SPLIT_COLUMNS))
    found: dict[str, str] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not any(line):
            continue
        name, word = (line[column].strip() if column < len(line) else "" for column in (image, split))
        if word.lower() not in SPLIT_WORDS:
            fix = f"use one of {', '.join(SPLIT_WORDS)}"
            raise DataError(f"{path}, line {number}: no such split", word or "empty cell", fix)
        if found.setdefault(name, SPLIT_WORDS[word.lower()]) != SPLIT_WORDS[word.lower()]:
            raise DataError(f"{path}, line {number}: a photograph in two splits", name, "keep one of its lines")
    return found


def prescribe(rows: Sequence[SourceRow], splits: Mapping[str, str], path: Path) -> list[SourceRow]:
    """Return the rows with the splits of a file, which replace those of the source.

    A row is looked up by its id, then by its path, from the whole of it down to the file's name, then by that name
    alone in entries with other folders; each also without the suffix. Rows that the file does not name are refused:
    whoever prescribes splits means just these photographs.

    Raises:
        DataError: it names none of the rows, or one of its names fits several photographs or several of its lines one.
    """
    names = _by_ending(splits)
    claimed: dict[str, Path] = {}
    found = []
    for row in rows:
        fitting = _fitting(names, row)
        if len({splits[name] for name in fitting}) > 1:
            fix = "write the ids of the photographs, or their paths"
            raise DataError(f"{path} has several lines that fit {row.image_id}", ", ".join(sorted(fitting)), fix)
        for name in fitting:
            if claimed.setdefault(name, row.image) != row.image:
                fix = "write the ids of the photographs, or their paths"
                raise DataError(f"{path} has a name that fits {claimed[name]} and {row.image}", name, fix)
        found.append(next((splits[name] for name in fitting), None))
    if not any(found):
        example = next(iter(splits), "nothing")
        raise DataError(f"{path} names none of the photographs", example, f"write their names, like {rows[0].image_id}")
    return [
        row
        if row.refused
        else replace(row, split=split)
        if split
        else row.refuse(f"not in the split file: {path.name}")
        for row, split in zip(rows, found, strict=True)
    ]


def unused(rows: Sequence[SourceRow], splits: Mapping[str, str]) -> list[str]:
    """Return the file's names that fit none of the rows, in its order."""
    names = _by_ending(splits)
    used = {name for row in rows for name in _fitting(names, row)}
    return [name for name in splits if name not in used]


def _fitting(names: Mapping[str, set[str]], row: SourceRow) -> set[str]:
    """Return the file's names that a row is meant by."""
    return next((names[ending] for ending in _endings(row) if ending in names), set())


def _by_ending(splits: Mapping[str, str]) -> dict[str, set[str]]:
    """Return the file's names by what a row may be looked up by: as they are, then by their last part alone."""
    names: dict[str, set[str]] = defaultdict(set)
    for name in splits:
        last = PurePosixPath(name).name
        for ending in {name, _without_suffix(name), f"*/{last}", f"*/{_without_suffix(last)}"}:
            names[ending].add(name)
    return names


def _endings(row: SourceRow) -> list[str]:
    """Return what a row is looked up by, the most telling first."""
    parts = row.image.parts
    paths = [row.image_id, *("/".join(parts[start:]) for start in range(len(parts)))]
    return [
        *paths,
        *map(_without_suffix, paths),
        f"*/{row.image.name}",
        f"*/{_without_suffix(row.image.name)}",
    ]


def _without_suffix(name: str) -> str:
    path = PurePosixPath(name)
    return str(path.with_suffix("")) if path.suffix.lower() in SUFFIXES else name


def _column(header: Sequence[str], names: Sequence[str], path: Path) -> int:
    for name in names:
        if name in header:
            return header.index(name)
    fix = f"it has {', '.join(filter(None, header)) or 'none'}"
    raise DataError(f"the split file {path} lacks a column", " or ".join(names), fix)
