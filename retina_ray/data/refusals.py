"""Why a photograph is not in the data set, or is there with a warning; and how that is listed in ``quarantine.csv``."""

import csv
import io
from collections.abc import Iterable
from dataclasses import dataclass

from retina_ray.data.sources.base import SourceRow

FIXES = {
    "label without image": "put the file there, or delete the line",
    "image without label": "label it as the others are, or move the file away",
    "ungradable": "nothing: the publisher calls it so",
    "no label": "add a grade, or nothing if it has none",
    "no label of ours": "nothing, unless docs/data.md should map this label",
    "unknown label": "correct the label, or report it if the publisher uses it",
    "repeated id": "give every photograph its own id",
    "no such grade": "correct the grade, or empty the cell",
    "no such split": "correct the cell, or leave it empty",
    "no such laterality": "correct the cell, or leave it empty",
    "unreadable line": "quote commas inside cells",
    "not in the split file": "nothing, or add it there",
}
"""What to do about the kinds of refusal that sources find."""


@dataclass(frozen=True, slots=True)
class Refusal:
    """Why a photograph is not in the data set; ``kind`` is what refusals are counted by."""

    kind: str
    reason: str
    fix: str


@dataclass(frozen=True, slots=True)
class Entry:
    """A line of ``quarantine.csv``; ``stored`` tells a warning from a refusal."""

    row: SourceRow
    refusal: Refusal
    stored: bool


def refusal_of(row: SourceRow) -> Refusal | None:
    """Return why a source's row cannot be used, or None where it can."""
    if row.refused is None:
        return None
    kind = row.refused.partition(":")[0]
    if kind == "no such grade" and row.line is None:
        return Refusal(kind, row.refused, "move it into the folder of its grade, or away")
    return Refusal(kind, row.refused, FIXES.get(kind, "see docs/data.md"))


def place_of(row: SourceRow) -> str:
    """Return where a row was read, for messages."""
    return str(row.image) if row.line is None else f"line {row.line} ({row.image})"


def quarantine_table(entries: Iterable[Entry]) -> bytes:
    """Return the CSV file that lists refusals and warnings."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["file", "line", "kind", "stored", "reason", "what to do"])
    for entry in entries:
        row, refusal = entry.row, entry.refusal
        stored = "yes" if entry.stored else "no"
        writer.writerow([row.image, row.line, refusal.kind, stored, refusal.reason, refusal.fix])
    return text.getvalue().encode()
