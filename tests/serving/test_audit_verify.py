"""Verification of the audit log: whatever is done to its files shows, and a line that a kill cut off is told apart."""

import json
import shutil
import threading
from collections.abc import Callable, Iterator
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
import typer
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_ray.cli import serve_audit
from retina_ray.errors import DataError
from retina_ray.serving.audit import AuditLog, HeadsLog
from retina_ray.serving.audit_verify import Fault, Verdict, verify
from tests.audit_logs import closed_after, entry, filled


def the_fault(verdict: Verdict) -> Fault:
    assert not verdict.ok
    [fault] = verdict.faults
    return fault


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "audit"


@pytest.fixture
def log(folder: Path) -> Iterator[Path]:
    """A log of four lines, of which a heads log saw all; the path of its file."""
    replica, heads = filled(folder, "replica-1", 4), HeadsLog(folder)
    yield folder / replica.head().file
    replica.close()
    heads.close()


# -- what shows


def test_an_untouched_log_is_good(log: Path) -> None:
    verdict = verify(log.parent)
    assert verdict.ok
    heads, replica = verdict.chains
    assert heads.head.n == 1
    assert (replica.head.file, replica.head.n, replica.noted, replica.torn) == (log.name, 4, 4, False)


def tampered_bytes(data: bytes, position: int) -> Iterator[bytes]:
    """Return the data with the byte at a position changed, made a line break, removed, or doubled."""
    before, byte, after = data[:position], data[position : position + 1], data[position + 1 :]
    for other in (bytes([byte[0] ^ 1]), b"\n", b"", byte + byte):
        if other != byte:
            yield before + other + after


@pytest.mark.parametrize("suffix", [".audit.jsonl", ".heads.jsonl"])
def test_every_single_byte_counts(folder: Path, suffix: str) -> None:
    """In the replica's log, and in the heads log, which another heads log saw."""
    with closed_after(filled(folder, "replica-1", 2)):
        HeadsLog(folder).close()
        HeadsLog(folder).close()
    path = min(folder.glob(f"*{suffix}"))  # of the heads logs the older one
    data = path.read_bytes()
    assert verify(folder).ok
    missed = []
    for position in range(len(data)):
        for changed in tampered_bytes(data, position):
            path.write_bytes(changed)
            faults = verify(folder).faults
            if path.name not in {fault.file for fault in faults}:
                missed.append((position, changed[max(0, position - 10) : position + 10]))
    assert not missed
    path.write_bytes(data)
    assert verify(folder).ok


def test_every_changed_byte_shows_without_a_heads_log(folder: Path) -> None:
    """What stays hidden then is that the end is missing: the last bytes, down to a part of a line."""
    with closed_after(filled(folder, "replica-1", 2)) as replica:
        path = folder / replica.head().file
    data = path.read_bytes()
    for position in range(len(data)):
        for changed in tampered_bytes(data, position):
            path.write_bytes(changed)
            verdict = verify(folder)
            if changed == data[:-1]:  # the last line break
                assert verdict.ok
                assert verdict.chains[0].torn
            else:
                assert not verdict.ok, (position, changed[max(0, position - 10) : position + 10])


Edit = Callable[[list[bytes]], list[bytes]]


@pytest.mark.parametrize(
    ("edit", "line", "what"),
    [
        (lambda lines: lines[1:], 1, "line number 2: lines were removed"),
        (lambda lines: [lines[0], *lines[2:]], 2, "line number 3: lines were removed"),
        (lambda lines: [lines[1], lines[0], *lines[2:]], 1, "line number 2: lines were"),
        (lambda lines: [*lines[:2], lines[3], lines[2]], 3, "line number 4: lines were"),
        (lambda lines: [*lines[:2], lines[1], *lines[2:]], 3, "line number 2: lines were"),
        (lambda lines: [*lines[:2], b"\n", *lines[2:]], 3, "not a line as the log writes it"),
        (lambda lines: [*lines[:2], b'{"grade":1}\n', *lines[2:]], 3, "not a line as the log writes it"),
        (lambda lines: [*lines[:1], lines[1].replace(b'"grade":1', b'"grade":0'), *lines[2:]], 2, "was changed"),
        (lambda lines: lines[:3], 4, "the end was cut off; a heads log saw 4 line(s)"),
        (lambda lines: [*lines[:3], lines[3][:-20]], 4, "the end was cut off; a heads log saw 4 line(s)"),
        (lambda lines: [], 1, "the end was cut off; a heads log saw 4 line(s)"),
    ],
)
def test_an_edited_file_is_named_with_the_line(log: Path, edit: Edit, line: int, what: str) -> None:
    log.write_bytes(b"".join(edit(log.read_bytes().splitlines(keepends=True))))
    fault = the_fault(verify(log.parent))
    assert (fault.file, fault.line) == (log.name, line)
    assert what in fault.what


def forged(name: str, lines: list[bytes], start: int, change: Callable[[dict[str, Any]], None]) -> list[bytes]:
    """Return the lines with those from ``start`` on changed and all hashes made to fit, as who knows the format can."""
    result = lines[:start]
    previous = json.loads(lines[start - 1])["hash"] if start else sha256(name.encode()).hexdigest()
    for line in lines[start:]:
        values = json.loads(line)
        del values["hash"]
        values["previous"] = previous
        change(values)
        body = json.dumps(values, separators=(",", ":")).removesuffix("}").encode()
        previous = sha256(body).hexdigest()
        result.append(body + f',"hash":"{previous}"}}\n'.encode())
    return result


def acquit(values: dict[str, Any]) -> None:
    values["answer"]["tasks"]["dr"]["grade"] = 0


def test_a_line_forged_with_its_hash_does_not_fit_the_next(log: Path) -> None:
    lines = log.read_bytes().splitlines(keepends=True)
    log.write_bytes(b"".join([*lines[:2], forged(log.name, lines, 2, acquit)[2], *lines[3:]]))
    fault = the_fault(verify(log.parent))
    assert (fault.file, fault.line) == (log.name, 4)
    assert "follows another one than line 3" in fault.what


@pytest.mark.parametrize("start", [0, 2, 3])
def test_a_chain_written_anew_shows_in_the_heads_log(log: Path, start: int) -> None:
    log.write_bytes(b"".join(forged(log.name, log.read_bytes().splitlines(keepends=True), start, acquit)))
    fault = the_fault(verify(log.parent))
    assert (fault.file, fault.line) == (log.name, 4)
    assert "written anew" in fault.what
    for heads in log.parent.glob("*.heads.jsonl"):
        heads.unlink()
    assert verify(log.parent).ok  # which is why they should lie elsewhere


def test_heads_are_compared_wherever_they_were_noted(folder: Path) -> None:
    """What grew on after it was rewritten shows by the older head."""
    with closed_after(AuditLog(folder, "replica-1")) as log, closed_after(HeadsLog(folder)) as heads:
        for number in range(5):
            log.append(entry(number))
            if number == 1:
                heads.note(log.head())
        path = folder / log.head().file
    path.write_bytes(b"".join(forged(path.name, path.read_bytes().splitlines(keepends=True), 1, acquit)))
    fault = the_fault(verify(folder))
    assert (fault.file, fault.line) == (path.name, 2)


def test_a_removed_or_renamed_file_shows_in_the_heads_log(log: Path) -> None:
    aside = log.rename(log.with_suffix(".away"))
    fault = the_fault(verify(log.parent))
    assert (fault.file, fault.line) == (log.name, None)
    assert "the file is missing; a heads log saw 4 line(s)" in fault.what
    renamed = aside.rename(log.with_name(f"other{log.name}"))
    faults = {fault.file: fault for fault in verify(log.parent).faults}
    assert faults.keys() == {log.name, renamed.name}
    assert (faults[renamed.name].line, "the file was renamed" in faults[renamed.name].what) == (1, True)


def test_a_replica_without_lines_may_not_vanish_either(folder: Path) -> None:
    with closed_after(AuditLog(folder, "replica-1")) as log:
        HeadsLog(folder).close()
        assert verify(folder).ok
        (folder / log.head().file).unlink()
    assert "the file is missing" in the_fault(verify(folder)).what


def test_files_of_two_replicas_cannot_be_exchanged(folder: Path) -> None:
    with closed_after(filled(folder, "a", 3)) as a, closed_after(filled(folder, "b", 3)) as b:
        first, second = folder / a.head().file, folder / b.head().file
    content = first.read_bytes()
    first.write_bytes(second.read_bytes())
    second.write_bytes(content)
    assert {(fault.file, fault.line) for fault in verify(folder).faults} == {(first.name, 1), (second.name, 1)}


def test_a_heads_log_vouches_for_those_before_it(log: Path) -> None:
    """So that a restart of the process that keeps it leaves no heads log that could vanish, but the newest."""
    [first] = log.parent.glob("*.heads.jsonl")
    HeadsLog(log.parent).close()
    assert verify(log.parent).ok
    first.unlink()
    fault = the_fault(verify(log.parent))
    assert (fault.file, fault.line) == (first.name, None)


def test_the_end_of_an_older_heads_log_cannot_be_cut_off(log: Path) -> None:
    HeadsLog(log.parent).close()
    older = min(log.parent.glob("*.heads.jsonl"))
    older.write_bytes(b"")
    fault = the_fault(verify(log.parent))
    assert (fault.file, fault.line) == (older.name, 1)
    assert "the end was cut off" in fault.what


def test_a_heads_log_begins_with_what_nobody_noted_of_the_dead(folder: Path) -> None:
    with closed_after(filled(folder, "replica-1", 4)) as replica:
        path = folder / replica.head().file
    path.write_bytes(path.read_bytes()[:-10])  # killed as it wrote the last
    HeadsLog(folder).close()
    verdict = verify(folder)
    assert verdict.ok
    assert (verdict.chains[1].noted, verdict.chains[1].torn) == (3, True)


@pytest.mark.parametrize("body", [b"1", b'"file":1', b'"file":"a","lines":-1,"head":"a"', b"[" * 100_000])
def test_a_heads_log_forged_by_somebody_clumsy_is_a_fault_and_no_crash(log: Path, body: bytes) -> None:
    path = log.with_name("heads.heads.jsonl")
    line = b'{"n":1,"time":"",%s,"previous":"%s"' % (body, sha256(path.name.encode()).hexdigest().encode())
    path.write_bytes(line + b',"hash":"%s"}\n' % sha256(line).hexdigest().encode())
    fault = the_fault(verify(log.parent))
    assert (fault.file, fault.line, fault.what) == (path.name, 1, "this is not a line of a heads log")


def test_a_heads_log_may_lie_elsewhere(folder: Path, tmp_path: Path) -> None:
    with closed_after(filled(folder, "replica-1", 2)) as log, closed_after(HeadsLog(tmp_path / "safe")) as heads:
        heads.note(log.head())
        heads.note(log.head())
        assert heads.head().n == 1  # the same is not written twice
        path = folder / log.head().file
    path.unlink()
    assert the_fault(verify(folder, tmp_path / "safe")).file == path.name


def test_a_log_in_use_is_good_at_any_moment(folder: Path) -> None:
    def serve(name: str) -> None:
        with closed_after(AuditLog(folder, name)) as log:
            for number in range(500):
                log.append(entry(number))
                heads.note(log.head())

    verdicts = []
    with closed_after(HeadsLog(folder)) as heads:
        threads = [threading.Thread(target=serve, args=(f"replica-{n}",)) for n in range(2)]
        for thread in threads:
            thread.start()
        while any(thread.is_alive() for thread in threads):
            verdicts.append(verify(folder))
        for thread in threads:
            thread.join()
    assert not [fault for verdict in verdicts for fault in verdict.faults]
    heads_log, *replicas = verify(folder).chains
    assert heads_log.head.n == 1000
    assert [chain.noted for chain in replicas] == [500, 500]


@settings(max_examples=60)
@given(st.data())
def test_no_rearrangement_passes(tmp_path_factory: pytest.TempPathFactory, data: st.DataObject) -> None:
    folder = tmp_path_factory.mktemp("audit")
    with closed_after(filled(folder, "a", 5)) as log, closed_after(HeadsLog(folder)):
        path = folder / log.head().file
    lines = path.read_bytes().splitlines(keepends=True)
    chosen = data.draw(st.lists(st.integers(0, 4), max_size=8))
    path.write_bytes(b"".join(lines[i] for i in chosen))
    assert verify(folder).ok == (chosen == [0, 1, 2, 3, 4])


# -- a process that was killed


@pytest.mark.parametrize("missing", [1, 2, 30, 200])
def test_a_torn_last_line_is_told_apart(folder: Path, missing: int) -> None:
    with closed_after(filled(folder, "replica-1", 3)) as log:
        path = folder / log.head().file
    path.write_bytes(path.read_bytes()[:-missing])
    verdict = verify(folder)
    assert verdict.ok
    assert (verdict.chains[0].head.n, verdict.chains[0].torn) == (2, True)


@pytest.mark.parametrize("end", [b"x", b'{"n":5,', b'{"n":4', b"\n", b" "])
def test_not_every_incomplete_line_is_a_torn_one(log: Path, end: bytes) -> None:
    """Four lines are there: a fifth begins with its number, and may have come as far as that."""
    log.write_bytes(log.read_bytes() + end)
    verdict = verify(log.parent)
    assert verdict.ok == (end == b'{"n":5,')
    assert verdict.ok or the_fault(verdict).line == 5


# -- the command


def run(*arguments: str) -> None:
    app = typer.Typer()
    app.add_typer(serve_audit.app, name="audit")
    app(["audit", *arguments], standalone_mode=False)


def test_the_command_lists_the_files_and_the_hash_to_keep(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    run("verify", str(log.parent))
    out = capsys.readouterr().out
    newest = verify(log.parent).chains[0].head
    assert f"{newest.file} has the hash {newest.hash} in line 1" in out
    assert "up to 4" in out
    assert "tampered" not in out


def test_the_command_fails_and_names_each_trace(capsys: pytest.CaptureFixture[str], log: Path) -> None:
    log.write_bytes(log.read_bytes().replace(b"clinic-a", b"clinic-b", 1))
    with pytest.raises(DataError, match=rf"tampered with: {log.name}, line 1: the line was changed.*; keep the files"):
        run("verify", str(log.parent))
    assert "tampered with" in capsys.readouterr().out
    with pytest.raises(DataError):
        run("verify", str(log.parent), "--json")
    told = json.loads(capsys.readouterr().out)
    assert told["ok"] is False
    assert told["faults"] == [{"file": log.name, "line": 1, "what": "the line was changed: its hash does not fit it"}]


def test_the_command_says_what_it_cannot_show(capsys: pytest.CaptureFixture[str], folder: Path) -> None:
    with closed_after(filled(folder, "replica-1", 3)) as log:
        path = folder / log.head().file
    path.write_bytes(path.read_bytes()[:-5])
    run("verify", str(folder))
    out = " ".join(capsys.readouterr().out.split())
    assert "there is no heads log" in out
    assert "last line incomplete" in out


@pytest.mark.parametrize("exists", [True, False])
def test_a_folder_without_a_log_is_no_good_log(tmp_path: Path, exists: bool) -> None:
    folder = tmp_path / "audit"
    if exists:
        folder.mkdir()
        (folder / "notes.txt").write_text("nothing")
    with pytest.raises(DataError, match="there is no audit log here"):
        run("verify", str(folder))


def test_a_log_that_cannot_be_read_is_named(log: Path) -> None:
    shutil.move(log, log.with_suffix(".away"))
    log.mkdir()
    with pytest.raises(DataError, match=r"the audit log cannot be read: .*\.audit\.jsonl; run as the user"):
        verify(log.parent)
