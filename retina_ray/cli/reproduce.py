"""``retina-ray reproduce``: a table or figure of the papers, or an external validation, as a grid of runs."""

import time
from datetime import timedelta
from typing import Annotated, Literal

import typer
from rich.table import Table

from retina_ray.cli.console import console, error_console, print_json
from retina_ray.cli.options import AsJson, Assignments, ConfigFile
from retina_ray.config import RunConfig, load_file, override

LIST = "list"

WITH_EXTERNAL = "deepmt-table2"


def reproduce(
    name: Annotated[str, typer.Argument(help="Such as sall-table3 or deepmt-figure10; `list` shows all.")],
    data: Annotated[str | None, typer.Option("--data", help="Data set: a folder or s3:// prefix.")] = None,
    budget: Annotated[
        Literal["paper", "debug"],
        typer.Option(
            "--budget", help="paper, or debug: tiny networks, on drawn images unless --data is given, in minutes."
        ),
    ] = "paper",
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Named run that its runs start from. Default: the paper's.")
    ] = None,
    config_file: ConfigFile = None,
    assignments: Assignments = None,
    seeds: Annotated[int | None, typer.Option("--seeds", min=1, help="Runs of each row. Default: 3.")] = None,
    folds: Annotated[
        int | None, typer.Option("--folds", min=0, max=20, help="Of cross-validation; 0: none. Default: the paper's.")
    ] = None,
    external: Annotated[
        str, typer.Option("--external", help="Photographs of low resolution, for deepmt-table2.", show_default=False)
    ] = "",
    run_name: Annotated[
        str | None, typer.Option("--name", help="Of the experiment's folder. Default: NAME, or NAME-debug.")
    ] = None,
    storage: Annotated[str | None, typer.Option("--storage", help="Folder or s3:// prefix for runs.")] = None,
    address: Annotated[str | None, typer.Option("--address", help="Ray cluster: local, auto, or host:port.")] = None,
    concurrent: Annotated[
        int | None, typer.Option("--concurrent", min=1, help="Most runs side by side; by default as many as fit.")
    ] = None,
    tune: Annotated[bool, typer.Option(help="Run them through Ray Tune, or one by one in this process.")] = True,
    as_json: AsJson = False,
) -> None:
    """Run a paper's table or figure again, or leave one source out: a grid of runs that share what they can.

    The same command goes on where it was interrupted. It writes the table as Markdown, CSV and LaTeX, with the paper's
    figures beside, and figures as PNG and SVG.
    """
    if name == LIST:
        _show_all(as_json=as_json)
        return
    from retina_ray.reproduce.catalogue import find, method_of

    build = find(name)
    from retina_ray.orchestration.reproduce_driver import Options
    from retina_ray.orchestration.reproduce_driver import reproduce as run
    from retina_ray.orchestration.reproduce_grid import GridOptions
    from retina_ray.reproduce.budget import base_of, draw_data, draw_external
    from retina_ray.reproduce.table import to_markdown

    base = base_of(method_of(name), budget, recipe)
    default_name = name if budget == "paper" else f"{name}-debug"
    given = {
        "data.path": data,
        "runtime.storage": storage,
        "runtime.address": address,
        "name": run_name or default_name,
    }
    chosen = {} if config_file is None else load_file(config_file)

    def configured(base: RunConfig) -> RunConfig:
        config = override(base, chosen)
        config = override(config, {path: value for path, value in given.items() if value is not None})
        return override(config, assignments or [])

    config = configured(base)
    if budget == "debug":
        # Small enough to show that all of it works: one seed and the drawn data's own splits, unless more is asked for.
        seeds, folds = seeds or 1, folds or 0
        if not config.data.path:
            config = configured(override(base, draw_data(name, config.method.name, config.runtime.storage)))
        if name == WITH_EXTERNAL and not external:
            external = draw_external(config.runtime.storage)
    grid = GridOptions(tune=tune, concurrent=concurrent, external=external)
    done = run(build, config, Options(budget, seeds, folds, grid), on_run=_Progress())
    if as_json:
        print_json({"experiment": name, "files": done.files})
        return
    if "table.md" in done.files:
        console().print(to_markdown(done.finished), markup=False, soft_wrap=True)
    for file, place in done.files.items():
        console().print(f"{file:<24}{place}", markup=False, soft_wrap=True)


class _Progress:
    """Shows each run that ends, in a line, and how long the rest takes if runs go on ending as they do."""

    def __init__(self) -> None:
        self._out = error_console()
        self._begun: tuple[int, float] | None = None  # how many had ended before, and when

    def __call__(self, done: int, total: int, name: str, failure: str) -> None:
        now = time.monotonic()
        if self._begun is None:
            self._begun = done, now
            if total:
                self._out.print(f"{done} of {total} runs (rows x seeds x folds) are there", markup=False)
            return
        before, start = self._begun
        left = timedelta(seconds=round((now - start) / (done - before) * (total - done)))
        ending = f", about {left} left" if done < total else ""
        self._out.print(f"{done} of {total}  {name}{ending}", markup=False, soft_wrap=True)
        if failure:
            self._out.print(f"failed: {failure}", style="red", markup=False, soft_wrap=True)


def _show_all(*, as_json: bool) -> None:
    from retina_ray.reproduce.catalogue import EXPERIMENTS, summary_of

    summaries = {name: summary_of(name) for name in EXPERIMENTS}
    if as_json:
        print_json(summaries)
        return
    table = Table("name", "shows", box=None)
    for name, summary in summaries.items():
        table.add_row(name, summary)
    console().print(table)
