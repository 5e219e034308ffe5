"""A grid of runs, handed out so that no artifact is trained twice: two that share an unfinished one never run at once.

The first run of a seed trains the teachers that the others take over, while other seeds train theirs. What is finished
lies on storage, so a grid that is begun again hands out what is left.
"""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from ray.tune.search import Searcher

from retina_ray.config import RunConfig
from retina_ray.orchestration.live_search import MAX_DEATHS


@dataclass(frozen=True)
class GridRun:
    """A run of a grid.

    Attributes:
        number: its place in the grid.
        config: what it trains, under a name of its own.
        until: name of the last stage; empty: all.
        external: whether its networks also grade the external data set.
        keys: addresses of the artifacts of its stages.
    """

    number: int
    config: RunConfig
    until: str
    external: bool
    keys: frozenset[str]


class Grid:
    """The runs that are left, and what became of the others.

    Args:
        runs: those to run, the first ones first.
        on_end: is called with a run and why it failed, empty if it did not, when it has ended.
        finished: addresses of artifacts that are there already.
    """

    def __init__(
        self, runs: Iterable[GridRun], on_end: Callable[[GridRun, str], None], *, finished: Iterable[str] = ()
    ) -> None:
        self._waiting = list(runs)
        self._running: dict[int, GridRun] = {}
        self._finished = set(finished)
        self._deaths: Counter[int] = Counter()
        self._on_end = on_end
        self.failures: dict[str, str] = {}

    def next(self) -> GridRun | Literal["later"] | None:
        """Return a run whose unfinished artifacts nobody else trains now.

        Returns:
            The run; ``later`` where all that is left waits for one that runs, or may have to run again; None where
            nothing is left.
        """
        for run in self._waiting:
            unfinished = run.keys - self._finished
            if all(unfinished.isdisjoint(other.keys) for other in self._running.values()):
                self._waiting.remove(run)
                self._running[run.number] = run
                return run
        return "later" if self._running else None

    def end(self, number: int, failure: str = "") -> None:
        """Take the end of a run."""
        run = self._running.pop(number)
        if failure:
            self.failures[run.config.name] = failure
        else:
            self._finished |= run.keys
        self._on_end(run, failure)

    def lose(self, number: int) -> None:
        """Take the death of a run's process: it runs again, unless its processes die again and again."""
        self._deaths[number] += 1
        if self._deaths[number] > MAX_DEATHS:
            self.end(number, "its process died again and again; see the log of the driver")
        else:
            self._waiting.insert(0, self._running.pop(number))


class GridSearcher(Searcher):
    """Ray Tune's way to a grid.

    Args:
        grid: what is left.
    """

    def __init__(self, grid: Grid) -> None:
        super().__init__()
        self._grid = grid
        self._numbers: dict[str, int] = {}

    def __getstate__(self) -> dict[str, Any]:
        """Return nothing: Ray Tune's own restoration never comes."""
        return {}

    def suggest(self, trial_id: str) -> Any:
        """Return the next run as Ray Tune's configuration of a trial."""
        run = self._grid.next()
        if run is None:
            return Searcher.FINISHED
        if run == "later":
            return None
        self._numbers[trial_id] = run.number
        return {"number": run.number}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take the end of a run."""
        number = self._numbers[trial_id]
        if error or "failure" not in (result or {}):
            self._grid.lose(number)
        else:
            self._grid.end(number, (result or {})["failure"])

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: what is finished lies on storage."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: what is finished lies on storage."""


def most_trials(runs: Sequence[GridRun]) -> int:
    """Return the most trials that a grid takes, counting those whose processes die."""
    return len(runs) * (1 + MAX_DEATHS)
