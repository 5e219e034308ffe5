"""``retina-ray evaluate``: the figures of finished runs, pooled, or of a bundle on another data set."""

from typing import Annotated

import typer

from retina_ray.cli.console import console, print_json, result_table
from retina_ray.cli.options import AsJson


def evaluate(
    runs: Annotated[list[str], typer.Argument(help="Folders of finished runs, pooled; or one bundle with --data.")],
    data: Annotated[str | None, typer.Option("--data", help="Grade this data set with the bundle instead.")] = None,
    split: Annotated[str, typer.Option("--split", help="train, validation or test.")] = "test",
    bootstrap: Annotated[int, typer.Option("--bootstrap", min=0, help="Resamples for the intervals.")] = 1000,
    seed: Annotated[int, typer.Option("--seed", help="Of the resampling.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Measure accuracy, agreement and calibration with bootstrap intervals.

    Several runs are pooled: the folds of a cross-validation give one out-of-fold figure.
    """
    import pyarrow.compute as pc

    from retina_ray.errors import ConfigError
    from retina_ray.metrics.summary import summarise
    from retina_ray.metrics.table import merge_shards
    from retina_ray.orchestration.bundle_evaluation import predict_dataset
    from retina_ray.orchestration.run_folder import RunFolder

    if data is not None:
        if len(runs) != 1:
            raise ConfigError("--data takes one bundle", ", ".join(runs), "give a single bundle")
        table = predict_dataset(runs[0], data, split=split)
    else:
        # Only the split that is asked for: what one fold tests, another validates with.
        wanted = pc.field("split") == split
        table = merge_shards([RunFolder.open(run).predictions().filter(wanted) for run in runs])
    summaries = summarise(table, split=split, resamples=bootstrap, seed=seed)
    if as_json:
        print_json(
            [{"model": s.model, "task": s.task, "n": s.n, **s.metrics, "intervals": s.intervals} for s in summaries]
        )
        return
    where = data or f"{len(runs)} run(s)"
    console().print(result_table(summaries, title=f"{split} split of {where}"))
