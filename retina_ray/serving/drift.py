"""Notices that the photographs or the scores of a served model are no longer like those it was trained on.

Processes count (`DriftCounts`), and one place for all of them watches (`DriftWatch`). Three kinds of statistics are
compared with the bundle's reference:

* the shift of each colour's mean in reference standard deviations, large from 0.25 on (Rubin 2001; Stuart 2010),
* the population stability index (PSI) of each task's confidence, large from 0.25 on (Siddiqi 2006),
* the share of photographs whose quality fails, large from 5 points above what the limits' making implies: the technical
  failures that a screening programme may have (British Diabetic Association 1997).

Large alone is no alarm: in small samples those bounds are passed by chance, the PSI's as a rule (Yurdakul and Naranjo
2020). A statistic raises the alarm where it is both large and beyond what chance does `_SIGMAS` standard errors out,
with the reference's own sampling counted in, and every sample counted as half as large as it is, since the two eyes of
a patient may be as alike as one (a design effect of 2; Kish 1965). The tests measure how often that is wrong.
"""

import time
from collections import deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import reduce
from itertools import accumulate, zip_longest
from operator import add
from typing import Literal

import numpy as np
import numpy.typing as npt
from prometheus_client import Metric
from prometheus_client.core import GaugeMetricFamily

from retina_ray.bundle_manifest import CONFIDENCE_BINS, QualityLimits, Reference
from retina_ray.data.quality import ImageMeasures
from retina_ray.serving.schema import GradeResponse

Statistic = Literal["channel_shift", "confidence_psi", "quality_failures"]

_LARGE_SHIFT = 0.25
_LARGE_PSI = 0.25
_LARGE_QUALITY_EXCESS = 0.05

_SIGMAS = 4.5
"""Beyond the usual three of control charts: some ten statistics are looked at all day."""

_DESIGN_EFFECT = 2.0

_MIN_REFERENCE = 30
"""Reference images without which a statistic is left out: their own spread would be a guess."""

_MIN_BIN_IMAGES = 10
_MIN_BIN_SHARE = 0.1
"""Of the reference in a bin of the PSI, which by custom has ten."""

_EMPTY = 0.5
"""Added to every bin, so that an empty one has a logarithm (Haldane 1956)."""

_LIMIT_SHARE = 0.01
"""Of training images outside each bound of `QualityLimits`, as ``bundle_statistics`` sets them."""

_PIECES = 48
"""Of a window, so that a day of reports every second is held in little memory."""

_CHANNELS = ("red", "green", "blue")
_EDGES: npt.NDArray[np.float64] = np.linspace(0.0, 1.0, CONFIDENCE_BINS + 1)


@dataclass(frozen=True, slots=True)
class DriftCounts:
    """What was seen of graded photographs; sums, so that the counts of several processes add up.

    Attributes:
        images: graded photographs.
        channel_sum: sums of each photograph's mean R, G and B over the fundus, each mean 0..255.
        confidence: by task, photographs in each of the `CONFIDENCE_BINS` equal bins of the calibrated confidence.
        quality_failures: photographs outside the model's quality limits.
        abstentions: by task, photographs that a human has to decide.
    """

    images: int = 0
    channel_sum: tuple[float, float, float] = (0.0, 0.0, 0.0)
    confidence: Mapping[str, tuple[int, ...]] = field(default_factory=dict)
    quality_failures: int = 0
    abstentions: Mapping[str, int] = field(default_factory=dict)

    @classmethod
    def of(cls, measures: ImageMeasures, answer: GradeResponse) -> "DriftCounts":
        """Return the counts of one photograph.

        Args:
            measures: of its fundus square at the size that data sets store, as of the reference.
            answer: to it.
        """
        return cls(
            images=1,
            channel_sum=measures.means,
            confidence={task: _one_hot(_bin_of(grade.confidence)) for task, grade in answer.tasks.items()},
            quality_failures=int(not answer.image.ok),
            abstentions={task: int(grade.abstain) for task, grade in answer.tasks.items()},
        )

    def __add__(self, other: "DriftCounts") -> "DriftCounts":
        red, green, blue = (a + b for a, b in zip(self.channel_sum, other.channel_sum, strict=True))
        tasks = {**self.abstentions, **other.abstentions}
        return DriftCounts(
            images=self.images + other.images,
            channel_sum=(red, green, blue),
            confidence={
                task: tuple(
                    map(sum, zip_longest(self.confidence.get(task, ()), other.confidence.get(task, ()), fillvalue=0))
                )
                for task in {**self.confidence, **other.confidence}
            },
            quality_failures=self.quality_failures + other.quality_failures,
            abstentions={task: self.abstentions.get(task, 0) + other.abstentions.get(task, 0) for task in tasks},
        )


@dataclass(frozen=True, slots=True)
class Reading:
    """One statistic of the window.

    Attributes:
        statistic: ``channel_shift`` in reference standard deviations, ``confidence_psi`` less what chance adds to it,
            or ``quality_failures`` as a share.
        of: colour, task, or ``any`` limit.
        value: at least 0.
        limit: what it must exceed to raise the alarm.
    """

    statistic: Statistic
    of: str
    value: float
    limit: float

    @property
    def drifted(self) -> bool:
        """Whether it raises the alarm."""
        return self.value > self.limit


class DriftWatch:
    """Compares the last day's photographs of a model with its reference.

    The window is the last ``window_s`` seconds, or the last ``min_images`` photographs where that is longer: an
    endpoint with little traffic is watched too. With fewer than ``min_images`` seen there are no readings.

    Args:
        served_as: what requests call the model.
        reference: from its bundle.
        bundle: hash, by which gauges tell two versions apart that are served at once; empty where there is one.
        window_s: seconds that are looked back; a day, so that mornings and clinics even out.
        min_images: photographs without which nothing is said.
        clock: seconds that never go back.
    """

    def __init__(
        self,
        served_as: str,
        reference: Reference,
        *,
        bundle: str = "",
        window_s: float = 86_400.0,
        min_images: int = 200,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._labels = (served_as, bundle)
        self._reference = reference
        self._window_s = window_s
        self._piece_s = window_s / _PIECES
        self._min_images = min_images
        self._clock = clock
        self._pieces: deque[tuple[float, DriftCounts]] = deque()

    def add(self, counts: DriftCounts) -> None:
        """Take in what a process has counted since it last told; of this model and no earlier version of it."""
        now = self._clock()
        self._forget(now)
        if self._pieces and now - self._pieces[-1][0] < self._piece_s:
            since, earlier = self._pieces.pop()
            self._pieces.append((since, earlier + counts))
        elif counts.images:
            self._pieces.append((now, counts))

    def window(self) -> DriftCounts:
        """Return the counts of the window."""
        self._forget(self._clock())
        return reduce(add, (counts for _, counts in self._pieces), DriftCounts())

    def readings(self) -> list[Reading]:
        """Return what the window shows; empty where it holds too few photographs."""
        return self._readings(self.window())

    def gauges(self) -> list[Metric]:
        """Return the readings, their limits and the alarm (1 or 0) for `telemetry.merge`."""
        window = self.window()
        readings = self._readings(window)
        names = [(*self._labels, reading.statistic, reading.of) for reading in readings]
        model = [self._labels]
        abstained = [((*self._labels, task), count / window.images) for task, count in window.abstentions.items()]
        return [
            _gauge(
                "retina_ray_drift_alarm",
                "1 while a drift value exceeds its limit.",
                ("model", "bundle"),
                zip(model, [float(any(reading.drifted for reading in readings))], strict=True),
            ),
            _gauge(
                "retina_ray_drift_photographs",
                f"Photographs in the drift watch's window; it says nothing below {self._min_images}.",
                ("model", "bundle"),
                zip(model, [float(window.images)], strict=True),
            ),
            _gauge(
                "retina_ray_drift_value",
                "How unlike the bundle's reference the window is.",
                ("model", "bundle", "statistic", "of"),
                zip(names, [reading.value for reading in readings], strict=True),
            ),
            _gauge(
                "retina_ray_drift_limit",
                "What the drift value of the same labels must exceed to raise the alarm.",
                ("model", "bundle", "statistic", "of"),
                zip(names, [reading.limit for reading in readings], strict=True),
            ),
            _gauge(
                "retina_ray_abstained_share",
                "Share of the drift watch's window that a human has to decide.",
                ("model", "bundle", "task"),
                abstained,
            ),
        ]

    def _forget(self, now: float) -> None:
        """Drop what is too old, unless too little would be left."""
        held = sum(counts.images for _, counts in self._pieces)
        while self._pieces and self._pieces[0][0] + self._piece_s < now - self._window_s:
            held -= self._pieces[0][1].images
            if held < self._min_images:
                return
            self._pieces.popleft()

    def _readings(self, window: DriftCounts) -> list[Reading]:
        if window.images < self._min_images:
            return []
        found = []
        if self._reference.images >= _MIN_REFERENCE:
            found = [*channel_shifts(self._reference, window), quality_failures(self._reference, window)]
        for task, reference in self._reference.confidence.items():
            if task in window.confidence and sum(reference) >= _MIN_REFERENCE:
                found.append(confidence_psi(task, reference, window.confidence[task]))
        return found


def channel_shifts(reference: Reference, window: DriftCounts) -> list[Reading]:
    """Return how far the mean of each colour has moved, |m - m0| / s0; none of a colour without spread."""
    before, now = _effective(reference.images), _effective(window.images)
    chance = _sigmas(before - 1) * (1 / before + 1 / now) ** 0.5
    columns = zip(_CHANNELS, window.channel_sum, reference.channel_mean, reference.channel_std, strict=True)
    return [
        Reading("channel_shift", name, abs(total / window.images - mean) / std, max(_LARGE_SHIFT, chance))
        for name, total, mean, std in columns
        if std > 0.0
    ]


def confidence_psi(task: str, reference: Sequence[int], window: Sequence[int]) -> Reading:
    """Return the PSI of a task's confidence, sum over bins of (q - p) ln(q / p), less its mean under no drift.

    Under no drift the PSI of B bins is (1/N + 1/M) times a chi-square of B - 1 degrees of freedom (Yurdakul and
    Naranjo 2020), for N images in the reference and M in the window.

    Args:
        task: its name.
        reference: (`CONFIDENCE_BINS`,) images of the validation split by confidence.
        window: (`CONFIDENCE_BINS`,) graded photographs by confidence.
    """
    starts = _pooled(reference)
    before, now = (np.add.reduceat(np.asarray(counts), starts) + _EMPTY for counts in (reference, window))
    p, q = before / before.sum(), now / now.sum()
    psi = float(((q - p) * np.log(q / p)).sum())
    unit = 1 / _effective(sum(reference)) + 1 / _effective(sum(window))
    freedom = len(starts) - 1
    expected = freedom * unit
    chance = _upper(expected, 2 * freedom * unit**2) - expected
    return Reading("confidence_psi", task, max(psi - expected, 0.0), max(_LARGE_PSI, chance))


def quality_failures(reference: Reference, window: DriftCounts) -> Reading:
    """Return the share of photographs outside the quality limits.

    Each limit is a percentile of the reference's images, an order statistic: new images pass it with a probability
    whose mean is (1 + h) / (n + 1) for the position h = (n - 1) / 100, and whose variance is that over n + 1.
    """
    images = _effective(reference.images)
    implied = len(QualityLimits.model_fields) * (1 + (images - 1) * _LIMIT_SHARE) / (images + 1)
    expected = min(implied, 1.0)
    spread = implied / (images + 1) + expected * (1 - expected) / _effective(window.images)
    limit = max(expected + _LARGE_QUALITY_EXCESS, _upper(expected, spread))
    return Reading("quality_failures", "any", window.quality_failures / window.images, limit)


def _pooled(reference: Sequence[int]) -> list[int]:
    """Return the first bin of each group of neighbouring bins that hold enough of the reference together.

    What the reference hardly has at either end stays a group of its own: confidence that it never saw is drift.
    """
    enough = max(_MIN_BIN_IMAGES, _MIN_BIN_SHARE * sum(reference))
    first = next(index for index, held in enumerate(accumulate(reference)) if held >= enough)
    starts, held = ([0, first] if first else [0]), 0
    for index in range(first, len(reference) - 1):
        held += reference[index]
        if held >= enough:
            starts.append(index + 1)
            held = 0
    return starts


def _effective(images: int) -> float:
    """Return how many independent images that many count for."""
    return images / _DESIGN_EFFECT


def _sigmas(freedom: float) -> float:
    """Return what Student's t exceeds as rarely as a normal variable `_SIGMAS` (Abramowitz and Stegun 26.7.5)."""
    z = _SIGMAS
    return z + (z**3 + z) / (4 * freedom) + (5 * z**5 + 16 * z**3 + 3 * z) / (96 * freedom**2)


def _upper(mean: float, variance: float) -> float:
    """Return what a gamma variable exceeds as rarely as a normal one its mean by `_SIGMAS` (Wilson and Hilferty 1931).

    It stands for a scaled chi-square and, by its first two moments, for a share that is close to 0.
    """
    if mean == 0.0:
        return 0.0
    shape = mean**2 / variance
    return float(mean * (1 - 1 / (9 * shape) + _SIGMAS / (3 * shape**0.5)) ** 3)


def _bin_of(confidence: float) -> int:
    """Return the bin that ``numpy.histogram`` counts a confidence in [0, 1] in."""
    return min(int(np.searchsorted(_EDGES, confidence, side="right")) - 1, CONFIDENCE_BINS - 1)


def _one_hot(index: int) -> tuple[int, ...]:
    return tuple(int(each == index) for each in range(CONFIDENCE_BINS))


def _gauge(
    name: str, documentation: str, labels: Sequence[str], samples: Iterable[tuple[Sequence[str], float]]
) -> Metric:
    family = GaugeMetricFamily(name, documentation, labels=labels)
    for values, value in samples:
        family.add_metric(values, value)
    return family
