"""``retina-ray serve audit``: whether the audit log is as it was written."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table

from retina_ray.cli.console import console, print_json
from retina_ray.cli.options import AsJson
from retina_ray.errors import DataError

if TYPE_CHECKING:
    from retina_ray.serving.audit_verify import Verdict

app = typer.Typer(help="Check the audit log.", no_args_is_help=True)


@app.callback()
def audit() -> None:
    """Check the audit log."""


@app.command("verify")
def verify(
    folder: Annotated[Path, typer.Argument(help="Folder of the log; of several machines', copied into one.")],
    heads: Annotated[
        Path | None, typer.Option("--heads", help="Folder of the heads logs, where it is another one.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Check that no line was changed, moved, inserted or dropped, and nothing is missing that a heads log saw."""
    from retina_ray.serving.audit_verify import verify as check

    verdict = check(folder, heads)
    if as_json:
        print_json({"ok": verdict.ok, **asdict(verdict)})
    else:
        _tell(verdict)
    if not verdict.ok:
        fix = "keep the files as they are, compare them with a copy, and find out who could write to them"
        raise DataError("the audit log was tampered with", "; ".join(map(str, verdict.faults)), fix)


def _tell(verdict: "Verdict") -> None:
    """Print a line per file, and what the check cannot show."""
    from retina_ray.serving.audit import HEADS_SUFFIX

    out = console()
    faulty = {fault.file for fault in verdict.faults}
    table = Table()
    for heading in ("file", "good lines", "seen by a heads log", "verdict"):
        table.add_column(heading, overflow="fold")
    for chain in verdict.chains:
        told = "tampered with" if chain.head.file in faulty else "good"
        if chain.torn:
            told += ", last line incomplete: the process ended as it wrote it, the answer never left"
        noted = "-" if chain.noted is None else f"up to {chain.noted}"
        table.add_row(chain.head.file, str(chain.head.n), noted, told)
    out.print(table)
    newest = verdict.chains[0].head
    if newest.file.endswith(HEADS_SUFFIX):
        told = f"write down elsewhere that {newest.file} has the hash {newest.hash} in line {newest.n}"
    else:
        told = "there is no heads log: files that are missing and ends that were cut off do not show"
    out.print(told, markup=False, soft_wrap=True)
