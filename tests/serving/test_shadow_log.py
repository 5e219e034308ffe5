"""What a shadowing candidate answers is written in whole lines, and read back by whoever compares."""

import signal
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_ray.errors import DataError
from retina_ray.serving.schema import GradeResponse, ImageQuality, ModelVersion, TaskGrade, Timing
from retina_ray.serving.shadow_log import ShadowAnswer, ShadowGrade, ShadowLog, read_shadow_logs
from tests.shadow_records import record, said, sha

pytestmark = pytest.mark.serving


def test_what_is_written_is_read(tmp_path: Path) -> None:
    log = ShadowLog(tmp_path / "shadow", "retina#Ingress#x/../y")
    written = [record(0, said(1), said(2)), record(1, said(3), None)]
    for each in written:
        log.append(each)
    log.close()
    found = read_shadow_logs(tmp_path / "shadow")
    assert (found.records, found.torn) == (written, 0)
    assert log.path.parent == tmp_path / "shadow"
    assert log.path.stat().st_mode & 0o777 == 0o600


def test_an_answer_is_kept_without_its_pictures() -> None:
    grade = TaskGrade(
        grade=1,
        grade_name="bad",
        probabilities=[0.25, 0.75],
        confidence=0.75,
        referable=True,
        referable_probability=0.75,
        prediction_set=[1],
        coverage=0.9,
        abstain=False,
    )
    answer = GradeResponse(
        tasks={"dr": grade},
        image=ImageQuality(ok=True),
        model=ModelVersion(name="m", hash="0"),
        timing=Timing(prepare_ms=1.0, network_ms=2.0),
        request_id="secret",
    )
    kept = ShadowAnswer.of(answer, latency_ms=3.0)
    assert kept == ShadowAnswer(tasks={"dr": ShadowGrade(grade=1, probabilities=(0.25, 0.75))}, latency_ms=3.0)
    assert "secret" not in kept.model_dump_json()


def test_processes_and_starts_have_files_of_their_own(tmp_path: Path) -> None:
    logs = [ShadowLog(tmp_path, "a"), ShadowLog(tmp_path, "a"), ShadowLog(tmp_path, "b")]
    for index, log in enumerate(logs):
        log.append(record(2 - index, said(0), said(0)))
        log.close()
    assert len({log.path for log in logs}) == 3
    found = read_shadow_logs(tmp_path).records
    assert [each.time for each in found] == sorted(each.time for each in found)
    assert len(found) == 3


def test_threads_do_not_mix_lines(tmp_path: Path) -> None:
    log = ShadowLog(tmp_path, "a")
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda index: log.append(record(index, said(1), said(2))), range(400)))
    log.close()
    assert {each.image for each in read_shadow_logs(tmp_path).records} == {sha(index) for index in range(400)}


@given(st.integers(0, 10_000))
def test_a_torn_last_line_is_left_out_and_counted(tmp_path_factory: pytest.TempPathFactory, cut: int) -> None:
    """Wherever the file is cut: whole lines are read, half a one is counted."""
    folder = tmp_path_factory.mktemp("torn")
    log = ShadowLog(folder, "a")
    for index in range(3):
        log.append(record(index, said(1), said(2)))
    log.close()
    data = log.path.read_bytes()
    cut %= len(data) + 1
    log.path.write_bytes(data[:cut])
    found = read_shadow_logs(folder)
    assert len(found.records) == data[:cut].count(b"\n")
    assert found.torn == (cut > 0 and data[cut - 1 : cut] != b"\n")


def test_a_line_that_is_no_record_is_named(tmp_path: Path) -> None:
    log = ShadowLog(tmp_path, "a")
    for index in range(2):
        log.append(record(index, said(1), said(2)))
    log.close()
    first, second, _ = log.path.read_bytes().split(b"\n")
    for line, message in (
        (b'{"half": ', "line 2 .*JSON"),
        (second.replace(b'"latency_ms":10.0', b'"latency_ms":-1.0', 1), "line 2 .*champion_answer.latency_ms"),
        (second.replace(b'"grade":1', b'"grade":7', 1), "line 2 .*grade 7 of 5"),
        (second.replace(sha(1).encode(), b"smith.jpg"), "line 2 .*image"),
    ):
        log.path.write_bytes(b"\n".join([first, line, first, b""]))
        with pytest.raises(DataError, match=message) as caught:
            read_shadow_logs(tmp_path)
        assert str(log.path) in str(caught.value)
        assert "smith" not in str(caught.value)


def test_a_folder_without_logs_is_named(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no shadow log in the folder"):
        read_shadow_logs(tmp_path / "nowhere")


WRITER = """
import resource, sys
from pathlib import Path
from retina_ray.serving.shadow_log import ShadowLog, ShadowRecord
log = ShadowLog(Path(sys.argv[1]), "a")
first, second, third = (ShadowRecord.model_validate_json(text) for text in sys.argv[2:])
"""
FULL = """
log.append(first)
size = log.path.stat().st_size
limits = resource.getrlimit(resource.RLIMIT_FSIZE)
resource.setrlimit(resource.RLIMIT_FSIZE, (size + 100, limits[1]))
try:
    log.append(second)
except OSError as error:
    print(error)
print(log.path.stat().st_size == size)
resource.setrlimit(resource.RLIMIT_FSIZE, limits)
log.append(third)
"""
FOREVER = """
while True:
    log.append(first)
"""


def writer(script: str, folder: Path) -> list[str]:
    texts = [record(index, said(1), said(2)).model_dump_json() for index in range(3)]
    return [sys.executable, "-c", WRITER + script, str(folder), *texts]


def test_a_full_disk_leaves_no_half_record(tmp_path: Path) -> None:
    """A limit on the file's size stands for it: the system takes a part of the line, as a disk does that fills up."""
    done = subprocess.run(writer(FULL, tmp_path), capture_output=True, text=True, check=True)
    complaint, as_before = done.stdout.splitlines()
    assert "only 100 of a record's" in complaint
    assert as_before == "True"
    found = read_shadow_logs(tmp_path)
    assert ([each.image for each in found.records], found.torn) == ([sha(0), sha(2)], 0)


def test_a_killed_process_leaves_what_it_wrote(tmp_path: Path) -> None:
    """And the log can be read while it is written."""
    process = subprocess.Popen(writer(FOREVER, tmp_path))
    deadline = time.monotonic() + 60
    while not any(tmp_path.iterdir()) or len(read_shadow_logs(tmp_path).records) < 20:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.01)
    process.send_signal(signal.SIGKILL)
    process.wait()
    found = read_shadow_logs(tmp_path)
    assert len(found.records) >= 20
    assert found.torn == 0  # a record is one write
