"""The files of a source, on a disk or on S3, behind the interface of ``pathlib``.

A path on S3 is a ``cloudpathlib.S3Path``, which lists, joins and reads like a local one; photographs are read through
`data.store`, whose reads retry and resume.
"""

import csv
import io
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import cast

from retina_ray.data.store import Store
from retina_ray.errors import DataError

Version = tuple[int, int]
"""Bytes and time of the last change (in ns) of a file; `MISSING` where there is none."""

MISSING: Version = (-1, -1)


def source_path(address: str) -> Path:
    """Return the path of a source.

    Args:
        address: a local path, or ``s3://bucket/key``.

    Raises:
        DataError: the address is of another kind, or its storage does not answer.
    """
    if "://" not in address:
        return Path(address).expanduser().absolute()  # workers of a cluster have other working folders
    from cloudpathlib import S3Client, S3Path  # not at the top: it imports boto3, which takes long

    from retina_ray.data.s3 import session

    Store(address).list()  # raises what is wrong with the bucket, the credentials or the endpoint, in our words
    return cast(Path, S3Path(address, client=S3Client(boto3_session=session())))


def read_file(path: Path) -> bytes:
    """Return a file's bytes.

    Raises:
        FileNotFoundError: there is none.
        OSError: it cannot be read.
        DataError: the storage does not answer.
    """
    if isinstance(path, Path):
        return path.read_bytes()
    return Store(str(path.parent)).read_bytes(path.name)


def read_text(path: Path) -> str:
    """Return a table's text; UTF-8, with or without a byte order mark.

    Raises:
        DataError: it cannot be read, or is no UTF-8.
    """
    try:
        return read_file(path).decode("utf-8-sig")
    except OSError as error:
        raise DataError("the table cannot be read", f"{path} ({error.strerror or error})", "check the path") from error
    except UnicodeDecodeError as error:
        raise DataError("the table is no CSV in UTF-8", f"{path} ({error})", "download or export it again") from error


def csv_lines(path: Path, *, delimiter: str = ",") -> Iterator[list[str]]:
    """Yield the lines of a table, each as its cells.

    Raises:
        DataError: it cannot be read, or is no CSV in UTF-8.
    """
    lines = csv.reader(io.StringIO(read_text(path), newline=""), delimiter=delimiter, strict=True)
    try:
        yield from lines
    except csv.Error as error:
        raise DataError("the table is no CSV in UTF-8", f"{path} ({error})", "download or export it again") from error


def files_in(folder: Path) -> list[Path]:
    """Return the files directly in a folder, sorted; one on S3 is listed at once."""
    if isinstance(folder, Path):
        return sorted(path for path in folder.iterdir() if path.is_file())
    return [folder / name for name in sorted(Store(str(folder)).versions())]


def versions(paths: Iterable[Path]) -> dict[Path, Version]:
    """Return the versions of files; a folder on S3 is listed once, whatever the number of its files."""
    found: dict[Path, Version] = {}
    folders: dict[Path, dict[str, Version]] = {}
    for path in paths:
        if isinstance(path, Path):
            found[path] = _local_version(path)
        else:
            if path.parent not in folders:
                folders[path.parent] = Store(str(path.parent)).versions()
            found[path] = folders[path.parent].get(path.name, MISSING)
    return found


def _local_version(path: Path) -> Version:
    try:
        status = path.stat()
    except OSError:
        return MISSING
    return status.st_size, status.st_mtime_ns
