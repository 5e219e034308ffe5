"""How the command line shows a search while it runs: a table on a terminal, a line per event elsewhere."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from typing import TYPE_CHECKING

from rich.live import Live
from rich.table import Table

from retina_ray.cli.console import error_console

if TYPE_CHECKING:
    from retina_ray.search.goals import Goal
    from retina_ray.search.journal import TrialRecord

SHOWN = 20
"""Rows of the live table: the trials that run, then the last that ended."""

_COLOURS = {"running": "cyan", "complete": "green", "stopped": "yellow", "failed": "red"}


class SearchDisplay:
    """Shows trials as they are asked for, report and end.

    Args:
        trials: how many there are to be.
        metrics: figures to show.
        live: the table on a terminal, which the first event starts, or None.
        unit: what trials report after, ``epoch`` or ``fold``.
    """

    def __init__(self, trials: int, metrics: Sequence[str], live: Live | None, *, unit: str = "epoch") -> None:
        self._trials = trials
        self._metrics = metrics
        self._live = live
        self._unit = unit
        self._out = error_console()
        self._records: dict[int, TrialRecord] = {}

    def __call__(self, record: "TrialRecord") -> None:
        """Show a trial's latest event."""
        self._records[record.number] = record
        if self._live is None:
            self._out.print(self._line(record), markup=False, soft_wrap=True)
        else:
            self._live.start()
            self._live.update(self._table(), refresh=True)

    def _line(self, record: "TrialRecord") -> str:
        start = f"trial {record.number:>3}"
        if record.state == "failed":
            return f"{start}  failed: {record.reason}"
        if not record.reports:
            return f"{start}  {parameters(record)}"
        left = self._left() if record.state != "running" else ""
        reached = f"{self._unit} {record.reports[-1].epoch:g}  {self._values(record)}"
        return f"{start}  {reached}  {record.state}  {left}".rstrip()

    def _values(self, record: "TrialRecord") -> str:
        return "  ".join(f"{metric} {_figure(record.value(metric))}" for metric in self._metrics)

    def _table(self) -> Table:
        running = [record for record in self._records.values() if record.state == "running"]
        over = sorted(self._over(), key=lambda record: -(record.ended or 0))
        table = Table(title=f"{len(over)} of {self._trials} trials  {self._left()}".rstrip(), title_justify="left")
        for heading in ("trial", "parameters", self._unit, *self._metrics, "state"):
            table.add_column(heading, overflow="fold", justify="left" if heading == "parameters" else "right")
        for record in (*running, *over)[:SHOWN]:
            done = f"{record.reports[-1].epoch:g}" if record.reports else ""
            values = [_figure(record.value(metric)) for metric in self._metrics]
            state = f"[{_COLOURS[record.state]}]{record.state}[/]"
            table.add_row(str(record.number), parameters(record), done, *values, state)
        return table

    def _over(self) -> "list[TrialRecord]":
        return [record for record in self._records.values() if record.state != "running"]

    def _left(self) -> str:
        """Return how long the rest takes if a trial takes as long as those before, and as many run as now.

        Those before are those that trained something: a result that was taken over is there within a second.
        """
        over = self._over()
        missing = self._trials - len(over)
        if not missing:
            return "done"
        took = [record.reports[-1].seconds for record in over if "trained" in record.stages.values()]
        if not took:
            return ""
        seconds = sum(took) / len(took) * missing / max(1, len(self._records) - len(over))
        return f"about {timedelta(seconds=round(seconds))} left"


def parameters(record: "TrialRecord") -> str:
    """Return a trial's parameters in a line, each by the last parts of its path."""
    return "  ".join(f"{name.removeprefix('method.')}={_short(value)}" for name, value in record.params.items())


@contextmanager
def search_display(trials: int, goals: "Sequence[Goal]", *, unit: str = "epoch") -> Iterator[SearchDisplay]:
    """Show a search on standard error, from its first event until the block ends."""
    out, metrics = error_console(), [goal.metric for goal in goals]
    if not out.is_terminal:
        yield SearchDisplay(trials, metrics, None, unit=unit)
        return
    live = Live(console=out, auto_refresh=False)
    try:
        yield SearchDisplay(trials, metrics, live, unit=unit)
    finally:
        live.stop()


def _figure(value: float | None) -> str:
    return "" if value is None else f"{value:.3f}"


def _short(value: object) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)
