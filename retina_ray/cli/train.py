"""``retina-ray train``: one run, from its configuration to a registered bundle."""

from typing import Annotated, Any

import typer

from retina_ray.cli.console import console, error_console, print_json, result_table, stage_display
from retina_ray.cli.options import AsJson, Assignments, ConfigFile, Recipe, resolve


def train(
    recipe: Recipe = "sall",
    config_file: ConfigFile = None,
    assignments: Assignments = None,
    data: Annotated[str | None, typer.Option("--data", help="Data set: a folder or s3:// prefix.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the run.")] = None,
    storage: Annotated[str | None, typer.Option("--storage", help="Folder or s3:// prefix for runs.")] = None,
    hide_grades: Annotated[
        str | None, typer.Option("--hide-grades", help="`half` keeps one grade per training image.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the run of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Train, evaluate and register a model."""
    config = resolve(
        recipe,
        config_file,
        assignments,
        name=name,
        data__path=data,
        data__hide_grades=hide_grades,
        runtime__storage=storage,
    )
    # Heavy imports wait until the configuration is known to be right.
    from retina_ray.orchestration.publish import train_and_publish

    with stage_display() as display:
        published = train_and_publish(config, resume=resume, listener=display)
    result = published.result
    run = result.folder.store.uri
    if as_json:
        print_json(describe(published))
        return
    console().print(result_table(result.summaries, title=f"test split of {config.data.path}"))
    lines = [f"run     {run}", f"bundle  {published.bundle_uri}", f"next    retina-ray report {run}"]
    for line in lines:
        console().print(line, markup=False, soft_wrap=True)
    damaged = sorted({name for artifact in result.artifacts.values() for name in artifact.facts["damaged"]})
    if damaged:
        error_console().print(f"damaged images, left out: {', '.join(damaged)}", style="yellow", markup=False)
    if published.version is not None:
        error_console().print(f"registered as {config.tracking.model_name} version {published.version}", markup=False)


def describe(published: Any) -> dict[str, Any]:
    """Return a finished run for programs."""
    from retina_ray.metrics.summary import as_record

    result = published.result
    return {
        "run": result.folder.store.uri,
        "bundle": published.bundle_uri,
        "model_version": published.version,
        "metrics": [as_record(each) for each in result.summaries],
    }
