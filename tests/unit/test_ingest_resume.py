"""An ingest that is stopped anywhere and started again ends as if it had never been stopped."""

import contextlib
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

from retina_ray.data.parts import PART_ROWS
from retina_ray.data.shards import ShardWriter
from retina_ray.data.sources.csv_table import read_csv
from retina_ray.data.store import Store
from retina_ray.data.workers import Work
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
    first, second, third = sorted((out / "parts").iterdir())
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
    rows = sample(tmp_path / "in", 12 * PART_ROWS)
    table_path = tmp_path / "in" / "labels.csv"
    lines = [f"{row.image.name},{row.grades['dr']},{row.group_id}" for row in rows]
    table_path.write_text("\n".join(["image,dr,group", *lines]))
    columns = "image=image,dr=dr,group=group"
    command = [sys.executable, "-c", "from retina_ray.cli.main import main; main()", "data", "ingest", str(table_path)]
    options = ["--columns", columns, "--size", str(SIZE), "--workers", "2"]
    out = tmp_path / "out"
    process = subprocess.Popen([*command, str(out), *options], stderr=subprocess.DEVNULL, start_new_session=True)
    wait_until(lambda: len(list(out.glob("parts/*.arrow"))) >= 2 or process.poll() is not None)
    process.kill()
    process.wait()
    wait_until(lambda: not processes_of(process.pid))
    assert not (out / "dataset.json").exists()
    listed = read_csv(table_path, columns=dict(pair.split("=") for pair in columns.split(",")))
    assert made(listed, out) == made(listed, tmp_path / "whole")
    assert tree(out) == tree(tmp_path / "whole")


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
