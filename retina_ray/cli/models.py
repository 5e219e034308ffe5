"""``retina-ray models``: the registered models."""

from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from retina_ray.cli.console import console, print_json
from retina_ray.cli.options import AsJson, Assignments, resolve
from retina_ray.config import RunConfig

if TYPE_CHECKING:
    from retina_ray.model_versions import RegisteredModel

app = typer.Typer(help="List the registered models, or show one.", no_args_is_help=True)

Storage = Annotated[str | None, typer.Option("--storage", help="Folder or s3:// prefix whose registry is meant.")]


@app.command("list")
def list_registered(storage: Storage = None, assignments: Assignments = None, as_json: AsJson = False) -> None:
    """List all versions of all registered models."""
    from retina_ray.model_versions import has_registry, list_models

    config = _config(storage, assignments)
    models = list_models(config)
    if as_json:
        print_json([_plain(model) for model in models])
        return
    if not models:
        missing = "no models are registered here" if has_registry(config) else "there is no registry here"
        console().print(f"{missing} yet; `retina-ray train` registers a model")
        return
    table = Table()
    for heading in ("model", "version", "aliases", "method", "bundle"):
        table.add_column(heading, overflow="fold")
    for model in models:
        table.add_row(
            model.name, str(model.version), ", ".join(model.aliases), model.tags.get("method", ""), model.source
        )
    console().print(table)


@app.command("show")
def show(
    name: Annotated[str, typer.Argument(help="NAME, NAME@ALIAS or NAME/VERSION; a bare name means its champion.")],
    storage: Storage = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Print one version: where it came from and what it reaches on its test split."""
    from retina_ray.model_versions import show_model

    base, _, which = name.replace("@", "/").partition("/")
    model = show_model(_config(storage, assignments), base, which or "champion")
    if as_json:
        print_json(_plain(model))
        return
    for key, value in _plain(model).items():
        if isinstance(value, dict):
            for inner, text in sorted(value.items()):
                console().print(f"{inner:<28} {text}", markup=False, soft_wrap=True)
        else:
            console().print(f"{key:<28} {value}", markup=False, soft_wrap=True)


def _config(storage: str | None, assignments: list[str] | None) -> RunConfig:
    return resolve("sall", None, assignments, runtime__storage=storage)


def _plain(model: "RegisteredModel") -> dict[str, Any]:
    return asdict(model) | {"created": model.created.isoformat(timespec="seconds")}
