"""``retina-ray serve keys``: the API keys that a service lets in."""

from pathlib import Path
from typing import Annotated

import typer

from retina_ray.cli.console import console, print_json
from retina_ray.cli.options import AsJson

app = typer.Typer(help="Make API keys.", no_args_is_help=True)


@app.callback()
def keys() -> None:
    """Make API keys."""


@app.command("new")
def new(
    key_id: Annotated[str, typer.Argument(metavar="ID", help="What logs call the key, such as clinic-a.")],
    per_minute: Annotated[
        int, typer.Option("--per-minute", help="Photographs that it may send a minute; as many may come at once.")
    ],
    scopes: Annotated[
        list[str] | None, typer.Option("--scope", help="grade (the default) or metrics; repeatable.")
    ] = None,
    file: Annotated[
        Path | None, typer.Option("--file", help="YAML file to add the key's hash to; made where there is none.")
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw a key and print it, this once: the file holds only its hash."""
    from retina_ray.serving.keys import add, as_yaml, issue

    text, key = issue(key_id, per_minute, scopes or ["grade"])
    if file is not None:
        add(file, key)
    if as_json:
        print_json({"key": text, **key.model_dump(mode="json")})
        return
    out = console()
    out.print(text, markup=False, soft_wrap=True)
    if file is None:
        out.print(
            f"\nWhat the file of API keys has to hold:\nkeys:\n{as_yaml(key)}", markup=False, soft_wrap=True, end=""
        )
    else:
        out.print(f"{file} holds its hash; the key itself is kept nowhere", markup=False, soft_wrap=True)
