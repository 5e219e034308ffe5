"""A hyper-parameter search from its space to its trials: Ray Tune runs them, each with the `train_driver`'s stages."""

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from functools import partial
from typing import Any

import ray.tune

from retina_ray.config import RunConfig, override
from retina_ray.data.store import Store
from retina_ray.errors import ConfigError
from retina_ray.orchestration.halving import Halving
from retina_ray.orchestration.live_search import MAX_DEATHS, JournalScheduler, JournalSearcher, LiveSearch
from retina_ray.orchestration.preparation import PlannedRun, plan_run
from retina_ray.orchestration.ray_settings import connected, require_dashboard
from retina_ray.orchestration.resources import WorkerResources, cluster_resources
from retina_ray.orchestration.search_folder import SearchFolder, plain_goals
from retina_ray.orchestration.search_tracking import SearchTracker
from retina_ray.orchestration.shared_stages import draw, train_shared
from retina_ray.orchestration.trial_resources import share_among_trials, with_gpus
from retina_ray.orchestration.trials import run_trials, trial_base
from retina_ray.orchestration.tune_trial import fold_config, run_trial
from retina_ray.search.goals import Goal, goals_of, require_comparable
from retina_ray.search.journal import Journal, TrialRecord
from retina_ray.search.space import load_space
from retina_ray.search.study import SearchStudy

Record = dict[str, Any]


@dataclass(frozen=True)
class SearchOptions:
    """How a search is done.

    Attributes:
        space: name of the search space; see `load_space`.
        trials: how many.
        metric: what to optimise instead of the space's own, several separated by commas.
        scheduler: whether trials that fall behind are stopped.
        concurrent: trials side by side; None: as many as fit.
        gpus_per_trial: GPUs of a trial, fractions too; None: those that the configuration asks for.
        time_budget_s: seconds after which no trial goes on; None: no limit.
        points: parameters of the first trials instead of the space's own; None: those.
        cv: folds of cross-validation; None: none.
    """

    space: str
    trials: int
    metric: str | None = None
    scheduler: str = "asha"
    concurrent: int | None = None
    gpus_per_trial: float | None = None
    time_budget_s: float | None = None
    points: tuple[dict[str, Any], ...] | None = None
    cv: int | None = None


@dataclass(frozen=True)
class SearchResult:
    """A search whose trials are done.

    Attributes:
        folder: on storage.
        config: what it started from, with absolute paths.
        goals: what was optimised.
        trials: by number.
        mlflow_run: id of the search's MLflow run; empty where tracking is disabled.
    """

    folder: SearchFolder
    config: RunConfig
    goals: tuple[Goal, ...]
    trials: list[TrialRecord]
    mlflow_run: str


def run_search(
    config: RunConfig,
    options: SearchOptions,
    *,
    resume: bool = False,
    listener: Callable[[Record], None] = lambda record: None,
    on_trial: Callable[[TrialRecord], None] = lambda record: None,
) -> SearchResult:
    """Run the trials of a search.

    Args:
        config: what the trials start from; its name is the search's.
        options: what is searched for, and how.
        resume: continue a search of the same name.
        listener: receives progress records of the stages that all trials share, each with ``stage`` and ``kind``.
        on_trial: is told of each event of a trial, after a resume first of the trials that ended before.

    Raises:
        RetinaRayError: the space, the configuration or the cluster will not do.
    """
    if options.cv and config.data.folds is not None:
        what = "a search with --cv deals its folds itself, and its trials would see test images of data.fold"
        raise ConfigError(what, f"data.folds={config.data.folds}", "leave out one of the two")
    space = load_space(options.space)
    goals = goals_of(space, options.metric)
    config = with_gpus(config, options.gpus_per_trial)
    plain = config.model_dump(mode="json")
    points = tuple(space.first(plain) if options.points is None else options.points)
    halves = options.scheduler == "asha" and len(goals) == 1
    study = SearchStudy(space, goals, config=plain, points=points, seed=config.seed)
    drawn = draw(space, config, points)
    require_comparable(goals, drawn)
    run = plan_run(config)
    described = {
        "space": options.space,
        "goals": plain_goals(goals),
        "trials": options.trials,
        "scheduler": "asha" if halves else "none",
        "cv": options.cv,
        "points": points,
        "fingerprint": run.dataset.manifest.fingerprint,
    }
    with ExitStack() as stack:
        stack.enter_context(connected(run.config.runtime, for_search=True))
        nodes = cluster_resources(run.config.runtime, options.concurrent or 1)
        share, concurrent = share_among_trials(
            run.config.runtime, nodes, concurrent=options.concurrent, gpus_per_trial=options.gpus_per_trial
        )
        if share.workers and (halves or options.time_budget_s is not None):
            require_dashboard()
        folds = _folds(run, options.cv)
        described["artifacts"] = _addresses(folds, use_gpu=share.use_gpu)
        folder, resumed = stack.enter_context(SearchFolder.claim(run.config, described, resume=resume))
        tracker = stack.enter_context(SearchTracker(run.config, resume=resumed))
        folder.begin(run.config, described)
        for fold in folds:
            train_shared(fold, drawn, listener, nodes=nodes)

        def heard(record: TrialRecord) -> None:
            tracker(record)
            on_trial(record)

        journal = Journal(folder.store, listener=heard)
        tracker.catch_up(journal.trials.values())
        for record in journal.trials.values():
            if record.state != "running":
                on_trial(record)
        budget = options.cv or _final_epochs(run)
        live = LiveSearch(
            journal,
            study,
            goals,
            halving=Halving(budget) if halves else None,
            trials=options.trials,
            check=partial(override, run.config),
        )
        if live.left:
            _tune(run.config, folder.store, live, options, share=share, concurrent=concurrent)
        return SearchResult(folder, run.config, goals, folder.trials(), tracker.run_id)


def _folds(run: PlannedRun, folds: int | None) -> list[PlannedRun]:
    """Return the runs that a trial consists of."""
    return [run] if folds is None else [plan_run(fold_config(run.config, folds, fold)) for fold in range(folds)]


def _addresses(folds: Sequence[PlannedRun], *, use_gpu: bool) -> dict[str, str]:
    """Return the address of each stage that a trial trains, folds of cross-validation apart."""
    found = {}
    for number, fold in enumerate(folds):
        keys = fold.keys(use_gpu=use_gpu)
        suffix = f"/{number}" if len(folds) > 1 else ""
        found.update({f"{stage.name}{suffix}": keys[stage.name] for stage in fold.plan.without_test().stages})
    return found


def _final_epochs(run: PlannedRun) -> int:
    """Return the epochs of the stages that a trial is judged by."""
    finals = [stage for stage in run.plan.stages if stage.name in run.plan.finals]
    return max(int(stage.overrides.get("train.epochs", run.config.train.epochs)) for stage in finals)


def _tune(
    config: RunConfig,
    store: Store,
    live: LiveSearch,
    options: SearchOptions,
    *,
    share: WorkerResources,
    concurrent: int,
) -> None:
    base = trial_base(config, share).model_dump(mode="json")
    try:
        run_trials(
            ray.tune.with_parameters(run_trial, base=base, folds=options.cv),
            JournalSearcher(live),
            store=store,
            share=share,
            concurrent=concurrent,
            samples=live.left * (1 + MAX_DEATHS),  # at most; the searcher says when it is over
            scheduler=JournalScheduler(live),
            time_budget_s=options.time_budget_s,
        )
    except ray.tune.TuneError as error:
        raise (live.error or error) from error
