"""Gather from a search's folder, and from the run of its winner, what its report shows, and write the report."""

import json
from collections.abc import Sequence
from functools import partial
from typing import Any
from urllib.parse import quote

from retina_ray.config import RunConfig, to_yaml
from retina_ray.data.store import Store
from retina_ray.metrics.summary import TaskSummary, from_record
from retina_ray.orchestration.report_file import REPORT, place_report
from retina_ray.orchestration.run_folder import METRICS, RUN
from retina_ray.orchestration.search_folder import SearchFolder
from retina_ray.report.search_data import SearchData, WinnerRun, named
from retina_ray.report.search_page import write_search_report
from retina_ray.search.journal import TrialRecord
from retina_ray.search.winner import best_trial, pareto_front, winner_config


def report_search(folder: SearchFolder) -> str:
    """Write a search's report, also while it runs.

    Returns:
        Where it lies: a path or an s3:// address.
    """
    return place_report(folder.store, partial(write_search_report, gather(folder)))


def gather(folder: SearchFolder) -> SearchData:
    """Return everything a search's report shows; what is not there yet is left out, with a note why."""
    config, described, goals, trials = folder.config(), folder.describe(), folder.goals(), folder.trials()
    front = pareto_front(trials, goals, folds=described["cv"])
    best = best_trial(trials, goals, folds=described["cv"]).number if front else None
    run, notes = _winner_run(folder, described)
    winner = described["winner"] if run else best
    return SearchData(
        title=config.name,
        space=described["space"],
        goals=goals,
        trials=trials,
        planned=described["trials"],
        scheduler=described["scheduler"],
        folds=described["cv"],
        tasks=config.method.tasks,
        winner=winner,
        run=run,
        front=[trial.number for trial in front],
        config_yaml=_configuration(config, trials, winner),
        environment=described["environment"],
        notes=[*_progress_notes(trials, described), *notes, *_surpassed(winner, best)],
        level=config.evaluate.level,
    )


def _winner_run(folder: SearchFolder, described: dict[str, Any]) -> tuple[WinnerRun | None, list[str]]:
    """Return the run of the winner, and notes on what is not at hand of it."""
    if "run" not in described:
        return None, ["No winner has been trained to its end and tested yet."]
    store = Store(described["run"])
    if not store.exists(RUN):
        note = f"Left out: what the winner reaches on test images (its run is not at {store.uri} any more)."
        return WinnerRun(uri=store.uri, model_version=described["model_version"], bundle=described["bundle"]), [note]
    return WinnerRun(
        uri=store.uri,
        link=_link(folder.store, store),
        bundle=described["bundle"],
        model_version=described["model_version"],
        summaries=_summaries(store),
    ), []


def _summaries(run: Store) -> list[TaskSummary]:
    return [from_record(record) for record in json.loads(run.read_bytes(METRICS))]


def _link(search: Store, run: Store) -> str:
    """Return the way from the search's report to the run's, which lies beside it; empty where it does not."""
    beside = search.uri.rpartition("/")[0] == run.uri.rpartition("/")[0]
    return f"../{quote(run.name)}/{REPORT}" if beside and run.exists(REPORT) else ""


def _configuration(config: RunConfig, trials: Sequence[TrialRecord], winner: int | None) -> str:
    return next((to_yaml(winner_config(config, trial)) for trial in trials if trial.number == winner), "")


def _progress_notes(trials: Sequence[TrialRecord], described: dict[str, Any]) -> list[str]:
    """Return what is still to come of the trials."""
    running = [trial.number for trial in trials if trial.state == "running"]
    missing = described["trials"] - len(trials)
    notes = []
    if running:
        fix = "or interrupted until the search is continued with --resume"
        notes.append(f"Running, {fix}: {named(running)}.")
    if missing > 0:
        notes.append(f"Not begun yet: {missing} of {described['trials']} trials.")
    return notes


def _surpassed(winner: int | None, best: int | None) -> list[str]:
    if best is None or winner == best:
        return []
    fix = "`retina-ray tune --resume` trains and tests it"
    return [f"Trial {best} has become better than trial {winner}, whose run and test figures these are; {fix}."]
