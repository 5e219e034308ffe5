"""``retina-ray models``: the registered models, and which of them is the champion."""

from collections.abc import Sequence
from dataclasses import asdict
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from retina_ray.cli.console import console, print_json
from retina_ray.cli.options import AsJson, Assignments, resolve
from retina_ray.config import RunConfig
from retina_ray.errors import ConfigError

if TYPE_CHECKING:
    from retina_ray.model_versions import RegisteredModel
    from retina_ray.orchestration.promote import Promotion
    from retina_ray.promotion import Compared

app = typer.Typer(help="List the registered models, show one, or make one the champion.", no_args_is_help=True)

Storage = Annotated[str | None, typer.Option("--storage", help="Folder or s3:// prefix whose registry is meant.")]


@app.command("list")
def list_registered(storage: Storage = None, assignments: Assignments = None, as_json: AsJson = False) -> None:
    """List all versions of all registered models."""
    from retina_ray.model_versions import METHOD_TAG, has_registry, list_models

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
            model.name, str(model.version), ", ".join(model.aliases), model.tags.get(METHOD_TAG, ""), model.source
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

    base, which = _name_and_version(name)
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


@app.command("promote")
def promote(
    name: Annotated[str, typer.Argument(help="NAME/VERSION or NAME@ALIAS, such as NAME@candidate.")],
    force: Annotated[
        bool, typer.Option("--force", help="Promote it although it is worse, or cannot be compared.")
    ] = False,
    storage: Storage = None,
    assignments: Assignments = None,
    as_json: AsJson = False,
) -> None:
    """Make a version the champion, unless it is worse than the present one.

    It must grade what the champion grades, have been measured on the same test images, and be no worse there beyond
    chance in quadratic kappa and accuracy: by the paired difference where both runs' predictions are at hand, else by
    the champion's interval.
    """
    from retina_ray.orchestration.promote import promote as move

    base, which = _name_and_version(name)
    if not which:
        raise ConfigError("no version to promote", name, f"write {name}/VERSION or {name}@candidate")
    promotion = move(_config(storage, assignments), base, which, force=force)
    if as_json:
        print_json(asdict(promotion))
    else:
        _tell(promotion)


def _tell(promotion: "Promotion") -> None:
    """Print what was compared and what was moved."""
    out, comparison = console(), promotion.comparison
    if promotion.before == promotion.after:
        out.print(
            f"version {promotion.after} of {promotion.name} is the champion already; nothing was changed", markup=False
        )
        return
    if comparison.figures:
        out.print(_table(comparison.figures))
    for objection in comparison.objections:
        out.print(f"overruled: {objection}", markup=False, soft_wrap=True)
    before = "none" if promotion.before is None else f"version {promotion.before}"
    out.print(f"champion: {before} -> {promotion.after}")


def _table(figures: "Sequence[Compared]") -> Table:
    from retina_ray.promotion import FIGURES

    table = Table(title="test split, in brackets the interval that decides", title_justify="left")
    for heading in ("task", "metric", "champion", "candidate", "verdict"):
        table.add_column(heading)
    for each in figures:
        old, new = (_figure(value) for value in (each.champion, each.candidate))
        if each.interval is not None:
            low, high = each.interval
            if each.paired:
                new += f" (difference \\[{low:+.3f}, {high:+.3f}])"
            else:
                old += f" \\[{low:.3f}, {high:.3f}]"
        table.add_row(each.task, FIGURES[each.metric], old, new, each.verdict)
    return table


def _figure(value: float | None) -> str:
    return "-" if value is None else f"{value:.3f}"


def _name_and_version(address: str) -> tuple[str, str]:
    """Split NAME, NAME@ALIAS or NAME/VERSION; the second part is empty where there is none."""
    base, _, which = address.replace("@", "/").partition("/")
    return base, which


def _config(storage: str | None, assignments: list[str] | None) -> RunConfig:
    return resolve("sall", None, assignments, runtime__storage=storage)


def _plain(model: "RegisteredModel") -> dict[str, Any]:
    return asdict(model) | {"created": model.created.isoformat(timespec="seconds")}
