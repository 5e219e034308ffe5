"""``retina-ray recipes``: the named runs."""

from typing import Annotated

import typer

from retina_ray.cli.console import console, print_json
from retina_ray.cli.options import AsJson
from retina_ray.config import to_yaml
from retina_ray.config_reference import reference
from retina_ray.recipes import RECIPES, load_recipe

app = typer.Typer(help="List the named runs, or show one whole.", no_args_is_help=True)


@app.command("list")
def list_recipes(as_json: AsJson = False) -> None:
    """List the recipes."""
    summaries = {name: (recipe.__doc__ or "").splitlines()[0] for name, recipe in RECIPES.items()}
    if as_json:
        print_json(summaries)
        return
    width = max(map(len, summaries))
    for name, summary in summaries.items():
        console().print(f"{name:<{width}}  {summary}", markup=False, soft_wrap=True)


@app.command("show")
def show(name: Annotated[str, typer.Argument(help="Recipe name.")], as_json: AsJson = False) -> None:
    """Print every value of a recipe; the output is a valid --config file."""
    config = load_recipe(name)
    if as_json:
        print_json(config.model_dump(mode="json"))
        return
    print(to_yaml(config), end="")


@app.command("keys")
def keys() -> None:
    """Print every configuration key with its default and meaning, as Markdown."""
    print(reference(), end="")
