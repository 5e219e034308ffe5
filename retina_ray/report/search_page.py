"""The report of a hyper-parameter search: what stands on its page.

What is not here: its figures (``search_sections``), how the page looks (``search.html.j2``), and reading a search's
folder (``orchestration``).
"""

import re
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import timedelta
from pathlib import Path
from statistics import median
from typing import Any

from markupsafe import Markup

from retina_ray.report import tables
from retina_ray.report.html import flatten, write_page
from retina_ray.report.quantities import quantity
from retina_ray.report.search_data import SearchData, WinnerRun, named
from retina_ray.report.search_points import STATES, last_values, short_names, stage_counts, task_metrics
from retina_ray.report.search_sections import figures_and_notes
from retina_ray.report.tables import Cell, Row
from retina_ray.search.goals import Goal
from retina_ray.search.journal import TrialRecord


@dataclass(frozen=True)
class Finding:
    """What the winner reaches in one goal: what it is, its value, the unit, and a word on the other trials."""

    label: str
    value: str
    unit: str
    others: str


def write_search_report(data: SearchData, path: Path) -> Path:
    """Write the report as one HTML file that needs nothing else; an older one is replaced whole.

    Returns:
        The path.
    """
    return write_page("search.html.j2", _context(data), path)


def _context(data: SearchData) -> dict[str, Any]:
    figures, left_out = figures_and_notes(data)
    summaries = data.run.summaries if data.run else ()
    return {
        "title": data.title,
        "facts": list(_facts(data)),
        "findings": list(_findings(data)),
        "best": f"{'Winner' if data.run else 'Best so far'}: trial {data.winner}",
        "test_table": tables.to_html(tables.comparison_rows(summaries, baseline="single_task")),
        "level": f"{data.level:.0%}" if any(summary.intervals for summary in summaries) else "",
        "notes": [*data.notes, *_failures(data.trials), *left_out],
        "figures": figures,
        "trial_table": tables.to_html(trial_rows(data)),
        "has_reasons": any(trial.reason for trial in data.trials),
        "stage_table": tables.to_html(_stage_rows(data.trials)),
        "config": data.config_yaml,
        "environment": list(flatten(data.environment)),
    }


def _facts(data: SearchData) -> Iterator[tuple[str, str]]:
    """Yield what was searched and what came out, as label and value."""
    yield "Search space", data.space
    goals = (f"{'largest' if goal.mode == 'max' else 'least'} validation {_name(goal)}" for goal in data.goals)
    yield "Goals" if len(data.goals) > 1 else "Goal", ", ".join(goals)
    yield "Trials", f"{len(data.trials)} of {data.planned}{_states(data.trials)}"
    yield "Scheduler", "ASHA, which stops trials that fall behind" if data.scheduler == "asha" else data.scheduler
    if data.folds:
        yield "Cross-validation", f"{data.folds} folds"
    seconds = sum(trial.reports[-1].seconds for trial in data.trials if trial.reports)
    yield "Time in trials", f"{timedelta(seconds=round(seconds))} h"
    for best in (trial for trial in data.trials if trial.number == data.winner):
        yield "Winner" if data.run else "Best so far", f"trial {best.number}: {_parameters(best)}"
    if data.run:
        yield "Winner's run", data.run.uri
        yield "Winner's report", _link(data.run)
        yield "Winner's bundle", data.run.bundle
        if data.run.model_version is not None:
            yield "Model version", str(data.run.model_version)


def _name(goal: Goal) -> str:
    """Return a goal's label without its unit."""
    return quantity(goal.metric).label.partition(" (")[0]


def _states(trials: Sequence[TrialRecord]) -> str:
    counts = Counter(trial.state for trial in trials)
    named = ", ".join(f"{counts[state]} {state}" for state in STATES if counts[state])
    return f": {named}" if named else ""


def _parameters(trial: TrialRecord) -> str:
    names = short_names(list(trial.params))
    return ", ".join(f"{names[name]} {_parameter(value)}" for name, value in trial.params.items())


def _parameter(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def _link(run: WinnerRun) -> str:
    if run.link:
        return Markup('<a href="{}">{}</a>').format(run.link, run.link)
    return f"not written yet: retina-ray report {run.uri}"


def _failures(trials: Sequence[TrialRecord]) -> list[str]:
    """Return the reasons for which trials failed, each once, the commonest first."""
    numbers: dict[str, list[int]] = {}
    for trial in trials:
        if trial.reason:
            numbers.setdefault(trial.reason, []).append(trial.number)
    ordered = sorted(numbers.items(), key=lambda item: -len(item[1]))
    return [f"Failed: {named(those)} ({reason})." for reason, those in ordered]


def _findings(data: SearchData) -> Iterator[Finding]:
    for goal in data.goals:
        shown, points = quantity(goal.metric), last_values(data.trials, goal.metric)
        unit = shown.label.partition(" (")[2].removesuffix(")")
        ended = sorted(point.value for point in points if point.state in ("complete", "stopped"))
        for own in (point for point in points if point.number == data.winner):
            middle = f"{shown.text(median(ended))} {unit}".rstrip()
            others = f"Median of the {len(ended)} completed and stopped trials: {middle}." if len(ended) > 2 else ""
            yield Finding(f"validation {_name(goal)}", shown.text(own.value), unit, others)


def trial_rows(data: SearchData) -> list[Row]:
    """Return the table of all trials, the best by the first goal at the top, the failed at the bottom."""
    metrics = [goal.metric for goal in data.goals]
    for goal in data.goals:
        metrics += [name for name in task_metrics(goal.metric, data.trials, data.tasks).values() if name not in metrics]
    values = {metric: {each.number: each.value for each in last_values(data.trials, metric)} for metric in metrics}
    first = data.goals[0]

    def place(trial: TrialRecord) -> tuple[bool, bool, float, int]:
        value = values[first.metric].get(trial.number)
        gain = 0.0 if value is None else first.gain(value)
        return trial.state == "failed", value is None, -gain, trial.number

    names = short_names(list(dict.fromkeys(name for trial in data.trials for name in trial.params)))
    with_reasons = any(trial.reason for trial in data.trials)
    rows: list[Row] = []
    for trial in sorted(data.trials, key=place):
        last = trial.reports[-1] if trial.reports else None
        cells = {"Trial": Cell(str(trial.number), _mark(data, trial.number)), "State": Cell(trial.state)}
        for metric in metrics:
            value = values[metric].get(trial.number)
            label = quantity(metric).label
            cells[label[0].upper() + label[1:]] = Cell("" if value is None else quantity(metric).text(value))
        cells["Folds" if data.folds else "Epochs"] = Cell(f"{last.epoch:g}" if last else "")
        cells["Seconds"] = Cell(f"{last.seconds:,.{1 if last.seconds < 10.0 else 0}f}" if last else "")
        for name, short in names.items():
            cells[_breakable(short)] = Cell(_parameter(trial.params[name]) if name in trial.params else "")
        if with_reasons:
            cells["Reason of failure"] = Cell(trial.reason)
        rows.append(cells)
    return rows


def _breakable(name: str) -> Markup:
    """Return a name that a browser may break after its dots and underscores."""
    return Markup("<wbr>").join(re.split(r"(?<=[._])", name))


def _mark(data: SearchData, number: int) -> str:
    """Return what is special about a trial."""
    if number == data.winner:
        return "winner" if data.run else "best so far"
    return "on the front" if len(data.goals) > 1 and number in data.front else ""


def _stage_rows(trials: Sequence[TrialRecord]) -> list[Row]:
    return [
        {"Stage": Cell(stage), **{how.capitalize(): Cell(f"{count:,}") for how, count in counts.items()}}
        for stage, counts in stage_counts(trials).items()
    ]
