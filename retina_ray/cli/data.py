"""``retina-ray data``: make, convert and look at data sets."""

import os
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from retina_ray.cli.console import console, counting, counting_phases, error_console, print_json
from retina_ray.cli.data_merge import merge
from retina_ray.cli.options import AsJson
from retina_ray.data.schema import KNOWN_TASKS, Task
from retina_ray.errors import ConfigError

if TYPE_CHECKING:
    from retina_ray.data.sources.base import SourceRow
    from retina_ray.data.workers import Work

PAPER_FRACTIONS = (0.5, 0.25, 0.25)
"""Of SALL, section IV-A."""

app = typer.Typer(help="Make, convert, merge and inspect data sets.", no_args_is_help=True)


class Encoding(StrEnum):
    """How images are stored."""

    JPEG = "jpeg"
    RAW = "raw"


class Adapter(StrEnum):
    """How a source is laid out: a table or folders of the user's, or as the publisher of a data set ships it."""

    CSV = "csv"
    FOLDER = "folder"
    EYEPACS = "eyepacs"
    APTOS = "aptos"
    MESSIDOR2 = "messidor2"
    DDR = "ddr"
    IDRID = "idrid"
    ODIR = "odir"
    ADAM = "adam"
    RFMID = "rfmid"


Out = Annotated[str, typer.Argument(help="Data set to write: a folder or s3:// prefix.")]
Seed = Annotated[int, typer.Option("--seed", min=0, max=2**63 - 1, help="Of every random draw.")]


@app.command("synth")
def synth(
    out: Out,
    tasks: Annotated[str, typer.Option("--tasks", help="Comma-separated: dr, amd, arteriosclerosis.")] = "dr,amd",
    images_per_task: Annotated[
        int, typer.Option("--images-per-task", min=20, max=1_000_000, help="Images per task, all splits.")
    ] = 600,
    size: Annotated[int, typer.Option("--size", min=32, max=2048, help="Side of the stored images, pixels.")] = 128,
    seed: Seed = 0,
    encoding: Annotated[Encoding, typer.Option("--encoding")] = Encoding.JPEG,
    as_json: AsJson = False,
) -> None:
    """Draw a data set of fundus images with known lesions and grades."""
    from retina_ray.data.synthetic import write_synthetic

    with counting("drawing") as progress:
        manifest = write_synthetic(
            out,
            tasks=tuple(task.strip() for task in tasks.split(",")),
            images_per_task=images_per_task,
            image_size=size,
            seed=seed,
            encoding=encoding.value,
            num_workers=_cpus(),
            progress=progress,
        )
    if as_json:
        print_json({"path": out, **manifest.model_dump(mode="json")})
        return
    console().print(f"{manifest.rows} images in {out}", markup=False, soft_wrap=True)


@app.command("ingest")
def ingest(
    source: Annotated[str, typer.Argument(help="What to read: a table, or a folder; local or s3://; see --adapter.")],
    out: Out,
    adapter: Annotated[Adapter, typer.Option("--adapter", help="How the source is laid out.")] = Adapter.CSV,
    columns: Annotated[
        str, typer.Option("--columns", help="Ours=theirs pairs, e.g. image=path,group=patient,dr=dr_grade.")
    ] = "",
    task: Annotated[
        str | None, typer.Option("--task", help="Task of a folder whose subfolders are its grades.")
    ] = None,
    size: Annotated[int, typer.Option("--size", min=32, max=2048, help="Side of the stored images, pixels.")] = 512,
    encoding: Annotated[Encoding, typer.Option("--encoding")] = Encoding.JPEG,
    split: Annotated[
        str,
        typer.Option("--split", help="Fractions of train, validation and test, or a CSV file of names and splits."),
    ] = ",".join(map(str, PAPER_FRACTIONS)),
    seed: Seed = 0,
    workers: Annotated[
        int | None, typer.Option("--workers", min=1, help="Processes; default: one per core.", show_default=False)
    ] = None,
    address: Annotated[
        str | None, typer.Option("--address", help="Ray cluster whose cores do the work: HOST:PORT or auto.")
    ] = None,
    strict: Annotated[bool, typer.Option("--strict", help="Stop at the first image that is to be listed.")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Read photographs: check, crop the fundus disc, resize and write them.

    Killed and started again, it goes on where it was.
    """
    from retina_ray.data.ingest import ingest as run_ingest
    from retina_ray.data.sources.base import tasks_of
    from retina_ray.data.sources.files import source_path
    from retina_ray.data.split_file import prescribe, read_split_file, unused

    if address is not None and workers is not None:
        raise ConfigError("--workers is of this machine, --address of a cluster", workers, "give one of them")
    fractions = _fractions(split)
    rows = _rows(source_path(source), adapter, columns=columns, task=task)
    if fractions is None:
        file = source_path(split)
        splits = read_split_file(file)
        _tell(f"names in {file} that fit no photograph", unused(rows, splits))
        rows = prescribe(rows, splits, file)
    elif kept := Counter(row.split for row in rows if row.split is not None):
        counts = ", ".join(f"{count} {name}" for name, count in kept.items())
        say = f"the splits of the source are kept: {counts}; --split deals the rest, and validation where it has none"
        error_console().print(say, style="yellow", markup=False, soft_wrap=True)
    with _work(address, workers) as work, counting_phases() as progress:
        summary = run_ingest(
            rows,
            out,
            tasks=tasks_of(rows),
            image_size=size,
            encoding=encoding.value,
            fractions=fractions or PAPER_FRACTIONS,
            seed=seed,
            work=work,
            strict=strict,
            overwrite=overwrite,
            progress=progress,
        )
    if as_json:
        print_json({"path": out, **asdict(summary), "manifest": summary.manifest.model_dump(mode="json")})
        return
    console().print(f"{summary.rows_out} of {summary.rows_in} images in {out}", markup=False, soft_wrap=True)
    for kind, count in summary.refusals.items():
        console().print(f"  {count} refused: {kind}; see {out}/quarantine.csv", markup=False, soft_wrap=True)
    for kind, count in summary.warnings.items():
        console().print(f"  {count} to look at: {kind}; see {out}/quarantine.csv", markup=False, soft_wrap=True)


@contextmanager
def _work(address: str | None, workers: int | None) -> "Iterator[Work]":
    """Yield what makes the parts: processes of this machine, or a cluster."""
    if address is None:
        from retina_ray.data.workers import in_processes

        yield in_processes(workers or _cpus())
        return
    from retina_ray.orchestration.ingest_driver import on_cluster

    with on_cluster(address) as work:
        yield work


app.command("merge")(merge)


@app.command("inspect")
def inspect(
    path: Annotated[str, typer.Argument(help="Data set: a folder or s3:// prefix.")],
    sheet: Annotated[
        str | None, typer.Option("--sheet", help="Draw a contact sheet into this file: .png or .jpg, local or s3://.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Print what a data set holds, and what is wrong with it; fails where a shard is damaged."""
    from retina_ray.data.inspect import contact_sheet, inspect_dataset
    from retina_ray.data.shards import ShardedDataset

    dataset = ShardedDataset.open(path)
    if sheet is not None:
        contact_sheet(dataset, sheet)
    report = inspect_dataset(dataset)
    if as_json:
        print_json(asdict(report))
    else:
        _print_report(path, dataset.tasks, report)
        if sheet is not None:
            console().print(f"contact sheet: {sheet}", markup=False, soft_wrap=True)
    if report.damaged_shards:
        raise typer.Exit(2)


def _rows(source: Path, adapter: Adapter, *, columns: str, task: str | None) -> "list[SourceRow]":
    """Read a source the way it is laid out."""
    from retina_ray.data.sources.csv_table import read_csv
    from retina_ray.data.sources.folder import passed_over, read_folder
    from retina_ray.data.sources.published import PUBLISHED

    if columns and adapter is not Adapter.CSV:
        raise ConfigError("--columns is of --adapter csv", columns, f"leave it out: {adapter} names its grades itself")
    if task is not None and adapter is not Adapter.FOLDER:
        fix = f"name a table's tasks by --columns {task}=..." if adapter is Adapter.CSV else "leave it out"
        raise ConfigError("--task is of --adapter folder", task, fix)
    if adapter is Adapter.CSV:
        return read_csv(source, columns=_mapping(columns))
    if adapter is Adapter.FOLDER:
        rows = read_folder(source, task=task)
        _tell("passed over, for their names are of no photographs", passed_over(source))
        return rows
    return PUBLISHED[adapter](source)


def _tell(what: str, names: Sequence[object]) -> None:
    """Say how many there are of something that is not used, and the first few of them."""
    if names:
        first = ", ".join(map(str, names[:3])) + (", ..." if len(names) > 3 else "")
        error_console().print(f"{what}: {len(names)} ({first})", style="yellow", markup=False, soft_wrap=True)


def _mapping(columns: str) -> dict[str, str]:
    pairs = [pair.partition("=") for pair in columns.split(",") if pair]
    for ours, equals, theirs in pairs:
        if not (ours and equals and theirs):
            known = ", ".join(KNOWN_TASKS)
            raise ConfigError(
                "not a column mapping", columns, f"write ours=theirs pairs; ours: image, group, {known}, ..."
            )
        if [key.strip() for key, _, _ in pairs].count(ours.strip()) > 1:
            raise ConfigError("--columns names it more than once", ours.strip(), "give it one column")
    return {ours.strip(): theirs.strip() for ours, _, theirs in pairs}


def _fractions(text: str) -> tuple[float, float, float] | None:
    """Return fractions, or None where the text is the address of a file."""
    if text.lower().endswith(".csv"):
        return None
    try:
        train, validation, test = (float(part) for part in text.split(","))
    except ValueError:
        raise ConfigError("neither three fractions nor a .csv file", text, "write 0.5,0.25,0.25") from None
    if not (min(train, validation, test) >= 0 and abs(train + validation + test - 1) <= 1e-6):  # NaN too
        raise ConfigError("the fractions must not be negative and add up to 1", text, "write them as 0.5,0.25,0.25")
    return train, validation, test


def _cpus() -> int:
    return len(os.sched_getaffinity(0))


def _print_report(path: str, tasks: Sequence[Task], report: Any) -> None:
    """Print the counts as a table, and whatever is wrong as lines below it."""
    say = console()
    say.print(
        f"{path}: {report.rows} images of {report.image_size} px as {report.encoding}, "
        f"{report.size_bytes / 2**20:.1f} MiB, {report.masks} with lesion masks",
        markup=False,
        soft_wrap=True,
    )
    table = Table()
    table.add_column("task")
    table.add_column("grade")
    for split in report.counts:
        table.add_column(split, justify="right")
    for task in tasks:
        for grade, name in enumerate(task.grades):
            counts = [str(by_task[task.name][grade]) for by_task in report.counts.values()]
            table.add_row(task.name, f"{grade} {name}", *counts)
    table.add_section()
    table.add_row("all", "", *(str(rows) for rows in report.rows_per_split.values()))
    say.print(table)
    if len(report.rows_per_source) > 1:
        sources = (f"{source} {rows}" for source, rows in report.rows_per_source.items())
        say.print(f"images by source: {', '.join(sources)}", markup=False, soft_wrap=True)
    for same in report.duplicates:
        say.print(f"the same image several times: {', '.join(same)}", markup=False, soft_wrap=True)
    for pair in report.lookalikes:
        say.print(f"the same picture in other bytes: {', '.join(pair)}", markup=False, soft_wrap=True)
    for pair in report.leaking_pictures:
        say.print(f"the same picture in more than one split: {', '.join(pair)}", markup=False, soft_wrap=True)
    for group in report.leaking_groups:
        say.print(f"a group in more than one split: {group}", markup=False, soft_wrap=True)
    for shard in report.damaged_shards:
        say.print(f"a damaged shard, make the data set again: {shard}", markup=False, soft_wrap=True)
    if report.sound:
        say.print("no duplicates, no lookalikes, no leaks, no damaged shards")
