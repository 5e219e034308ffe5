"""Files under a local folder or an ``s3://`` prefix, behind one small class.

Reads retry and resume by themselves. What is not here: what the files mean, and how S3 is opened (``s3``).
"""

import fcntl
import os
import re
import shutil
import uuid
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path, PurePosixPath
from typing import BinaryIO

import pyarrow as pa
import pyarrow.fs as pafs

from retina_ray.errors import DataError

_S3 = "s3://"
_CHUNK_BYTES = 16 << 20
_TEMPORARY = re.compile(r"\..+\.[0-9a-f]{32}\.tmp")


@contextmanager
def atomic_file(path: Path) -> Iterator[BinaryIO]:
    """Open a new file that appears under its name, complete and on disk, only when the block succeeds.

    Args:
        path: where it shall appear; its folder is made, an older file is replaced.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = _temporary(path)
    try:
        with temporary.open("xb") as file:
            yield file
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _temporary(path: Path) -> Path:
    return path.with_name(f".{path.name}.{uuid.uuid4().hex}.tmp")


def is_temporary(name: str) -> bool:
    """Tell whether a file's name is one that `atomic_file` gives to what is not complete."""
    return _TEMPORARY.fullmatch(name) is not None


@contextmanager
def writing(path: Path) -> Iterator[None]:
    """Turn the system's refusal to write into an error that says where, and what to do.

    Args:
        path: of the local file or folder that the block makes.
    """
    try:
        yield
    except OSError as error:
        raise _unwritable(path, error) from error


def _unwritable(path: Path, error: OSError) -> DataError:
    fix = f"choose a place that you may write to and that has room ({error.strerror or error})"
    return DataError("this place cannot be written to", str(path), fix)


@contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[None]:
    """Hold an exclusive lock on a file; the system releases it even if the process dies.

    Args:
        path: of the file; it and its folder are made, and stay.
        wait: until another process releases it.

    Raises:
        BlockingIOError: another process holds it, and ``wait`` is False.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        fcntl.flock(file, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        yield
    finally:
        os.close(file)


class Store:
    """A local folder or an S3 prefix.

    Args:
        uri: a path, or ``s3://bucket/prefix``.

    Raises:
        DataError: for any other scheme, or an S3 address without a bucket.
    """

    def __init__(self, uri: str) -> None:
        self.is_local = not uri.startswith(_S3)
        if self.is_local and "://" in uri:
            raise DataError("this storage is not supported", uri, "use a local path or s3://bucket/prefix")
        if self.is_local:
            self._root = str(Path(uri).expanduser().absolute())
            self.uri = self._root
        else:
            self._root = uri.removeprefix(_S3).strip("/")
            self.uri = _S3 + self._root
            if not self._root:
                raise DataError("the storage address names no bucket", uri, "use s3://bucket/prefix")

    def __repr__(self) -> str:
        return f"Store({self.uri!r})"

    @property
    def local_path(self) -> Path:
        """The folder itself.

        Raises:
            DataError: on S3, where there is none.
        """
        if not self.is_local:
            raise DataError("this storage is not a local folder", self.uri, "use a local path")
        return Path(self._root)

    @property
    def name(self) -> str:
        """The last part of the address."""
        return PurePosixPath(self._root).name

    def child(self, *parts: str) -> "Store":
        """Return the store of a folder below this one."""
        return Store(self.uri + "".join(f"/{_relative(part)}" for part in parts))

    def exists(self, name: str) -> bool:
        """Tell whether a file or folder of that name exists."""
        with self._explained(name):
            return bool(self._fs.get_file_info(self._path(name)).type != pafs.FileType.NotFound)

    def read_bytes(self, name: str) -> bytes:
        """Return a whole file.

        Raises:
            FileNotFoundError: when there is no such file.
            DataError: when the storage refuses or cannot be reached.
        """
        with self._explained(name), self._fs.open_input_file(self._path(name)) as file:
            return bytes(file.read())

    def create_bytes(self, name: str, data: bytes) -> bool:
        """Publish a file whole, unless there is one already; tell whether it was published.

        Of several that try at once, one succeeds.

        Raises:
            DataError: when the storage refuses or cannot be reached.
        """
        if not self.is_local:
            from retina_ray.data import s3

            bucket, _, key = self._path(name).partition("/")
            with self._explained(name):
                return s3.create(bucket, key, data)
        path = Path(self._path(name))
        complete = _temporary(path)
        with writing(path):
            try:
                with atomic_file(complete) as file:
                    file.write(data)
                path.hardlink_to(complete)
            except FileExistsError:
                return False
            finally:
                complete.unlink(missing_ok=True)
        return True

    @contextmanager
    def open(self, name: str) -> Iterator[pa.NativeFile]:
        """Open a file for reading here and there, of which a local one is mapped into memory.

        Raises:
            FileNotFoundError: when there is no such file.
            DataError: when the storage refuses or cannot be reached.
        """
        path = self._path(name)
        with self._explained(name), pa.memory_map(path) if self.is_local else self._fs.open_input_file(path) as file:
            yield file

    def write_bytes(self, name: str, data: bytes) -> None:
        """Publish a file whole or not at all: a rename locally, a single PUT on S3 (below 10 MiB).

        Raises:
            DataError: when the storage refuses or cannot be reached.
        """
        if self.is_local:
            path = Path(self._path(name))
            with writing(path), atomic_file(path) as file:
                file.write(data)
            return
        with self._explained(name), self._fs.open_output_stream(self._path(name)) as stream:
            stream.write(data)

    def explained(self, error: OSError) -> DataError:
        """Return an error in our words for one that this storage, or a disk on the way to it, gave to somebody else."""
        if self.is_local or error.errno is not None:  # a number is this machine's; pyarrow has none for S3's errors
            return _unwritable(Path(error.filename or self.uri), error)
        from retina_ray.data import s3

        return s3.explain(error, self.uri)

    def list(self) -> list[str]:
        """Return the names of the files and folders directly below, sorted; none where the folder is missing."""
        return sorted(info.base_name for info in self._below() if info.base_name)

    def versions(self) -> dict[str, tuple[int, int]]:
        """Return bytes and time of the last change (in ns) of the files directly below, by name."""
        return {info.base_name: (info.size, info.mtime_ns) for info in self._below() if info.is_file}

    def upload(self, local_file: Path, name: str) -> None:
        """Copy a local file here.

        On S3 an interrupted upload may leave a partial object, so nothing may rely on a name alone: a manifest
        written afterwards has to give the file's hash.
        """
        if self.is_local:
            with local_file.open("rb") as source, atomic_file(Path(self._path(name))) as target:
                shutil.copyfileobj(source, target, _CHUNK_BYTES)
            return
        with (
            self._explained(name),
            local_file.open("rb") as source,
            self._fs.open_output_stream(self._path(name)) as stream,
        ):
            while chunk := source.read(_CHUNK_BYTES):
                stream.write(chunk)

    def download(self, name: str, local_file: Path) -> None:
        """Copy a file from here; it appears locally only when complete. Its content is the caller's to verify.

        Raises:
            FileNotFoundError: when there is no such file.
            DataError: when the storage refuses or cannot be reached, or there is no room for the copy.
        """
        try:
            with (
                self._explained(name),
                self._fs.open_input_file(self._path(name)) as source,
                atomic_file(local_file) as target,
            ):
                while chunk := source.read(_CHUNK_BYTES):
                    target.write(chunk)
        except FileNotFoundError:
            raise
        except OSError as error:
            raise _unwritable(local_file, error) from error

    def remove(self, name: str) -> None:
        """Delete a file; nothing happens where there is none.

        Raises:
            DataError: when the storage refuses.
        """
        with writing(self.local_path) if self.is_local else self._explained(name):
            if self._fs.get_file_info(self._path(name)).type == pafs.FileType.File:
                self._fs.delete_file(self._path(name))

    def delete(self) -> None:
        """Delete this folder with all that is below it; nothing happens where it is missing.

        Raises:
            DataError: for a whole bucket or a whole disk, or when the storage refuses.
        """
        if len(PurePosixPath(self._root).parts) < 2:
            raise DataError("refusing to delete a whole bucket or disk", self.uri, "name a folder below it")
        with writing(self.local_path) if self.is_local else self._explained(""):
            if self._fs.get_file_info(self._root).type != pafs.FileType.NotFound:
                self._fs.delete_dir(self._root)

    @property
    def _fs(self) -> pafs.FileSystem:
        if self.is_local:
            return pafs.LocalFileSystem()
        from retina_ray.data import s3  # not at the top: boto3 takes long to import, and most runs need no S3

        return s3.filesystem(self._root.partition("/")[0])

    def _below(self) -> Iterable[pafs.FileInfo]:
        with self._explained(""):
            found: Iterable[pafs.FileInfo] = self._fs.get_file_info(pafs.FileSelector(self._root, allow_not_found=True))
        return found

    def _path(self, name: str) -> str:
        return f"{self._root}/{_relative(name)}"

    @contextmanager
    def _explained(self, name: str) -> Iterator[None]:
        """Turn an answer of the storage that names no file of ours into one that does."""
        try:
            yield
        except FileNotFoundError:
            raise
        except OSError as error:
            if self.is_local or error.errno is not None:  # a number is this machine's; pyarrow has none for S3's errors
                raise
            from retina_ray.data import s3

            raise s3.explain(error, f"{self.uri}/{name}".rstrip("/")) from error


def _relative(name: str) -> str:
    """Return the name if it stays below the folder it is joined to."""
    path = PurePosixPath(name)
    if not path.parts or path.is_absolute() or ".." in path.parts or "\0" in name:
        raise DataError("this name leaves its folder", name, "use a plain relative name")
    return str(path)
