"""Whether an audit log is as it was written: each chain holds together, and has all that the heads logs saw of it."""

from collections import defaultdict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from re import compile as pattern

from retina_ray.errors import DataError
from retina_ray.serving.audit import AUDIT_SUFFIX, HEADS_SUFFIX, Head, Line, chains_in

_WHOLE_RECORD = pattern(rb'"hash":"[0-9a-f]{64}"\}.')

_Notes = defaultdict[str, set[tuple[int, str]]]
"""What the heads logs saw: by file, number and hash of lines."""


@dataclass(frozen=True, slots=True)
class Fault:
    """A trace of tampering.

    Attributes:
        file: name of the file.
        line: its number, from 1; None where the whole file is meant.
        what: is wrong.
    """

    file: str
    line: int | None
    what: str

    def __str__(self) -> str:
        return f"{self.file}{'' if self.line is None else f', line {self.line}'}: {self.what}"


@dataclass(frozen=True, slots=True)
class CheckedChain:
    """A file of the log.

    Attributes:
        head: the last line up to which it holds together.
        noted: number of the last line that a heads log saw; None where none saw the file. Lines from there on could
            be cut off without a trace.
        torn: whether a part of a line follows, which a process left that was killed, or whose disk was full, as it
            wrote it (or that it writes just now). Its answer never left.
    """

    head: Head
    noted: int | None
    torn: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """What `verify` found.

    Attributes:
        chains: every file, heads logs first, of those the newest first; nothing vouches for the end of that one but
            what was written down of it elsewhere.
        faults: the first one in each file, and the files that are missing.
    """

    chains: tuple[CheckedChain, ...]
    faults: tuple[Fault, ...]

    @property
    def ok(self) -> bool:
        """Whether there is no trace of tampering."""
        return not self.faults


def verify(folder: str | Path, heads: str | Path | None = None) -> Verdict:
    """Check an audit log; it may be in use.

    Args:
        folder: of the log.
        heads: folder of the heads logs, where it is another one.

    Raises:
        DataError: there is no audit log, or it cannot be read.
    """
    checked: list[CheckedChain] = []
    faults: list[Fault] = []
    notes: _Notes = defaultdict(set)

    def check(path: Path, keep: Callable[[Line], bool]) -> None:
        chain, fault = _check(path, notes[path.name], keep)
        checked.append(chain)
        faults.extend([] if fault is None else [fault])

    try:
        # A heads log before what it may have seen: a log in use only grows, so that it then holds what was noted.
        for path in reversed(chains_in(heads or folder, HEADS_SUFFIX)):
            check(path, lambda line: _note(line, notes))
        for path in chains_in(folder, AUDIT_SUFFIX):
            check(path, lambda line: True)
    except OSError as error:
        fix = f"run as the user that serves, or mend the disk ({error.strerror})"
        raise DataError("the audit log cannot be read", str(error.filename or folder), fix) from None
    if not checked:
        raise DataError("there is no audit log here", str(folder), f"name the folder of its *{AUDIT_SUFFIX} files")
    present = {chain.head.file for chain in checked}
    for file in sorted(notes.keys() - present):
        seen = max(n for n, _ in notes[file])
        faults.append(Fault(file, None, f"the file is missing; a heads log saw {seen} line(s) of it"))
    return Verdict(tuple(checked), tuple(faults))


def _check(path: Path, notes: set[tuple[int, str]], keep: Callable[[Line], bool]) -> tuple[CheckedChain, Fault | None]:
    """Read a chain up to the first fault.

    Args:
        path: of its file.
        notes: number and hash of lines that heads logs saw.
        keep: takes each line that fits the chain; tells whether it says what it has to.
    """
    head = Head.first(path.name)
    noted = max((n for n, _ in notes), default=None)
    wanted = {n for n, _ in notes}
    hashes = {0: head.hash}
    with path.open("rb") as file:
        for raw in file:
            if not raw.endswith(b"\n") and _may_be_torn(raw, head.n + 1):
                return CheckedChain(head, noted, torn=True), _against(head, hashes, notes)
            line = Line.parse(raw)
            what = _misfit(line, head)
            if line is None or what is not None or not keep(line):
                fault = Fault(path.name, head.n + 1, what or "this is not a line of a heads log")
                return CheckedChain(head, noted, torn=False), fault
            head = Head(path.name, line.n, line.hash)
            if line.n in wanted:
                hashes[line.n] = line.hash
    return CheckedChain(head, noted, torn=False), _against(head, hashes, notes)


def _misfit(line: Line | None, head: Head) -> str | None:
    """Return why a line does not continue the chain that ends in ``head``."""
    if line is None:
        return "this is not a line as the log writes it"
    if not line.is_genuine:
        return "the line was changed: its hash does not fit it"
    if line.n != head.n + 1:
        return f"this is line number {line.n}: lines were removed, inserted or moved"
    if line.previous != head.hash and head.n == 0:
        return "the file was renamed, or its first line replaced"
    if line.previous != head.hash:
        return f"the line follows another one than line {head.n}: one of the two was replaced"
    return None


def _against(head: Head, hashes: dict[int, str], notes: set[tuple[int, str]]) -> Fault | None:
    """Compare a chain that holds together with what heads logs saw of it."""
    for n, digest in sorted(notes):
        if n > head.n:
            return Fault(head.file, head.n + 1, f"the end was cut off; a heads log saw {max(notes)[0]} line(s)")
        if hashes[n] != digest:
            return Fault(head.file, n or None, "the chain was written anew: a heads log saw another hash here")
    return None


def _may_be_torn(rest: bytes, n: int) -> bool:
    """Tell whether a file's end without a line break can be the beginning of line ``n``."""
    begin = b'{"n":%d,' % n
    return (rest.startswith(begin) or begin.startswith(rest)) and _WHOLE_RECORD.search(rest) is None


def _note(line: Line, notes: _Notes) -> bool:
    """Take down what a line of a heads log says; tell whether it says anything."""
    match line.values():
        case {"file": str(file), "lines": int(lines), "head": str(head)} if lines >= 0:
            notes[file].add((lines, head))
            return True
    return False
