"""``retina-ray data merge``: several data sets made into one."""

import re
from typing import Annotated

import typer

from retina_ray.cli.console import console, counting_phases, print_json
from retina_ray.cli.options import AsJson

_NAMED = re.compile(r"([A-Za-z0-9][A-Za-z0-9._-]*)=(.+)")
"""A folder whose own name has such a beginning is written ``./a=b``."""


def merge(
    sets: Annotated[
        list[str],
        typer.Argument(metavar="SET...", help="Data sets, two or more: folders or s3:// prefixes, or NAME=SET each."),
    ],
    out: Annotated[str, typer.Argument(help="Data set to write: a folder or s3:// prefix.")],
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a data set that is there.")] = False,
    as_json: AsJson = False,
) -> None:
    """Join data sets, with their splits, into one to train on some sources and test on another.

    NAME replaces the source that a set's images come from; sets whose sources are called the same need it.
    """
    from retina_ray.data.merge import Member
    from retina_ray.data.merge import merge as run_merge

    members = [
        Member(path=named[2], name=named[1]) if (named := _NAMED.fullmatch(text)) else Member(path=text)
        for text in sets
    ]
    with counting_phases() as progress:
        manifest = run_merge(members, out, overwrite=overwrite, progress=progress)
    if as_json:
        print_json({"path": out, **manifest.model_dump(mode="json")})
        return
    console().print(f"{manifest.rows} images of {manifest.source} in {out}", markup=False, soft_wrap=True)
