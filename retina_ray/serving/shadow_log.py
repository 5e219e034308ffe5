"""What a champion and a candidate said of the same photographs, in JSON lines: one file per process and start.

Nothing in a record tells whose photograph it is: the file's SHA-256 stands for it. A process that is killed may leave
half a record at the end of its file, which readers leave out and count. What is not here: what the records show
(``shadow_comparison``).
"""

import errno
import os
import re
import threading
import uuid
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Annotated

from pydantic import AwareDatetime, BaseModel, ConfigDict, Field, ValidationError, model_validator

from retina_ray.errors import DataError
from retina_ray.serving.schema import GradeResponse

Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]

_SUFFIX = ".shadow.jsonl"
_NOT_IN_NAMES = re.compile(r"[^\w.-]+", re.ASCII)


class _Part(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class ShadowGrade(_Part):
    """One task's answer."""

    grade: int = Field(ge=0)
    probabilities: tuple[float, ...] = Field(min_length=2)
    """Calibrated, mildest grade first."""

    @model_validator(mode="after")
    def _grade_exists(self) -> "ShadowGrade":
        if self.grade >= len(self.probabilities):
            raise ValueError(f"grade {self.grade} of {len(self.probabilities)}")
        return self


class ShadowAnswer(_Part):
    """What one model said of a photograph."""

    tasks: dict[str, ShadowGrade]
    latency_ms: float = Field(ge=0.0)
    """Of preparing the photograph and asking the model."""

    @classmethod
    def of(cls, answer: GradeResponse, *, latency_ms: float) -> "ShadowAnswer":
        """Return what is kept of an answer."""
        tasks = {
            task: ShadowGrade(grade=graded.grade, probabilities=tuple(graded.probabilities))
            for task, graded in answer.tasks.items()
        }
        return cls(tasks=tasks, latency_ms=latency_ms)


class ShadowRecord(_Part):
    """One photograph that both models were asked about."""

    time: AwareDatetime = Field(default_factory=lambda: datetime.now(UTC))
    image: Sha256
    """Of the photograph's file."""
    served_as: str
    champion: str
    """Hash of the model that answered the request."""
    candidate: str
    """Hash of the model that saw a copy."""
    champion_answer: ShadowAnswer
    candidate_answer: ShadowAnswer | None
    """Null where it failed to give one."""


class ShadowLog:
    """Appends records to a new file; may be used by several threads.

    Args:
        folder: where the files of all processes lie; made if need be.
        replica: of this process; what file names cannot hold is replaced in it.

    Raises:
        OSError: the folder cannot be written to.
    """

    def __init__(self, folder: Path, replica: str) -> None:
        folder.mkdir(parents=True, exist_ok=True)
        # A name of its own for every start: half a record can then only stand at a file's end.
        name = f"{_NOT_IN_NAMES.sub('-', replica)}-{uuid.uuid4().hex[:12]}{_SUFFIX}"
        self.path = folder / name
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        self._size = 0
        self._lock = threading.Lock()

    def append(self, record: ShadowRecord) -> None:
        """Write one record, in one piece.

        Raises:
            OSError: it cannot be written, such as on a full disk; the file is then as it was before.
        """
        line = record.model_dump_json().encode() + b"\n"
        with self._lock:
            written = os.write(self._file, line)
            if written < len(line):  # what a disk does that fills up
                os.ftruncate(self._file, self._size)
                raise OSError(errno.ENOSPC, f"only {written} of a record's {len(line)} bytes fit", str(self.path))
            self._size += len(line)

    def close(self) -> None:
        """Close the file."""
        os.close(self._file)


@dataclass(frozen=True, slots=True)
class ShadowRecords:
    """What a folder of shadow logs holds.

    Attributes:
        records: by time.
        torn: files that end in half a record.
    """

    records: list[ShadowRecord]
    torn: int


def read_shadow_logs(folder: Path) -> ShadowRecords:
    """Read the logs of all processes; those that are still being written are read as far as they are.

    Raises:
        DataError: the folder holds no shadow log, or a line that is no record.
    """
    files = sorted(folder.glob(f"*{_SUFFIX}"))
    if not files:
        raise DataError("no shadow log in the folder", str(folder), f"name one with files *{_SUFFIX}")
    records, torn = [], 0
    for file in files:
        *lines, rest = file.read_bytes().split(b"\n")
        torn += bool(rest)
        records += [_parse(line, file, number) for number, line in enumerate(lines, start=1)]
    return ShadowRecords(sorted(records, key=lambda record: record.time), torn)


def _parse(line: bytes, file: Path, number: int) -> ShadowRecord:
    try:
        return ShadowRecord.model_validate_json(line)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        where = ".".join(map(str, first["loc"]))
        what = f"no shadow record in line {number} ({f'{where}: ' if where else ''}{first['msg']})"
        raise DataError(what, str(file), "restore the file or move it out of the folder") from error
