"""What the audit log writes: the answers without pictures, and no line that was acknowledged is lost."""

import json
import os
import resource
import subprocess
import sys
import threading
from hashlib import sha256
from pathlib import Path

import pytest

from retina_ray.serving.audit import AuditEntry, AuditLog, Head, graded, refused
from retina_ray.serving.audit_verify import verify
from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.schema import GradeResponse, ImageQuality, ModelVersion, Overlays, TaskGrade, Timing
from tests.audit_logs import closed_after, entry, filled

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


# -- what is written


def test_a_line_says_who_asked_what_and_what_was_answered(folder: Path) -> None:
    log = AuditLog(folder, "app#deployment:replica/1")
    log.append(entry(3))
    log.append(
        AuditEntry("r4", "clinic-b", None, None, refused(RefusedError("too-large", "Mrs-Smith.jpg is too large")))
    )
    path = folder / log.head().file
    assert path.parent == folder
    assert path.name.startswith("app-deployment-replica-1-")
    first, second = (json.loads(line) for line in path.read_bytes().splitlines())
    assert list(first) == ["n", "time", "request", "key", "image", "model", "answer", "previous", "hash"]
    assert (first["n"], first["request"], first["key"], first["model"]) == (1, "r3", "clinic-a", "0123abcd")
    assert first["image"] == sha256(b"3").hexdigest()
    assert first["answer"]["tasks"]["dr"]["grade"] == 3
    assert second["answer"] == {"refused": "too-large"}
    assert second["previous"] == first["hash"]
    assert log.head() == Head(path.name, 2, second["hash"])
    assert b"Smith" not in path.read_bytes()
    log.close()


def test_nobody_else_may_read_it(folder: Path) -> None:
    with closed_after(filled(folder, "replica-1", 1)) as log:
        assert (folder / log.head().file).stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700


def test_every_start_has_a_file_of_its_own(folder: Path) -> None:
    for _ in range(5):
        filled(folder, "replica-1", 2).close()
    assert len(list(folder.iterdir())) == 5
    assert verify(folder).ok


def test_an_answer_is_kept_without_its_pictures() -> None:
    task = TaskGrade(
        grade=2,
        grade_name="moderate",
        probabilities=[0.1, 0.2, 0.7],
        confidence=0.7,
        referable=True,
        referable_probability=0.7,
        prediction_set=[1, 2],
        coverage=0.9,
        abstain=True,
    )
    response = GradeResponse(
        tasks={"dr": task},
        image=ImageQuality(ok=False, reason="blurred"),
        model=ModelVersion(name="sall", hash="0123"),
        timing=Timing(prepare_ms=1.0, network_ms=1.0),
        explanation=Overlays(method="gradcam", tasks={"dr": b"iVBORw0KGgo="}),
    )
    kept = {"grade": 2, "probabilities": [0.1, 0.2, 0.7], "referable": True, "prediction_set": [1, 2], "abstain": True}
    assert graded(response) == {"tasks": {"dr": kept}, "quality": False}


def test_threads_share_a_chain(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Every write lets the other threads go first."""
    write = os.write

    def write_late(descriptor: int, data: bytes) -> int:
        threading.Event().wait(0.0005)
        return write(descriptor, data)

    with closed_after(AuditLog(folder, "replica-1")) as log:
        monkeypatch.setattr(os, "write", write_late)
        threads = [threading.Thread(target=lambda: [log.append(entry(n)) for n in range(25)]) for _ in range(4)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        verdict = verify(folder)
        assert verdict.ok
        assert verdict.chains[0].head == log.head()
        assert log.head().n == 100


def test_nothing_is_written_after_the_end(folder: Path) -> None:
    log = filled(folder, "replica-1", 2)
    log.close()
    log.close()
    with pytest.raises(OSError, match="Bad file descriptor"):
        log.append(entry(2))


def test_a_full_disk_is_told_and_breaks_nothing(folder: Path) -> None:
    """The system takes a part of a line, as on a full disk; Python ignores the signal that comes with this limit."""
    log = filled(folder, "replica-1", 3)
    path, before = folder / log.head().file, log.head()
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (path.stat().st_size + 100, limits[1]))
    try:
        with pytest.raises(OSError, match="File too large"):
            log.append(entry(3))
        with pytest.raises(OSError, match="File too large"):
            log.append(entry(3))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert log.head() == before
    verdict = verify(folder)
    assert verdict.ok
    assert verdict.chains[0].torn
    log.append(entry(4))
    verdict = verify(folder)
    assert verdict.ok
    assert (verdict.chains[0].head.n, verdict.chains[0].torn) == (4, False)
    log.close()


# -- processes that are killed

APPEND_FOR_EVER = """
import os, sys
from retina_ray.serving.audit import AuditEntry, AuditLog

log = AuditLog(sys.argv[1], sys.argv[2])
while True:
    n = log.head().n + 1
    log.append(AuditEntry(f"r{n}", "clinic-a", "0" * 64, "0123", {"tasks": {"dr": {"probabilities": [0.2] * 2000}}}))
    os.write(1, b"%d\\n" % n)
"""


def acknowledged_by_a_killed_process(folder: Path, name: str, at_least: int) -> int:
    """Return how many lines a process has told to be written before and while it was killed."""
    command = [sys.executable, "-c", APPEND_FOR_EVER, str(folder), name]
    with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        for number in range(at_least):
            assert process.stdout.readline() == b"%d\n" % (number + 1)
        process.kill()
        return at_least + process.stdout.read().count(b"\n")


def test_a_killed_process_loses_no_acknowledged_line(folder: Path) -> None:
    """The lines are longer than a page of memory, in whose midst a kill may stop the system's copy."""
    acknowledged = {
        name: acknowledged_by_a_killed_process(folder, name, at) for name, at in (("a", 1), ("b", 40), ("c", 99))
    }
    verdict = verify(folder)
    assert verdict.ok, verdict.faults
    kept = {chain.head.file[0]: chain.head.n for chain in verdict.chains}
    assert kept.keys() == acknowledged.keys()
    for name, told in acknowledged.items():
        assert told <= kept[name] <= told + 1  # one may have been written and not told
