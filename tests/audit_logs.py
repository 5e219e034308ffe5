"""Audit logs with a few lines, which the tests of the log and of its verification share."""

from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha256
from pathlib import Path
from typing import TypeVar

from retina_ray.serving.audit import AuditEntry, AuditLog, HeadsLog

Log = TypeVar("Log", AuditLog, HeadsLog)


def entry(number: int) -> AuditEntry:
    answer = {"tasks": {"dr": {"grade": number % 5, "probabilities": [0.125] * 5}}}
    return AuditEntry(f"r{number}", "clinic-a", sha256(b"%d" % number).hexdigest(), "0123abcd", answer)


def filled(folder: Path, replica: str, count: int) -> AuditLog:
    log = AuditLog(folder, replica)
    for number in range(count):
        log.append(entry(number))
    return log


@contextmanager
def closed_after(log: Log) -> Iterator[Log]:
    try:
        yield log
    finally:
        log.close()
