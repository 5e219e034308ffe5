"""Asynchronous successive halving (ASHA, Li et al. 2018) through Ray Tune's scheduler, by the search's own numbers."""

from dataclasses import dataclass
from typing import Any

from ray.tune.schedulers import ASHAScheduler, TrialScheduler

REDUCTION = 3


@dataclass(frozen=True)
class _Named:
    """All that the scheduler wants to know of a trial: a name, here one that outlives Ray Tune's own."""

    trial_id: str


class Halving:
    """Decides after a ninth and a third of the budget whether a trial is among the best third at that point.

    That is after ``budget // 9`` epochs, at least one, and after three times as many, where that is before the end:
    whoever is stopped in the last epoch would lose weights that are as good as written.

    Args:
        budget: epochs of a whole trial, or folds.
    """

    def __init__(self, budget: int) -> None:
        self._budget = budget
        grace = max(1, budget // REDUCTION**2)
        self._scheduler: Any = ASHAScheduler(
            time_attr="epoch",
            metric="gain",
            mode="max",
            # Ray puts rungs at grace, 3 grace, 9 grace, ... up to here: this is amid the second and the third.
            max_t=2 * REDUCTION * grace,
            grace_period=grace,
            reduction_factor=REDUCTION,
            # Otherwise a trial would be stopped at max_t, whatever it reached.
            stop_last_trials=False,
        )

    def add(self, number: int) -> None:
        """Begin a trial."""
        self._scheduler.on_trial_add(None, _Named(str(number)))

    def stops(self, number: int, epoch: float, gain: float) -> bool:
        """Take what a trial reached at an epoch, more being better, and return whether it is stopped."""
        if epoch >= self._budget:
            return False
        result = {"epoch": epoch, "gain": gain}
        return bool(self._scheduler.on_trial_result(None, _Named(str(number)), result) == TrialScheduler.STOP)

    def remove(self, number: int) -> None:
        """End a trial; what it reached stays known."""
        self._scheduler.on_trial_remove(None, _Named(str(number)))
