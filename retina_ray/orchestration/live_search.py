"""A search while it runs: what the journal, Optuna and successive halving know of it, and Ray Tune's way to them.

Ray Tune only runs trials here. Its own snapshots are not used: they lag behind the trials, and hold no scheduler.
"""

import math
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Literal

from ray.tune.schedulers import FIFOScheduler, TrialScheduler
from ray.tune.search import Searcher

from retina_ray.errors import ConfigError, RetinaRayError
from retina_ray.orchestration.halving import Halving
from retina_ray.search.goals import Goal, require_figures
from retina_ray.search.journal import Event, Journal, State
from retina_ray.search.study import SearchStudy

MAX_DEATHS = 3
"""Deaths of a trial's process that are survived by running it again."""


class LiveSearch:
    """Hands out trials and takes in what they reach; ``error`` is what the user did wrong, found out on the way.

    Args:
        journal: of this search, perhaps with trials from before.
        study: fresh.
        goals: what is optimised.
        halving: fresh; None where no trial is stopped early.
        trials: how many there are to be in all.
        check: raises ConfigError for overrides that make no configuration; their trial fails, and is never run.

    Raises:
        ConfigError: the trials in the journal are not those that the study suggests.
    """

    def __init__(
        self,
        journal: Journal,
        study: SearchStudy,
        goals: Sequence[Goal],
        *,
        halving: Halving | None,
        trials: int,
        check: Callable[[dict[str, Any]], object] = lambda overrides: None,
    ) -> None:
        self._journal = journal
        self._study = study
        self._goals = goals
        self._halving = halving
        self._trials = trials
        self._check = check
        self._running: set[int] = set()
        self._waiting: list[int] = []
        self._deaths: Counter[int] = Counter()
        self._completed: list[dict[str, Any]] = []  # overrides
        self.error: RetinaRayError | None = None
        records = sorted(journal.trials.values(), key=lambda record: record.number)
        study.replay(records, self._repeat)
        for number in [record.number for record in records if record.state == "running"]:
            if self.is_stopped(number):
                self.end(number, "stopped")  # killed between the decision and its execution
            else:
                self._line_up(number)

    @property
    def left(self) -> int:
        """Number of trials still to be run or finished."""
        return len(self._waiting) + max(0, self._trials - len(self._journal.trials))

    def next(self) -> tuple[int, dict[str, Any]] | Literal["later"] | None:
        """Return the number and overrides of a trial to run: an unfinished one, else a new one.

        The same configuration never runs twice at a time: the second waits and then finds the first one's result.

        Returns:
            The trial; ``later`` where all that is left waits for one that runs, or is one that runs and may have to do
            so again; None where nothing is left.
        """
        while not self._waiting and len(self._journal.trials) < self._trials:
            self._line_up(self._ask())
        for number in self._waiting:
            overrides = self._journal.trials[number].overrides
            if all(self._journal.trials[other].overrides != overrides for other in self._running):
                self._waiting.remove(number)
                self._running.add(number)
                return number, overrides
        return "later" if self._waiting or self._running else None

    def _ask(self) -> int:
        number, suggestion = len(self._journal.trials), self._study.ask()
        self._journal.ask(
            number,
            params=suggestion.params,
            distributions=suggestion.distributions,
            overrides=suggestion.overrides,
        )
        self._add(number)
        return number

    def _line_up(self, number: int) -> None:
        """Have a trial wait for its turn, or fail where it can have none."""
        try:
            self._check(self._journal.trials[number].overrides)
        except ConfigError as error:
            self.end(number, "failed", reason=str(error))
        else:
            self._waiting.append(number)

    def report(self, number: int, result: Mapping[str, Any]) -> bool:
        """Take a trial's report and return whether it is to be stopped.

        A trial that is run again reports once more what is known already, which changes nothing.

        Raises:
            ConfigError: the trial has no such figure as is to be optimised.
        """
        record = self._journal.trials[number]
        if record.reports and result["epoch"] <= record.reports[-1].epoch:
            return False
        figures = result["figures"]
        require_figures(self._goals, figures)
        stop = self._judge(number, result["epoch"], figures)
        self._journal.report(
            number,
            epoch=result["epoch"],
            figures=figures,
            stopped=stop,
            seconds=result["seconds"],
            stages=result["stages"],
        )
        # From the record, which knows no NaN: what is told now and what is told after a resume are the same.
        self._study.report(number, record.reports[-1], step=len(record.reports) - 1)
        return stop

    def is_stopped(self, number: int) -> bool:
        """Return whether the last report of a trial had it stopped."""
        reports = self._journal.trials[number].reports
        return bool(reports) and reports[-1].stopped

    def end(self, number: int, state: State, *, reason: str = "") -> None:
        """Take the end of a trial."""
        self._running.discard(number)
        self._journal.end(number, state, reason=reason)
        self._close(number)
        self._study.tell(self._journal.trials[number])

    def lose(self, number: int) -> None:
        """Take the death of a trial's process: the trial is run again, unless its processes die again and again."""
        self._deaths[number] += 1
        if self._deaths[number] > MAX_DEATHS:
            self.end(number, "failed", reason="its process died again and again; see the log of the driver")
        else:
            self._running.discard(number)
            self._waiting.insert(0, number)

    def _repeat(self, event: Event) -> None:
        """Bring successive halving to where it was."""
        number = event.trial.number
        if event.kind == "asked":
            self._add(number)
        elif event.report is not None:
            self._judge(number, event.report.epoch, event.report.figures)
        else:
            self._close(number)

    def _add(self, number: int) -> None:
        if self._halving is not None:
            self._halving.add(number)

    def _judge(self, number: int, epoch: float, figures: Mapping[str, float | None]) -> bool:
        # An equal configuration was trained to its end: stopping saves nothing, and its value is known already.
        if self._halving is None or self._journal.trials[number].overrides in self._completed:
            return False
        goal = self._goals[0]
        value = figures.get(goal.metric)
        return self._halving.stops(number, epoch, goal.gain(math.nan if value is None else value))

    def _close(self, number: int) -> None:
        record = self._journal.trials[number]
        if record.state == "complete":
            self._completed.append(record.overrides)
        if self._halving is not None:
            self._halving.remove(number)


class _Unsaved:
    """What Ray Tune pickles for a restoration of its own, which never comes: nothing."""

    def __getstate__(self) -> dict[str, Any]:
        return {}


class JournalSearcher(_Unsaved, Searcher):
    """Ray Tune's searcher: asks the search for trials, and tells it when they end.

    Args:
        search: the state of the search.
    """

    def __init__(self, search: LiveSearch) -> None:
        super().__init__()
        self._search = search
        self._numbers: dict[str, int] = {}

    def suggest(self, trial_id: str) -> Any:
        """Return the next trial as Ray Tune's configuration of it."""
        following = self._search.next()
        if following is None:
            return Searcher.FINISHED
        if following == "later":
            return None
        self._numbers[trial_id], overrides = following
        return {"number": following[0], "overrides": overrides}

    def on_trial_complete(self, trial_id: str, result: dict[str, Any] | None = None, error: bool = False) -> None:
        """Take the end of a trial; one that was only interrupted has not ended."""
        number = self._numbers[trial_id]
        result = result or {}
        if error:
            self._search.lose(number)
        elif "failure" in result:
            self._search.end(number, "failed", reason=result["failure"])
        elif self._search.is_stopped(number):
            self._search.end(number, "stopped")
        elif result.get("done"):
            self._search.end(number, "complete")

    def save(self, checkpoint_path: str) -> None:
        """Do nothing: the journal has it all."""

    def restore(self, checkpoint_path: str) -> None:
        """Do nothing: the journal has it all."""


class JournalScheduler(_Unsaved, FIFOScheduler):
    """Ray Tune's scheduler: passes reports to the search, and its decisions back.

    Args:
        search: the state of the search.
    """

    def __init__(self, search: LiveSearch) -> None:
        super().__init__()  # type: ignore[no-untyped-call]  # Ray's
        self._search = search

    def on_trial_result(self, tune_controller: Any, trial: Any, result: dict[str, Any]) -> str:
        """Take a report; Ray Tune repeats the last one when a trial is done."""
        if result.get("done") or "failure" in result:
            return str(TrialScheduler.CONTINUE)
        try:
            stop = self._search.report(trial.config["number"], _nested(result))
        except RetinaRayError as error:
            self._search.error = error  # Ray Tune passes on no more than its text
            raise
        return str(TrialScheduler.STOP if stop else TrialScheduler.CONTINUE)


def _nested(flat: Mapping[str, Any]) -> dict[str, Any]:
    """Return a report as the trial made it: Ray Tune flattens its mappings with slashes."""
    own = {name: flat[name] for name in ("epoch", "seconds")}
    for group in ("figures", "stages"):
        start = f"{group}/"
        own[group] = {name.removeprefix(start): value for name, value in flat.items() if name.startswith(start)}
    return own
