"""The audit log: who had which photograph graded when, and what which model answered; each line chained to the last.

A replica writes a file of its own at each start, ``NAME.audit.jsonl``, one JSON object a line. ``hash`` is the SHA-256
of the line's bytes before it, ``previous`` the hash of the line before (in the first line, of the file's name), so that
no line can be changed, moved, inserted or dropped without breaking the chain (``serving.audit_verify`` looks). What a
chain cannot show is that its end is missing. So one process collects the heads of all chains in a chain of its own,
``NAME.heads.jsonl``. The hashes hold no secret: who may rewrite all of the files can make them agree. Against that
helps a copy of the heads logs, or of the newest one's last hash, where nobody can reach both.

A line is with the operating system when `AuditLog.append` returns: it survives the process, though not a power cut.

No line holds a picture, a file name, or anything else that a photograph's sender wrote.
"""

import json
import os
import re
import secrets
import threading
from collections.abc import Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.schema import GradeResponse

AUDIT_SUFFIX = ".audit.jsonl"
HEADS_SUFFIX = ".heads.jsonl"

_TAIL_BYTES = 1 << 16  # far more than a line has

_LINE = re.compile(
    rb'(?P<body>\{"n":(?P<n>[1-9][0-9]{0,17}),"time":".*,"previous":"(?P<previous>[0-9a-f]{64})"),'
    rb'"hash":"(?P<hash>[0-9a-f]{64})"\}\n'
)


@dataclass(frozen=True, slots=True)
class Head:
    """The end of a chain.

    Attributes:
        file: name of its file.
        n: number of its last line, from 1; 0 where it has none yet.
        hash: of its last line; of the file's name where it has none yet.
    """

    file: str
    n: int
    hash: str

    @classmethod
    def first(cls, file: str) -> "Head":
        """Return the head of a chain without lines."""
        return cls(file, 0, sha256(os.fsencode(file)).hexdigest())


@dataclass(frozen=True, slots=True)
class Line:
    """A line as it was read.

    Attributes:
        n: its number.
        previous: hash of the line before, as it says.
        hash: its own, as it says.
        body: the bytes that the hash is of.
    """

    n: int
    previous: str
    hash: str
    body: bytes

    @classmethod
    def parse(cls, line: bytes) -> "Line | None":
        """Read a line with its line break; None where it does not have a line's form."""
        match = _LINE.fullmatch(line)
        if match is None:
            return None
        return cls(int(match["n"]), match["previous"].decode(), match["hash"].decode(), match["body"])

    @property
    def is_genuine(self) -> bool:
        """Whether the hash is that of the body."""
        return sha256(self.body).hexdigest() == self.hash

    def values(self) -> Any:
        """Return what it says; None where that is no JSON, which a forger may have given a hash."""
        try:
            return json.loads(self.body + b"}")
        except (ValueError, RecursionError):
            return None


class Chain:
    """A new file of chained lines; for several threads.

    Args:
        folder: where it goes; made, for this user alone, where it is missing.
        name: the first part of the file's name, as far as it is letters and digits.
        suffix: the last part.

    Raises:
        OSError: it cannot be made.
    """

    def __init__(self, folder: str | Path, name: str, suffix: str) -> None:
        Path(folder).mkdir(mode=0o700, parents=True, exist_ok=True)
        started = datetime.now(UTC).strftime("%Y%m%dT%H%M%S.%fZ")
        file = f"{re.sub(r'[^A-Za-z0-9_-]+', '-', name)}-{started}-{secrets.token_hex(4)}{suffix}"
        self._descriptor = os.open(Path(folder, file), os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL, 0o600)
        self._head = Head.first(file)
        self._size = 0
        self._is_torn = False
        self._lock = threading.Lock()

    @property
    def head(self) -> Head:
        """Its end."""
        return self._head

    def append(self, values: Mapping[str, Any]) -> None:
        """Write a line; when this returns, it survives the process.

        Args:
            values: what it says, JSON.

        Raises:
            OSError: it could not be written; the chain is as it was.
        """
        with self._lock:
            n = self._head.n + 1
            time = datetime.now(UTC).isoformat(timespec="microseconds")
            whole = {"n": n, "time": time, **values, "previous": self._head.hash}
            body = json.dumps(whole, separators=(",", ":"), allow_nan=False).removesuffix("}").encode()
            digest = sha256(body).hexdigest()
            self._write(body + f',"hash":"{digest}"}}\n'.encode())
            self._head = Head(self._head.file, n, digest)

    def close(self) -> None:
        """Close the file; nothing can be appended from then on."""
        with self._lock:
            if self._descriptor >= 0:
                os.close(self._descriptor)
            self._descriptor = -1

    def _write(self, line: bytes) -> None:
        if self._is_torn:  # a full disk, say, left a part of a line
            os.ftruncate(self._descriptor, self._size)
        self._is_torn = True
        rest = line
        while rest:
            rest = rest[os.write(self._descriptor, rest) :]
        self._is_torn = False
        self._size += len(line)


@dataclass(frozen=True, slots=True)
class AuditEntry:
    """A request that was answered.

    Attributes:
        request: its id.
        key: id of the API key.
        image: SHA-256 of the photograph's file; None where none arrived.
        model: hash of the model's bundle; None where it came to no model.
        answer: `graded` or `refused`.
    """

    request: str
    key: str
    image: str | None
    model: str | None
    answer: Mapping[str, Any]


def graded(response: GradeResponse) -> dict[str, Any]:
    """Return what is kept of an answer: for each task what the user was told, and whether the photograph was good."""
    fields = {"grade", "probabilities", "referable", "prediction_set", "abstain"}
    tasks = {task: grade.model_dump(mode="json", include=fields) for task, grade in response.tasks.items()}
    return {"tasks": tasks, "quality": response.image.ok}


def refused(error: RefusedError) -> dict[str, Any]:
    """Return what is kept of a refusal: its kind; the rest of it may repeat what the sender wrote."""
    return {"refused": error.kind}


class AuditLog:
    """A replica's chain of answers.

    Args:
        folder: of the audit log; several replicas may share it.
        replica: name of the replica.

    Raises:
        OSError: the file cannot be made.
    """

    def __init__(self, folder: str | Path, replica: str) -> None:
        self._chain = Chain(folder, replica, AUDIT_SUFFIX)

    def append(self, entry: AuditEntry) -> None:
        """Write a line; when this returns, it survives the process, and the answer may leave.

        Raises:
            OSError: it could not be written, so that the answer must not leave; the log is as it was.
        """
        self._chain.append(
            {
                "request": entry.request,
                "key": entry.key,
                "image": entry.image,
                "model": entry.model,
                "answer": entry.answer,
            }
        )

    def head(self) -> Head:
        """Return the end of the chain."""
        return self._chain.head

    def close(self) -> None:
        """Close the file."""
        self._chain.close()


class HeadsLog:
    """The heads of all chains, as one process heard of them over time; a chain itself.

    It begins with the heads of the chains that lie in its folder, of former heads logs too, so that what an earlier
    process noted, and what nobody noted of a replica that was killed, is vouched for from then on.

    Args:
        folder: of the audit log, or another one.

    Raises:
        OSError: the file cannot be made, or the folder not be read.
    """

    def __init__(self, folder: str | Path) -> None:
        found = [_head_of(path) for suffix in (HEADS_SUFFIX, AUDIT_SUFFIX) for path in chains_in(folder, suffix)]
        self._chain = Chain(folder, "heads", HEADS_SUFFIX)
        self._noted: dict[str, Head] = {}
        for head in found:
            if head is not None:
                self.note(head)

    def note(self, head: Head) -> None:
        """Write a head down, unless it is the one that was last noted of its chain.

        Raises:
            OSError: it could not be written; the log is as it was.
        """
        if self._noted.get(head.file) == head:
            return
        self._chain.append({"file": head.file, "lines": head.n, "head": head.hash})
        self._noted[head.file] = head

    def head(self) -> Head:
        """Return the end of this chain."""
        return self._chain.head

    def close(self) -> None:
        """Close the file."""
        self._chain.close()


def chains_in(folder: str | Path, suffix: str) -> list[Path]:
    """Return the chains' files in a folder, of one name the oldest first; none where there is no folder."""
    return sorted(Path(folder).glob(f"*{suffix}"))


def _head_of(path: Path) -> Head | None:
    """Return the head of a file from its last complete line; None where that is none of ours."""
    with path.open("rb") as file:
        file.seek(max(0, path.stat().st_size - _TAIL_BYTES))
        tail = file.read()
    complete = tail[: tail.rfind(b"\n") + 1]
    if not complete and len(tail) < _TAIL_BYTES:
        return Head.first(path.name)
    line = Line.parse(complete[complete.rfind(b"\n", 0, -1) + 1 :])
    return None if line is None else Head(path.name, line.n, line.hash)
