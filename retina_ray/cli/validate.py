"""``retina-ray validate``: referral curves, operating points and subgroups of runs, or of a bundle elsewhere."""

from collections.abc import Sequence
from enum import StrEnum
from typing import TYPE_CHECKING, Annotated

import typer
from rich.table import Table
from rich.text import Text

from retina_ray.cli.console import console, print_json
from retina_ray.cli.evaluate import agreed_settings, of_bundle, of_runs
from retina_ray.cli.options import AsJson, Bins, Bootstrap, Level, LowResolution, ResamplingSeed
from retina_ray.errors import ConfigError, DataError

if TYPE_CHECKING:  # at run time it would slow down every verb
    import pyarrow as pa

    from retina_ray.report.validation import Validation

_SENSITIVITY = 0.9


class Uncertainty(StrEnum):
    """What images are referred by."""

    MAX = "max"
    ENTROPY = "entropy"


def validate(
    runs: Annotated[list[str], typer.Argument(help="Folders of finished runs, pooled; or one bundle with --data.")],
    data: Annotated[
        str | None, typer.Option("--data", help="Grade this data set's test split with the bundle.")
    ] = None,
    threshold_data: Annotated[
        str | None,
        typer.Option("--threshold-data", help="With --data: on whose validation split thresholds are chosen."),
    ] = None,
    task: Annotated[list[str] | None, typer.Option("--task", help="Only this one; repeatable.")] = None,
    referable_from: Annotated[
        int | None,
        typer.Option("--referable-from", min=1, help="Mildest referable grade. Default: 2 for dr and amd, else 1."),
    ] = None,
    sensitivity: Annotated[
        list[float] | None,
        typer.Option("--sensitivity", help=f"To choose a threshold for; repeatable. Default: {_SENSITIVITY}."),
    ] = None,
    threshold: Annotated[
        list[float] | None, typer.Option("--threshold", help="A threshold of your own, from 0 to 1; repeatable.")
    ] = None,
    subgroup: Annotated[
        list[str] | None, typer.Option("--subgroup", help="source, laterality or FILE.csv:COLUMN; repeatable.")
    ] = None,
    uncertainty: Annotated[
        Uncertainty, typer.Option("--uncertainty", help="Refer by 1 - the highest probability, or by the entropy.")
    ] = Uncertainty.MAX,
    low_resolution: LowResolution = False,
    bootstrap: Bootstrap = None,
    level: Level = None,
    bins: Bins = None,
    seed: ResamplingSeed = 0,
    output: Annotated[
        str | None, typer.Option("--output", help="Folder or s3:// prefix for the figure, tables and a summary.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Measure the test split as a clinic would use the model: referring, screening, and in each subgroup.

    Thresholds are chosen on validation images. Several runs are pooled, each with thresholds of its own.
    """
    from retina_ray.report.validation import Measuring, as_record, measure

    if sensitivity is None and not threshold:
        sensitivity = [_SENSITIVITY]
    for value in sensitivity or ():
        if not 0.0 < value <= 1.0:
            raise ConfigError("--sensitivity is a share above 0, of at most 1", value, "write 0.9 for 90 %")
    if data is None and (threshold_data is not None or low_resolution):
        given = "--low-resolution" if threshold_data is None else "--threshold-data"
        raise ConfigError(f"{given} is about --data", "not given", "add --data, or leave it out")
    if data is None:
        tables, configs = of_runs(runs, "test")
        datasets = [config.data.path for _, config in configs]
    else:
        tests, configs = of_bundle(runs, data, "test", low_resolution)
        rows = _threshold_rows(runs[0], threshold_data, low_resolution) if sensitivity else None
        tables = [(runs[0], tests if rows is None else _joined(tests, rows))]
        datasets = [data]
    settings = agreed_settings(configs, {"bootstrap": bootstrap, "level": level, "bins": bins})
    found = measure(
        tables,
        {name: _property(name, tables, datasets) for name in subgroup or ()},
        Measuring(
            tasks=tuple(task or ()),
            referable_from=referable_from,
            sensitivities=tuple(sensitivity or ()),
            thresholds=tuple(threshold or ()),
            uncertainty=uncertainty.value,
            resamples=settings.bootstrap,
            level=settings.level,
            bins=settings.bins,
            seed=seed,
        ),
    )
    title = f"test split of {data or f'{len(runs)} run(s)'}"
    if output is not None:
        _write(found, output, title)
    if as_json:
        print_json(as_record(found))
        return
    _show(found, title)


def _threshold_rows(bundle: str, data: str | None, low_resolution: bool) -> "pa.Table":
    """Return a bundle's predictions to choose thresholds on: of a data set, else of its own run."""
    import pyarrow.compute as pc

    from retina_ray.bundle import Bundle
    from retina_ray.data.store import Store
    from retina_ray.metrics.table import as_model
    from retina_ray.orchestration.paired_predictions import predictions_behind

    if data is not None:
        return of_bundle([bundle], data, "validation", low_resolution)[0]
    manifest = Bundle.load(bundle).manifest
    table = predictions_behind(Store(bundle).uri, manifest)
    if table is None:
        what = "the run that made the bundle is not beside it, so its validation images cannot choose a threshold"
        raise DataError(
            what, bundle, "add --threshold-data with a data set that has a validation split, or --threshold"
        )
    return as_model(table.filter(pc.field("split") == "validation"), manifest.name)


def _joined(tests: "pa.Table", validations: "pa.Table") -> "pa.Table":
    import pyarrow as pa

    return pa.concat_tables([tests, validations])


def _property(name: str, runs: "list[tuple[str, pa.Table]]", datasets: Sequence[str]) -> dict[str, str]:
    """Return the values of a property by image id."""
    from retina_ray.data.properties import lateralities, read_property
    from retina_ray.data.shards import ShardedDataset
    from retina_ray.data.sources.files import source_path

    if name == "source":
        columns = [(table["image_id"].to_pylist(), table["source"].to_pylist()) for _, table in runs]
        return {image_id: source for ids, sources in columns for image_id, source in zip(ids, sources, strict=True)}
    if name == "laterality":
        found: dict[str, str] = {}
        for data in dict.fromkeys(datasets):
            found |= lateralities(ShardedDataset.open(data))
        return found
    file, _, column = name.rpartition(":")
    if not file.lower().endswith(".csv") or not column:
        raise ConfigError("no such subgroup", name, "write source, laterality or FILE.csv:COLUMN")
    values = read_property(source_path(file), column)
    known = {image_id for _, table in runs for image_id in table["image_id"].to_pylist()}
    if known.isdisjoint(values):
        fix = f"its image_id column must hold ids as in the data set, such as {min(known)}"
        raise DataError("the table names none of the images", file, fix)
    return values


def _write(found: "Validation", output: str, title: str) -> None:
    from retina_ray.data.store import Store
    from retina_ray.report.validation_files import validation_files

    store = Store(output)
    for name, content in validation_files(found, title=title):
        store.write_bytes(name, content)


def _show(found: "Validation", title: str) -> None:
    from retina_ray.report.validation_tables import point_table, referral_table, subgroup_table

    tables = {"kept when the most uncertain images are referred": referral_table(found)}
    tables["operating points"] = point_table(found)
    if found.subgroups:
        tables["subgroups (*: too few patients to trust the intervals)"] = subgroup_table(found)
    for heading, (head, *rows) in tables.items():
        table = Table(title=f"{title}: {heading}", title_justify="left")
        for name in head:
            table.add_column(Text(name))
        for row in rows:
            table.add_row(*map(Text, row))
        console().print(table)
