"""``retina-ray tune``: a hyper-parameter search, from its space to a registered winner."""

import re
from contextlib import ExitStack
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from retina_ray.cli.console import console, error_console, print_json, result_table, stage_display
from retina_ray.cli.options import AsJson, Assignments, ConfigFile, resolve
from retina_ray.cli.search_display import parameters, search_display
from retina_ray.cli.train import describe
from retina_ray.config import RunConfig, read_yaml
from retina_ray.errors import ConfigError
from retina_ray.recipes import RECIPES

if TYPE_CHECKING:
    from retina_ray.orchestration.tune_driver import SearchOptions
    from retina_ray.orchestration.tune_winner import Winner
    from retina_ray.search.journal import TrialRecord

_SECONDS = {"": 1.0, "s": 1.0, "m": 60.0, "h": 3600.0, "d": 86400.0}


def tune(
    space: Annotated[str, typer.Argument(help="Space: sall, sall_brief, deepmt_dr, or module:function of your own.")],
    recipe: Annotated[
        str | None, typer.Option("--recipe", "-r", help="Named run to start from; by default that of the space's name.")
    ] = None,
    trials: Annotated[int, typer.Option("--trials", "-n", min=1, help="Trials in all.")] = 32,
    config_file: ConfigFile = None,
    assignments: Assignments = None,
    data: Annotated[str | None, typer.Option("--data", help="Data set: a folder or s3:// prefix.")] = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the search.")] = None,
    storage: Annotated[str | None, typer.Option("--storage", help="Folder or s3:// prefix for runs.")] = None,
    address: Annotated[str | None, typer.Option("--address", help="Ray cluster: local, auto, or host:port.")] = None,
    concurrent: Annotated[
        int | None, typer.Option("--concurrent", min=1, help="Most trials side by side; by default as many as fit.")
    ] = None,
    gpus_per_trial: Annotated[
        float | None, typer.Option("--gpus-per-trial", help="GPUs of a trial; 0.5 lets two share one.")
    ] = None,
    scheduler: Annotated[
        Literal["asha", "none"], typer.Option("--scheduler", help="Whether trials that fall behind are stopped.")
    ] = "asha",
    time_budget: Annotated[
        str | None, typer.Option("--time-budget", help="When the trials end, such as 90m, 8h or 2d.")
    ] = None,
    points: Annotated[
        Path | None, typer.Option("--points", help="YAML list of parameters to try first, instead of the space's own.")
    ] = None,
    metric: Annotated[
        str | None, typer.Option("--metric", help="What to optimise, such as kappa; kappa,ece is a Pareto search.")
    ] = None,
    cv: Annotated[
        int | None, typer.Option("--cv", min=3, max=20, help="Folds of cross-validation; the score is their mean.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue the search of that name.")] = False,
    as_json: AsJson = False,
) -> None:
    """Search for the best configuration, train it to its end, test it and register it."""
    config = base_config(
        space, recipe, config_file, assignments, data=data, name=name, storage=storage, address=address
    )
    first = None if points is None else _points(points)
    budget_s = None if time_budget is None else _seconds(time_budget)
    # Heavy imports wait until the configuration is known to be right.
    from retina_ray.orchestration.tune_driver import SearchOptions

    options = SearchOptions(
        space=space,
        trials=trials,
        metric=metric,
        scheduler=scheduler,
        concurrent=concurrent,
        gpus_per_trial=gpus_per_trial,
        time_budget_s=budget_s,
        points=first,
        cv=cv,
    )
    folder, winner = search_and_publish(config, options, resume=resume)
    if as_json:
        print_json({"search": folder, "trial": winner.trial.number, **describe(winner.published)})
        return
    result = winner.published.result
    console().print(result_table(result.summaries, title=f"the winner on the test split of {config.data.path}"))
    for line in (
        f"winner  trial {winner.trial.number}: {parameters(winner.trial)}",
        f"search  {folder}",
        f"run     {result.folder.store.uri}",
        f"bundle  {winner.published.bundle_uri}",
        f"next    retina-ray report {folder}",
    ):
        console().print(line, markup=False, soft_wrap=True)
    if winner.published.version is not None:
        registered = f"{config.tracking.model_name} version {winner.published.version}"
        error_console().print(f"registered as {registered}, candidate", markup=False)


def base_config(
    space: str,
    recipe: str | None,
    config_file: Path | None,
    assignments: list[str] | None,
    *,
    data: str | None,
    name: str | None,
    storage: str | None,
    address: str | None = None,
) -> RunConfig:
    """Return the configuration that a search varies, from the options of the command.

    Raises:
        ConfigError: a name, path or value does not fit.
    """
    return resolve(
        recipe or (space if space in RECIPES else "sall"),
        config_file,
        assignments,
        name=name or f"{re.sub(r'[^A-Za-z0-9._-]+', '-', space)}-search",
        data__path=data,
        runtime__storage=storage,
        runtime__address=address,
    )


def search_and_publish(config: RunConfig, options: "SearchOptions", *, resume: bool) -> "tuple[str, Winner]":
    """Run a search and its winner with their progress on standard error; return the search's folder and the winner."""
    from retina_ray.orchestration.ray_settings import connected
    from retina_ray.orchestration.tune_driver import run_search
    from retina_ray.orchestration.tune_winner import publish_winner
    from retina_ray.search.goals import goals_of
    from retina_ray.search.space import load_space

    goals = goals_of(load_space(options.space), options.metric)
    if len(goals) > 1 and options.scheduler == "asha":
        note = "several metrics make a Pareto search, in which no trial is stopped early (--scheduler none)"
        error_console().print(note, style="yellow", markup=False)
    with connected(config.runtime, for_search=True):  # once for both
        unit = "epoch" if options.cv is None else "fold"
        with search_display(options.trials, goals, unit=unit) as trials, ExitStack() as first:
            stages = first.enter_context(stage_display())

            def on_trial(record: "TrialRecord") -> None:
                first.close()  # the shared stages are over, and two displays would draw over each other
                trials(record)

            search = run_search(config, options, resume=resume, listener=stages, on_trial=on_trial)
        with stage_display() as stages:
            winner = publish_winner(search, stages)
    return search.folder.store.uri, winner


def _seconds(text: str) -> float:
    match = re.fullmatch(r"(\d+(?:\.\d+)?)([smhd]?)", text.strip())
    if match is None or not float(match[1]):
        raise ConfigError("not a time", repr(text), "write seconds, or a number with m, h or d, such as 90m")
    return float(match[1]) * _SECONDS[match[2]]


def _points(path: Path) -> tuple[dict[str, Any], ...]:
    points = read_yaml(path, "the points")
    if not isinstance(points, list) or not all(isinstance(point, dict) for point in points):
        fix = "write a list of mappings, each from the space's parameter names to values"
        raise ConfigError("not a list of points", str(path), fix)
    return tuple(points)
