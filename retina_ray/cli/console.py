"""How the command line speaks: progress, tables, JSON."""

import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import partial
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeRemainingColumn
from rich.table import Table

from retina_ray.metrics.json_text import json_text

if TYPE_CHECKING:  # at run time it would bring torch along, which most verbs do without
    from retina_ray.metrics.summary import TaskSummary

Record = dict[str, Any]

WIDTH = 140
"""Columns of a line in a file or pipe, which has no width of its own."""

TABLE_METRICS = {
    "accuracy": "accuracy",
    "confidence": "confidence",
    "error": "error",
    "ece": "calibration error",
    "kappa_quadratic": "quadratic kappa",
    "auroc": "AUROC",
}
"""Columns of the result table: metric -> heading."""


def console() -> Console:
    """Return the console for results; in a file or pipe its lines are long enough for tables."""
    return Console(highlight=False, width=None if sys.stdout.isatty() else WIDTH)


def error_console() -> Console:
    """Return the console for progress and errors, which leaves standard output to results."""
    return Console(stderr=True, highlight=False, width=None if sys.stderr.isatty() else WIDTH)


def print_json(value: Any) -> None:
    """Write a value for programs to read; NaN becomes null."""
    print(json_text(value))


def result_table(summaries: "Sequence[TaskSummary]", *, title: str) -> Table:
    """Return a table of the models' main figures per task, with intervals where there are any."""
    table = Table(title=title, title_justify="left")
    table.add_column("task")
    table.add_column("model")
    table.add_column("images", justify="right")
    for heading in TABLE_METRICS.values():
        table.add_column(heading, justify="right")
    for summary in sorted(summaries, key=lambda each: (each.task, each.model != "single_task", each.model)):
        cells = [_cell(summary, name) for name in TABLE_METRICS]
        table.add_row(summary.task, summary.model.replace("_", " "), str(summary.n), *cells)
    return table


def _cell(summary: "TaskSummary", name: str) -> str:
    value = summary.metrics[name]
    if value != value:
        return "-"
    text = f"{value:.3f}"
    if name not in summary.intervals or name not in ("accuracy", "kappa_quadratic"):
        return text
    low, high = summary.intervals[name]
    return f"{text} \\[{low:.2f}, {high:.2f}]"


_WORTH_TELLING_S = 3.0


class StageDisplay:
    """Shows the records of a run: bars on a terminal, a line per epoch elsewhere.

    Args:
        out: console to show them on.
        progress: the live display; it draws nothing where the console is no terminal.
    """

    def __init__(self, out: Console, progress: Progress) -> None:
        self._out = out
        self._progress = progress
        self._bars: dict[str, TaskID] = {}
        self._reused: set[str] = set()
        self._started: dict[str, float] = {}
        self._lock = threading.Lock()

    def __call__(self, record: Record) -> None:
        """Show a record."""
        with self._lock:
            kind, stage = record["kind"], record["stage"]
            if kind in ("step", "epoch", "restored"):
                self._advance(stage, record)
            if kind == "reused":
                self._reused.add(stage)
            if kind == "started":
                self._started[stage] = time.monotonic()
            if kind == "step" and not self._out.is_terminal:
                return
            if kind == "finished" and stage in self._reused:  # its time is that of the run that made it
                return
            if line := _line(record) + (self._starting(record) if kind == "finished" else ""):
                self._progress.console.print(f"{stage:>16}  {line}", markup=False)
            if kind == "finished" and stage in self._bars:
                self._progress.remove_task(self._bars.pop(stage))

    def _starting(self, record: Record) -> str:
        """Return how long a stage took in all where its processes took seconds of that to start and to end."""
        begun = self._started.get(record["stage"])
        whole = 0.0 if begun is None else time.monotonic() - begun
        if whole - record["wall_s"] < _WORTH_TELLING_S:
            return ""
        return f", {whole:.0f} s with the start and end of its processes"

    def _advance(self, stage: str, record: Record) -> None:
        if stage not in self._bars:
            self._bars[stage] = self._progress.add_task(stage, total=record["epochs"])
        self._progress.update(self._bars[stage], completed=round(record["epoch"], 2))


def _line(record: Record) -> str:
    """Return what is worth a line of a record, or nothing."""
    match record["kind"]:
        case "started":
            return "started"
        case "reused":
            return "reused: nothing it depends on has changed"
        case "restored":
            damaged = record["damaged"]
            passed = f", damaged and passed over: {', '.join(damaged)}" if damaged else ""
            return f"resumed at step {record['step']}{passed}"
        case "failed":
            ranks = ", ".join(map(str, record["ranks"]))
            return f"failed on rank {ranks}: {record['reason']}"
        case "moving":
            where = "from its beginning" if record["step"] is None else f"with a checkpoint at step {record['step']}"
            return f"its machine is taken away; it goes on {where}"
        case "stalled":
            where = f"what it was doing is in {record['file']}"
            return f"no step for {record['seconds']:g} s on rank {record['rank']}: {where}"
        case "label":
            return f"{record['images']} images without a {record['task']} grade"
        case "epoch":
            rate = record.get("images_per_second", 0.0)
            return (
                f"epoch {record['epoch']:.0f}/{record['epochs']}  loss {record['validation_criterion']:.3f}  "
                f"{_validation(record)}  {rate:.{0 if rate >= 10 else 1}f} images/s"
            )
        case "finished":
            return f"finished in {record['wall_s']:.0f} s"
    return ""


def _validation(record: Record) -> str:
    """Return what an epoch reached on validation images, as far as its stage measures it."""
    accuracies = _of_kind(record, "validation_accuracy_")
    precisions = _of_kind(record, "validation_ap_")
    parts = []
    if "validation_psnr" in record:
        parts.append(f"PSNR {record['validation_psnr']:.2f} dB")
    if precisions:
        parts.append("AP " + ", ".join(f"{name} {value:.2f}" for name, value in precisions.items()))
    if accuracies:
        parts.append("accuracy " + ", ".join(f"{name} {value:.1%}" for name, value in accuracies.items()))
    return "  ".join(parts)


def _of_kind(record: Record, prefix: str) -> dict[str, float]:
    return {name.removeprefix(prefix): value for name, value in record.items() if name.startswith(prefix)}


@contextmanager
def stage_display() -> Iterator[StageDisplay]:
    """Show a run's progress on standard error until the block ends."""
    out = error_console()
    columns = (TextColumn("{task.description:>16}"), BarColumn(), MofNCompleteColumn(), TimeRemainingColumn())
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:
        yield StageDisplay(out, progress)


@contextmanager
def counting(description: str) -> Iterator[Callable[[int, int], None]]:
    """Show the progress of something countable: how far, how fast, how long still.

    Yields the function to call with (done, total); lines instead of a bar where standard error is no terminal.
    """
    with counting_phases() as update:
        update(description, 0, 0)
        yield partial(update, description)


@contextmanager
def counting_phases() -> Iterator[Callable[[str, int, int], None]]:
    """As `counting`, for work in phases of a pace of their own.

    Yields the function to call with (phase, done, total), a phase's first time when it begins.
    """
    out = error_console()
    columns = (TextColumn("{task.description}"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[pace]}"))
    counts: dict[str, _Count] = {}
    with Progress(*columns, console=out, transient=True, disable=not out.is_terminal) as progress:

        def update(phase: str, done: int, total: int) -> None:
            if phase not in counts:
                counts[phase] = _Count(phase, out, progress)
            counts[phase].show(done, total)

        yield update


class _Count:
    """One bar of `counting`, or its lines."""

    def __init__(self, description: str, out: Console, progress: Progress) -> None:
        self._description, self._out, self._progress = description, out, progress
        self._bar = progress.add_task(description, pace="")
        self._begun: tuple[int, float] | None = None  # how many were done, and when
        self._shown = -1

    def show(self, done: int, total: int) -> None:
        pace = self._pace(done, total)
        self._progress.update(self._bar, completed=done, total=total or None, pace=pace)
        tenth = 10 * done // max(1, total)
        if total and not self._out.is_terminal and tenth > self._shown:
            if done:  # else the first photographs would wait for the second tenth
                self._shown = tenth
            self._out.print(f"{self._description}: {done}/{total}{', ' if pace else ''}{pace}", markup=False)

    def _pace(self, done: int, total: int) -> str:
        """Return the pace since the first call: what comes before it is processes that start."""
        now = time.monotonic()
        before, begun = self._begun = self._begun or (done, now)
        if done == before:
            return ""
        rate = (done - before) / max(now - begun, 1e-9)
        return f"{rate:.1f} images/s, {timedelta(seconds=round((total - done) / rate))} left"
