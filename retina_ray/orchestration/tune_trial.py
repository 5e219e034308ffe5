"""One trial of a search, as Ray Tune runs it: the stages of a run but for its test, and what they reach by epoch."""

import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import ray.tune

from retina_ray.config import RunConfig, from_mapping, override
from retina_ray.data.store import Store
from retina_ray.errors import RetinaRayError
from retina_ray.methods.base import Plan
from retina_ray.orchestration.preparation import plan_run
from retina_ray.orchestration.train_driver import stage_runner
from retina_ray.search.goals import figures
from retina_ray.training.artifact import read_artifact

Record = dict[str, Any]


def run_trial(trial: Mapping[str, Any], *, base: Mapping[str, Any], folds: int | None) -> None:
    """Train a suggested configuration and report to Ray Tune; called by Tune in a process of the trial's own.

    An error that the user can solve is reported, since a trial that raises is taken for one worth a restart.

    Args:
        trial: its ``number``, and ``overrides``, values by dotted path.
        base: the configuration that the search starts from, as plain values.
        folds: number of cross-validation folds, or None.
    """
    start = time.monotonic()

    def report(epoch: float, found: Mapping[str, float], stages: Mapping[str, str]) -> None:
        seconds = time.monotonic() - start
        ray.tune.report({"epoch": epoch, "figures": dict(found), "stages": dict(stages), "seconds": seconds})

    try:
        config = override(from_mapping(base), trial["overrides"])
        train_trial(config, folds=folds, report=report, name=str(trial["number"]))
    except RetinaRayError as error:
        ray.tune.report({"epoch": 0.0, "failure": str(error)})


Reporter = Callable[[float, Mapping[str, float], Mapping[str, str]], None]
"""Takes the epochs or folds done, the figures and what became of the stages."""


def train_trial(config: RunConfig, *, folds: int | None, report: Reporter, name: str = "") -> None:
    """Train a configuration without ever looking at a test image.

    Args:
        config: of the trial.
        folds: with cross-validation, how many parts the training and validation images are dealt into, each of which
            validates once. Then a report is made after each, of the means so far; otherwise after every epoch.
        report: is called with what was reached.
        name: what log lines and metrics call the trial.

    Raises:
        RetinaRayError: as `train_driver`.
    """
    if folds is None:
        _train(config, report, name)
        return
    so_far: list[Mapping[str, float]] = []
    stages: dict[str, str] = {}
    for fold in range(folds):
        own = fold_config(config, folds, fold)
        last: list[Mapping[str, float]] = []

        def note(epoch: float, found: Mapping[str, float], became: Mapping[str, str], fold: int = fold) -> None:
            last.append(found)  # noqa: B023  # called while this fold trains
            stages.update({f"{name}/{fold}": how for name, how in became.items()})

        _train(own, note, name)
        so_far.append(last[-1])
        report(float(fold + 1), _means(so_far), stages)


def fold_config(config: RunConfig, folds: int, fold: int) -> RunConfig:
    """Return the configuration in which one part of the training and validation images validates."""
    return override(config, {"data.folds": folds, "data.fold": fold, "data.keep_test": True})


def _train(config: RunConfig, report: Reporter, name: str) -> None:
    run = plan_run(config)
    follower = _Follower(run.plan, config.method.tasks, report)
    with stage_runner(run, follower, slots=1, trial=name) as runner:
        runner.run(run.plan.without_test().stages)


class _Follower:
    """Listens to a run and reports the figures of its final networks once every one of them has some.

    The epochs of a network that is taken over from an earlier training, or that goes on after a restart, are reported
    first, each as when it was new, so that what is known of a trial never depends on where it was interrupted.
    """

    def __init__(self, plan: Plan, tasks: Sequence[str], report: Reporter) -> None:
        self._tasks = tasks
        self._report = report
        self._histories: dict[str, list[Record]] = {name: [] for name in plan.finals}
        self._stages: dict[str, str] = {}

    def __call__(self, record: Record) -> None:
        """Take a progress record."""
        stage, kind = record["stage"], record["kind"]
        if kind in ("started", "reused"):
            self._stages[stage] = "trained" if kind == "started" else "reused"
        if stage not in self._histories:
            return
        if kind == "reused":
            artifact = read_artifact(Store(record["artifact"]))
            assert artifact is not None  # as the record says
            self._take(stage, artifact.history())
        elif kind == "restored":
            self._histories[stage] = []
            self._take(stage, record["history"])
        elif kind == "epoch":
            # Workers that begin anew without a checkpoint do not say so: what they repeat, they had lost.
            self._histories[stage] = [each for each in self._histories[stage] if each["epoch"] < record["epoch"]]
            self._take(stage, [record])

    def _take(self, stage: str, epochs: Sequence[Record]) -> None:
        for record in epochs:
            self._histories[stage].append(record)
            histories = self._histories.values()
            if all(histories):
                done = sum(history[-1]["epoch"] for history in histories) / len(histories)
                self._report(done, figures(histories, self._tasks), self._stages)


def _means(folds: Sequence[Mapping[str, float]]) -> dict[str, float]:
    return {name: sum(fold[name] for fold in folds) / len(folds) for name in folds[0]}
