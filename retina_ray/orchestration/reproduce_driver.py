"""From the name of a paper's table to the table: lay its grid out, run it, measure it, write it down."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from retina_ray.config import RunConfig, from_mapping, override
from retina_ray.data.selection import sources_of
from retina_ray.data.store import Store, writing
from retina_ray.errors import ConfigError
from retina_ray.methods import catalogue
from retina_ray.orchestration.alone import alone
from retina_ray.orchestration.grid_run import Listener, fingerprint_of, outcome_of
from retina_ray.orchestration.preparation import open_dataset, with_absolute_paths
from retina_ray.orchestration.reproduce_grid import GridOptions, OnRun, folder_of, lay_out, run_grid
from retina_ray.orchestration.reproduce_output import RESULTS, write_outputs
from retina_ray.orchestration.run_folder import RUN, shaping_changes
from retina_ray.orchestration.run_report import count_grades
from retina_ray.orchestration.search_folder import SEARCH
from retina_ray.reproduce.budget import Budget, resolutions
from retina_ray.reproduce.catalogue import apart
from retina_ray.reproduce.experiment import Build, Experiment, Scope
from retina_ray.reproduce.measure import Settings
from retina_ray.reproduce.results import measure_all
from retina_ray.reproduce.table import Finished
from retina_ray.training.stage import select_rows


@dataclass(frozen=True)
class Options:
    """How an experiment is run.

    Attributes:
        budget: how large; what else follows from it is in the configuration already.
        seeds: how many; None: as the paper.
        folds: of cross-validation; None: as the paper; 0: none, but the splits of the configuration.
        grid: how its runs are run.
    """

    budget: Budget = "paper"
    seeds: int | None = None
    folds: int | None = None
    grid: GridOptions = field(default_factory=GridOptions)


@dataclass(frozen=True)
class Reproduced:
    """An experiment that was run.

    Attributes:
        finished: its numbers.
        files: where each file lies that was written, by name.
    """

    finished: Finished
    files: dict[str, str]


def reproduce(
    build: Build,
    config: RunConfig,
    options: Options,
    *,
    listener: Listener = lambda record: None,
    on_run: OnRun = lambda done, total, name, failure: None,
) -> Reproduced:
    """Run an experiment, or what is left of it, and write its table and figures.

    Args:
        build: lays it out.
        config: what its arms change; its name is that of the experiment's folder, and begins the names of its runs.
        options: how.
        listener: receives the progress records of runs in this process.
        on_run: is told of every run that ends.

    Raises:
        RetinaRayError: the data set, the configuration or the cluster will not do, or runs failed; those that finished
            stay finished.
    """
    config = with_absolute_paths(config)
    scope = scope_of(config, options.budget)
    experiment = build(scope)
    seeds = options.seeds or experiment.seeds
    folds = _folds(experiment, config, options)
    if folds and experiment.arms:  # whose training images are other ones than the data set's splits say
        scope = scope_of(override(config, {"data.folds": folds, "data.fold": 0}), options.budget)
        experiment = build(scope)
    _check_external(experiment, options, folds)
    with _claimed(config) as store:
        layout = lay_out(experiment, config, seeds=seeds, folds=folds)
        run_grid(experiment, layout, config, options.grid, listener=listener, on_run=on_run)
        outcomes = {
            arm: [[outcome_of(folder_of(run)) for run in runs] for runs in of_seeds] for arm, of_seeds in layout.items()
        }
        evaluate = config.evaluate
        settings = Settings(evaluate.bootstrap, evaluate.level, evaluate.bins)
        cells, gains = measure_all(experiment, outcomes, settings)
        finished = Finished(
            experiment,
            cells,
            gains,
            apart=apart(experiment, scope, debug=options.budget == "debug", folds=folds),
            level=evaluate.level,
            setting=_setting(experiment, config, options, seeds=seeds, folds=folds),
        )
        data = {path: fingerprint_of(path) for path in (config.data.path, options.grid.external) if path}
        files = write_outputs(store, finished, config, outcomes=outcomes, layout=layout, data=data)
        return Reproduced(finished, files)


def scope_of(config: RunConfig, budget: Budget) -> Scope:
    """Return what a grid depends on beside the paper.

    Raises:
        ConfigError: no data set is configured, or it lacks a task.
        DataError: it cannot be read.
    """
    dataset = open_dataset(config)
    selection = select_rows(config, dataset)
    plan = catalogue.plan(config, {task.name: task for task in dataset.tasks})
    return Scope(
        method=config.method.name,
        model=next(stage.model for stage in plan.stages if stage.name in plan.finals),
        has_baselines=bool(plan.baselines),
        tasks=config.method.tasks,
        grades={task.name: task.grades for task in dataset.tasks},
        counts=count_grades(selection, dataset.tasks),
        resolutions=resolutions(config, budget),
        sources=sources_of(dataset),
    )


def _folds(experiment: Experiment, config: RunConfig, options: Options) -> int | None:
    """Return the folds of cross-validation: those asked for, else the paper's unless a source is held out."""
    if options.folds is not None:
        return options.folds or None
    return None if config.data.hold_out is not None else experiment.folds


def _check_external(experiment: Experiment, options: Options, folds: int | None) -> None:
    needs = any(arm.external for arm in experiment.arms)
    if needs and not options.grid.external:
        fix = "add --external FOLDER, a data set of low-resolution photographs that are graded"
        raise ConfigError("this experiment grades an external data set", "--external", fix)
    if options.grid.external and not needs:
        raise ConfigError(
            "this experiment takes no external data set", f"--external {options.grid.external}", "drop it"
        )
    if needs and folds is not None:
        what = "every fold's networks would grade all of the external data set"
        raise ConfigError(what, f"--folds {folds}", "leave it out, and give more --seeds")


@contextmanager
def _claimed(config: RunConfig) -> Iterator[Store]:
    """Give the experiment's folder, which no other process of this machine can claim until the block ends."""
    store = Store(config.runtime.storage).child(config.name)
    for file, what in ((RUN, "a run"), (SEARCH, "a search")):
        if store.exists(file):
            raise ConfigError(f"{what} has this name", store.uri, "choose another --name")
    if store.exists(RESULTS):
        before = from_mapping(json.loads(store.read_bytes(RESULTS))["config"])
        if changed := shaping_changes(before, config):
            raise ConfigError("an experiment with other settings has this name", changed, "choose another --name")
    if store.is_local:
        with writing(store.local_path):
            store.local_path.mkdir(parents=True, exist_ok=True)
    with alone(store, "experiment"):
        yield store


def _setting(experiment: Experiment, config: RunConfig, options: Options, *, seeds: int, folds: int | None) -> str:
    if not experiment.arms:
        return f"Data set: {config.data.path}."
    dealt = "the data set's splits"
    if folds is not None:
        dealt = f"{folds}-fold cross-validation (one fold tests, one chooses the epoch, the rest train), folds pooled"
    if config.data.hold_out is not None:
        dealt = f"{config.data.hold_out} held out"
    hidden = ", one grade hidden per training image that has several" if config.data.hide_grades == "half" else ""
    external = f"; external: {options.grid.external}" if options.grid.external else ""
    return f"Data set: {config.data.path}{hidden}{external}; budget: {options.budget}; seeds: {seeds}; {dealt}."
