"""Options that several verbs share, and the configuration they add up to."""

from pathlib import Path
from typing import Annotated

import typer

from retina_ray.config import RunConfig, load_file, override
from retina_ray.recipes import load_recipe

Recipe = Annotated[str, typer.Option("--recipe", "-r", help="Named run to start from; see `retina-ray recipes list`.")]
ConfigFile = Annotated[
    Path | None, typer.Option("--config", "-c", help="YAML file whose values replace the recipe's.", show_default=False)
]
Assignments = Annotated[
    list[str] | None, typer.Option("--set", "-s", metavar="PATH=VALUE", help="Replace one value; repeatable.")
]
Bootstrap = Annotated[
    int | None, typer.Option("--bootstrap", min=0, help="Resamples for the intervals; 0: none. Default: the run's.")
]
Level = Annotated[
    float | None, typer.Option("--level", min=0.5, max=1.0, help="Coverage of the intervals. Default: the run's.")
]
Bins = Annotated[int | None, typer.Option("--bins", min=2, help="Bins of the calibration error. Default: the run's.")]
ResamplingSeed = Annotated[int, typer.Option("--seed", help="Of the resampling.")]
LowResolution = Annotated[
    bool, typer.Option("--low-resolution", help="With --data: its photographs are what a super-resolving model takes.")
]
AsJson = Annotated[bool, typer.Option("--json", help="Write the result as JSON on standard output.")]


def resolve(recipe: str, config_file: Path | None, assignments: list[str] | None, **values: object) -> RunConfig:
    """Return the configuration: the recipe, then the file, then the options of the verb, then ``--set``.

    Args:
        recipe: name of the base.
        config_file: YAML mapping or None.
        assignments: ``path=value`` strings or None.
        values: dotted path (with ``__`` for the dot) to value; None leaves it alone.

    Raises:
        ConfigError: a name, path or value does not fit.
    """
    config = load_recipe(recipe)
    if config_file is not None:
        config = override(config, load_file(config_file))
    config = override(config, {path.replace("__", "."): value for path, value in values.items() if value is not None})
    return override(config, assignments or [])
