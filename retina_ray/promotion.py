"""The rule by which a version of a model may take the champion's place: two bundles' figures in, objections out.

For each task that the champion grades, the other version, the candidate, must

1. grade it too, with the same grades,
2. have been measured on the same test images with the same grades (`data.tested_images`); a bundle of an earlier
   release does not say on which, so it counts as measured on others,
3. not be worse beyond chance, in quadratic kappa as in accuracy: where both models' predictions are at hand, the
   interval of the paired difference must not lie below zero as a whole (both err on the same hard images, so that this
   is the sharper comparison); else its figure must not lie below the lower end of the champion's interval. Without
   an interval the champion's figure itself is the lower end, and a figure that is undefined is no objection.

What is not here: where bundles and predictions come from, and the move (``orchestration.promote``).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from math import isfinite
from typing import Literal

from retina_ray.bundle_manifest import BundleManifest, TaskMetrics
from retina_ray.data.schema import Task
from retina_ray.metrics.comparison import TaskDifference

FIGURES = {"kappa_quadratic": "quadratic kappa", "accuracy": "accuracy"}
"""Metrics that decide, with their names for people."""

Verdict = Literal["better", "equal", "worse within the interval", "worse", "undefined", "not comparable"]


@dataclass(frozen=True)
class Compared:
    """One figure of both versions on the test split.

    Attributes:
        task: as in the bundles.
        metric: one of `FIGURES`.
        champion: its figure; None where undefined.
        candidate: its figure; None where undefined or not graded.
        interval: (low, high) of what ``paired`` says; None where there is none.
        paired: whether the interval is that of the candidate's gain; else it is that of the champion's figure.
        verdict: on the candidate; ``worse`` is an objection.
    """

    task: str
    metric: str
    champion: float | None
    candidate: float | None
    interval: tuple[float, float] | None
    paired: bool
    verdict: Verdict


@dataclass(frozen=True)
class Comparison:
    """What was compared, and what speaks against the candidate.

    Attributes:
        figures: by task and metric; empty where there was nothing to compare with.
        objections: reasons in words; none means that the candidate may take the champion's place.
    """

    figures: tuple[Compared, ...] = ()
    objections: tuple[str, ...] = ()


def compare(
    champion: BundleManifest, candidate: BundleManifest, differences: Mapping[str, TaskDifference]
) -> Comparison:
    """Compare a candidate with the champion by the rule above.

    Args:
        champion: of the present champion.
        candidate: of the version that is to take its place.
        differences: the candidate's gains over the champion by task, where both models' predictions are at hand.
    """
    figures: list[Compared] = []
    objections: list[str] = []
    for task in champion.tasks:
        obstacle = _obstacle(task, champion, candidate)
        found = [_compared(task.name, metric, champion, candidate, differences.get(task.name)) for metric in FIGURES]
        if obstacle:
            objections.append(f"{task.name}: {obstacle}")
            found = [replace(each, verdict="not comparable") for each in found]
        figures += found
        objections += [_why_worse(each) for each in found if each.verdict == "worse"]
    return Comparison(tuple(figures), tuple(objections))


def same_test(task: Task, champion: BundleManifest, candidate: BundleManifest) -> bool:
    """Tell whether both bundles grade a task and were measured for it on the same images with the same grades."""
    return not _obstacle(task, champion, candidate)


def _obstacle(task: Task, champion: BundleManifest, candidate: BundleManifest) -> str:
    """Return why a task's figures cannot be compared, or nothing."""
    graded = {each.name: each for each in candidate.tasks}
    if task.name not in graded:
        return "the champion grades it, the candidate does not"
    if graded[task.name] != task:
        return f"its grades are {', '.join(graded[task.name].grades)}; the champion's are {', '.join(task.grades)}"
    marks = [manifest.metrics[task.name].test_fingerprint for manifest in (candidate, champion)]
    for who, mark in zip(("candidate", "champion"), marks, strict=True):
        if mark is None:
            return f"the {who}'s bundle, of an earlier release, names no test fingerprint"
    if marks[0] != marks[1]:
        return f"it was measured on other test images, of fingerprint {marks[0]}; the champion's is {marks[1]}"
    return ""


def _compared(
    task: str, metric: str, champion: BundleManifest, candidate: BundleManifest, difference: TaskDifference | None
) -> Compared:
    before, after = champion.metrics[task], candidate.metrics.get(task)
    old, new = before.metrics.get(metric), after.metrics.get(metric) if after else None
    gain = difference.intervals.get(metric) if difference else None
    # Few resamples may leave a difference without an interval, although the champion's figure has one.
    paired = gain is not None and isfinite(gain[0])
    interval = gain if paired else _interval(before, metric)
    verdict = _verdict(old, new, interval, paired=paired)
    return Compared(task, metric, old, new, interval, paired, verdict)


def _interval(found: TaskMetrics, metric: str) -> tuple[float, float] | None:
    low, high = found.intervals.get(metric, (None, None))
    return None if low is None or high is None else (low, high)


def _verdict(
    champion: float | None, candidate: float | None, interval: tuple[float, float] | None, *, paired: bool
) -> Verdict:
    if champion is None or candidate is None:
        return "undefined"
    if candidate >= champion:
        return "equal" if candidate == champion else "better"
    if interval is None:
        return "worse"
    low, high = interval
    beyond = high < 0.0 if paired else candidate < low
    return "worse" if beyond else "worse within the interval"


def _why_worse(figure: Compared) -> str:
    figures = f"{figure.candidate:.3f} against the champion's {figure.champion:.3f}"
    return f"{figure.task}: {FIGURES[figure.metric]} {figures}, {_of_interval(figure)}"


def _of_interval(figure: Compared) -> str:
    if figure.interval is None:
        return "which has no interval"
    low, high = figure.interval
    within = f"in [{low:.3f}, {high:.3f}]"
    return f"a paired difference {within}" if figure.paired else f"which lies {within}"
