"""``retina-ray evaluate``: the figures of finished runs, pooled, or of a bundle on another data set."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Annotated, Any

import typer

from retina_ray.cli.console import console, print_json, result_table
from retina_ray.cli.options import AsJson, Bins, Bootstrap, Level, LowResolution, ResamplingSeed
from retina_ray.config import EvaluateConfig, RunConfig, from_mapping, override
from retina_ray.errors import ConfigError, DataError

if TYPE_CHECKING:  # at run time it would slow down every verb
    import pyarrow as pa

Configs = list[tuple[str, RunConfig]]
"""Where each run or bundle lies, and what it was trained with."""


def evaluate(
    runs: Annotated[list[str], typer.Argument(help="Folders of finished runs, pooled; or one bundle with --data.")],
    data: Annotated[str | None, typer.Option("--data", help="Grade this data set with the bundle instead.")] = None,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "test",
    low_resolution: LowResolution = False,
    screening: Annotated[
        bool, typer.Option("--screening", help="Two grades: none, and any disease; for truth that says no more.")
    ] = False,
    bootstrap: Bootstrap = None,
    level: Level = None,
    bins: Bins = None,
    seed: ResamplingSeed = 0,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy, agreement and calibration with bootstrap intervals.

    Several runs are pooled: the folds of a cross-validation give one out-of-fold figure.
    """
    from retina_ray.data.schema import SPLITS
    from retina_ray.metrics.summary import as_record, summarise
    from retina_ray.metrics.table import as_screening

    if split not in SPLITS:
        raise ConfigError("unknown split", split, f"choose one of {', '.join(SPLITS)}")
    if low_resolution and data is None:
        raise ConfigError("--low-resolution is about --data", "not given", "add --data, or leave it out")
    table, configs = _pooled(runs, split) if data is None else of_bundle(runs, data, split, low_resolution)
    if screening:
        table = as_screening(table)
    settings = agreed_settings(configs, {"bootstrap": bootstrap, "level": level, "bins": bins})
    summaries = summarise(
        table, split=split, resamples=settings.bootstrap, level=settings.level, bins=settings.bins, seed=seed
    )
    if as_json:
        print_json([as_record(summary) for summary in summaries])
        return
    where = data or f"{len(runs)} run(s)"
    console().print(result_table(summaries, title=f"{split} split of {where}"))


def agreed_settings(configs: Configs, given: Mapping[str, Any]) -> EvaluateConfig:
    """Return how to evaluate: the options that were given, else what all the runs' configurations say.

    Args:
        configs: at least one.
        given: value by option, None where it was not given.

    Raises:
        ConfigError: runs differ in what was not given, or a given value does not fit.
    """
    assignments = {f"evaluate.{name}": value for name, value in given.items() if value is not None}
    (first, config), *others = [(run, override(config, assignments)) for run, config in configs]
    for run, other in others:
        for name in given:
            values = getattr(config.evaluate, name), getattr(other.evaluate, name)
            if values[0] != values[1]:
                what = f"the runs {first} and {run} differ in evaluate.{name}"
                raise ConfigError(what, f"{values[0]} and {values[1]}", f"give --{name}")
    return config.evaluate


def of_runs(runs: Sequence[str], split: str) -> "tuple[list[tuple[str, pa.Table]], Configs]":
    """Return the prediction table of each run, all splits, and its configuration.

    Args:
        runs: folders of finished runs.
        split: of which each must have predicted a graded image.

    Raises:
        ConfigError: there is no run.
        DataError: it is not finished, or has predicted no graded image of the split.
    """
    from retina_ray.metrics.table import graded_tasks
    from retina_ray.orchestration.run_folder import RunFolder

    folders = [(run, RunFolder.open(run)) for run in runs]
    tables = [(run, folder.predictions()) for run, folder in folders]
    for run, table in tables:
        if not graded_tasks(table, split=split):
            raise DataError(f"no image of the {split} split has a grade in", run, "choose another split, or other runs")
    return tables, [(run, folder.config()) for run, folder in folders]


def _pooled(runs: Sequence[str], split: str) -> "tuple[pa.Table, Configs]":
    import pyarrow.compute as pc

    from retina_ray.metrics.table import pool_runs

    tables, configs = of_runs(runs, split)
    # Only the split that is asked for: what one fold tests, another validates with.
    return pool_runs([(run, table.filter(pc.field("split") == split)) for run, table in tables]), configs


def of_bundle(paths: Sequence[str], data: str, split: str, low_resolution: bool) -> "tuple[pa.Table, Configs]":
    """Return the predictions of a bundle on a split of a data set, and the bundle's configuration.

    Args:
        paths: the bundle, one.
        data: address of the data set.
        split: train, validation or test.
        low_resolution: see `predict_dataset`.

    Raises:
        ConfigError: several bundles, or one that takes no low-resolution images.
        BundleError: there is no bundle.
        DataError: the data set has no graded image of the bundle's tasks in the split.
    """
    from retina_ray.bundle import Bundle
    from retina_ray.orchestration.bundle_evaluation import predict_dataset

    if len(paths) != 1:
        raise ConfigError("--data takes one bundle", ", ".join(paths), "give a single bundle")
    bundle = Bundle.load(paths[0])
    table = predict_dataset(bundle, data, split=split, low_resolution=low_resolution)
    return table, [(paths[0], from_mapping(bundle.manifest.config))]
