"""An ingest that is stopped anywhere and started again ends as if it had never been stopped."""

import contextlib
import hashlib
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from retina_ray.data.conversion import Target, convert
from retina_ray.data.parts import PART_ROWS, ensure_part, findings, images, plan_parts
from retina_ray.data.shards import ShardedDataset, ShardWriter
from retina_ray.data.sources.csv_table import read_csv
from retina_ray.data.sources.files import versions
from retina_ray.data.store import Store
from retina_ray.data.workers import Work, serially
from retina_ray.errors import DataError
from tests.clinic import SIZE, made, photograph, sample, tree


class Killed(Exception):  # noqa: N818
    pass


def killed_after(number: int) -> Work:
    """Makes that many parts and no more."""

    def work(function, parts):
        for part in parts[:number]:
            yield function(part)
        raise Killed

    return work


def test_an_interrupted_ingest_goes_on_and_ends_the_same(tmp_path):
    rows = sample(tmp_path / "in", 3 * PART_ROWS + 5)
    rows[40].image.write_bytes(b"")
    whole = made(rows, tmp_path / "whole")
    out = tmp_path / "out"
    for number in (1, 3):
        with pytest.raises(Killed):
            made(rows, out, work=killed_after(number))
    first, second, third = sorted((out / "parts").glob("*.arrow"))
    second.write_bytes(second.read_bytes()[:-100])
    flipped = bytearray(third.read_bytes())
    flipped[len(flipped) // 2] ^= 1
    third.write_bytes(flipped)
    untouched = first.stat().st_mtime_ns
    made_anew: list[str] = []

    def watched(function, parts):
        for part in parts:
            before = {path.name: path.stat().st_mtime_ns for path in (out / "parts").iterdir()}
            yield function(part)
            if before.get(part.name) != (out / "parts" / part.name).stat().st_mtime_ns:
                made_anew.append(part.name)
        assert first.stat().st_mtime_ns == untouched

    assert made(rows, out, work=watched) == whole
    assert [name[:6] for name in made_anew] == ["000001", "000002", "000003"]
    assert tree(out) == tree(tmp_path / "whole")


def test_what_an_earlier_start_has_read_is_no_part_of_the_pace(tmp_path):
    rows = sample(tmp_path / "in", 2 * PART_ROWS + 5)
    with pytest.raises(Killed):
        made(rows, tmp_path / "out", work=killed_after(1))
    done: list[tuple[str, int, int]] = []
    made(rows, tmp_path / "out", progress=lambda *position: done.append(position))
    assert [position for position in done if position[0] == "checking"] == [
        ("checking", 0, PART_ROWS),
        ("checking", PART_ROWS, PART_ROWS),
    ]
    assert [count for phase, *count in done if phase == "reading"] == [
        [count, PART_ROWS + 5] for count in (0, PART_ROWS, PART_ROWS + 5)
    ]


def test_a_file_that_changed_in_between_is_read_again(tmp_path):
    rows = sample(tmp_path / "in", PART_ROWS + 2)
    with pytest.raises(Killed):
        made(rows, tmp_path / "out", work=killed_after(1))
    rows[3].image.write_bytes(photograph(999))
    made(rows, tmp_path / "out")
    made(rows, tmp_path / "whole")
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


@pytest.mark.parametrize("moment", ["before the manifest", "before the parts are deleted"])
def test_killed_at_the_end(tmp_path, monkeypatch, moment):
    rows = sample(tmp_path / "in", 8)
    whole = made(rows, tmp_path / "whole")
    delete = Store.delete

    def killed(store: Store | ShardWriter) -> None:
        if isinstance(store, ShardWriter) or store.uri.endswith("parts"):
            raise Killed
        delete(store)

    with monkeypatch.context() as patch:
        owner, method = (ShardWriter, "close") if moment == "before the manifest" else (Store, "delete")
        patch.setattr(owner, method, killed)
        with pytest.raises(Killed):
            made(rows, tmp_path / "out")
    assert (tmp_path / "out" / "parts").is_dir()
    assert (tmp_path / "out" / "dataset.json").exists() == (moment == "before the parts are deleted")
    assert made(rows, tmp_path / "out") == whole
    assert tree(tmp_path / "out") == tree(tmp_path / "whole")


def test_a_killed_process_leaves_no_workers_and_nothing_that_stops_the_next(tmp_path):
    out = tmp_path / "out"
    process = subprocess.Popen(command(tmp_path), stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: len(list(out.glob("parts/*.arrow"))) >= 2 or process.poll() is not None)
    process.kill()
    process.wait()
    wait_until(lambda: not processes_of(process.pid))
    assert not (out / "dataset.json").exists()
    listed = read_csv(tmp_path / "in" / "labels.csv", columns=dict(pair.split("=") for pair in COLUMNS.split(",")))
    assert made(listed, out) == made(listed, tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


COLUMNS = "image=image,dr=dr,group=group"


def command(folder: Path) -> list[str]:
    """Write twelve parts' photographs and return what ingests them into ``out`` with two workers."""
    table = folder / "in" / "labels.csv"
    lines = [f"{row.image.name},{row.grades['dr']},{row.group_id}" for row in sample(table.parent, 12 * PART_ROWS)]
    table.write_text("\n".join(["image,dr,group", *lines]))
    program = [sys.executable, "-c", "from retina_ray.cli.main import main; main()", "data", "ingest"]
    return [*program, str(table), str(folder / "out"), "--columns", COLUMNS, "--size", str(SIZE), "--workers", "2"]


def test_ctrl_c_is_one_line_that_says_how_to_go_on(tmp_path):
    arguments = command(tmp_path)
    with subprocess.Popen(arguments, stderr=subprocess.PIPE, text=True, start_new_session=True) as process:
        said = [next(line for line in process.stderr if "images/s" in line)]
        os.killpg(process.pid, signal.SIGINT)  # a terminal's Ctrl-C reaches the workers too
        said += process.stderr.readlines()
    assert process.returncode == 130
    assert said[-1] == "interrupted; the same command goes on\n"
    assert [line for line in said[:-1] if not line.startswith("reading: ")] == []
    wait_until(lambda: not processes_of(process.pid))
    assert not (tmp_path / "out" / "dataset.json").exists()
    assert list((tmp_path / "out" / "parts").glob("*.arrow"))


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = time.monotonic() + 60
    while not reached():
        assert time.monotonic() < deadline
        time.sleep(0.02)


def processes_of(session: int) -> list[int]:
    """The processes that still run in a session."""
    found = []
    for path in Path("/proc").glob("[0-9]*/stat"):
        with contextlib.suppress(OSError):
            fields = path.read_text().rpartition(")")[2].split()
            if int(fields[3]) == session and fields[0] != "Z":
                found.append(int(path.parent.name))
    return found


def test_a_second_ingest_into_one_folder_is_refused_while_the_first_runs(tmp_path):
    rows = sample(tmp_path / "in", 8)

    def second(function, parts):
        with pytest.raises(DataError, match="another ingest is writing there"):
            made(rows, tmp_path / "out")
        yield from serially(function, parts)

    made(rows, tmp_path / "out", work=second)
    assert len(ShardedDataset.open(str(tmp_path / "out"))) == 8


def test_what_another_process_finished_meanwhile_is_not_destroyed(tmp_path):
    rows = sample(tmp_path / "in", 8)
    made(rows[:4], tmp_path / "other")

    def overtaken(function, parts):
        yield from serially(function, parts)
        shutil.copytree(tmp_path / "other", tmp_path / "out", dirs_exist_ok=True)

    with pytest.raises(DataError, match="another process has written a data set there meanwhile"):
        made(rows, tmp_path / "out", work=overtaken)
    assert len(ShardedDataset.open(str(tmp_path / "out"))) == 4


def test_what_a_kill_leaves_of_a_manifest_stops_nobody(tmp_path):
    rows = sample(tmp_path / "in", 4)
    whole = made(rows, tmp_path / "whole")
    with pytest.raises(Killed):
        made(rows, tmp_path / "out", work=killed_after(0))
    (tmp_path / "out" / f".dataset.json.{'0' * 32}.tmp").write_text("half")
    assert made(rows, tmp_path / "out") == whole


def test_a_file_that_could_not_be_read_once_is_tried_again(tmp_path, monkeypatch):
    rows = sample(tmp_path / "in", PART_ROWS + 2)
    read = Path.read_bytes

    def forbidden(path: Path) -> bytes:
        if path.name == "eye_03.jpg":
            raise PermissionError(13, "Permission denied")
        return read(path)

    with monkeypatch.context() as patch:
        patch.setattr(Path, "read_bytes", forbidden)
        with pytest.raises(Killed):
            made(rows, tmp_path / "out", work=killed_after(1))
        assert made(rows, tmp_path / "refused").refusals == {"unreadable file": 1}
    assert made(rows, tmp_path / "out").refusals == {}


def test_a_file_that_vanishes_is_an_error_not_a_refusal(tmp_path):
    rows = sample(tmp_path / "in", 4)

    def vanishing(function, parts):
        rows[2].image.unlink()
        yield from serially(function, parts)

    with pytest.raises(DataError, match=r"does not find a file that was there: .*eye_02.jpg"):
        made(rows, tmp_path / "out", work=vanishing)


@pytest.mark.parametrize("position", range(0, 6000, 197))
def test_no_flipped_bit_of_a_part_passes(tmp_path, position):
    rows = sample(tmp_path / "in", 3)
    found = versions(file for row in rows for file in row.files)
    (part,) = plan_parts(rows, Target(SIZE, "jpeg"), Store(str(tmp_path)), found)
    ensure_part(part)
    file = tmp_path / "parts" / part.name
    sound = file.read_bytes()
    spoilt = bytearray(sound)
    spoilt[position % len(sound)] ^= 4
    file.write_bytes(spoilt)
    ensure_part(part)
    assert [finding.sha256 for finding in findings(part)] == [
        hashlib.sha256(row.image.read_bytes()).hexdigest() for row in rows
    ]
    assert [image.image for image in images(part)] == [
        convert(row.image.read_bytes(), None, name="", target=part.target).image for row in rows
    ]
