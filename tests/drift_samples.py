"""Photographs as drift sees them, drawn at random: with and without a change."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from retina_ray.bundle_manifest import CONFIDENCE_BINS, QualityLimits, Reference, TaskCalibration
from retina_ray.bundle_statistics import quality_limits, reference
from retina_ray.data.quality import ImageMeasures
from retina_ray.metrics.table import Predictions
from retina_ray.serving.drift import DriftCounts, DriftWatch, Reading

TASKS = ("dr", "amd")
DAY = 86_400.0
RUNS = 500
"""Of these one may alarm: the rate is then below 1 % with 95 % confidence (Clopper and Pearson: 0.95 %)."""


@dataclass(frozen=True)
class Sample:
    """Patients with two equal eyes: colours (n, 3), sharpness and contrast (n,), confidence (n, tasks)."""

    means: npt.NDArray[np.float64]
    sharpness: npt.NDArray[np.float64]
    contrast: npt.NDArray[np.float64]
    confidence: npt.NDArray[np.float64]

    def __getitem__(self, part: slice) -> "Sample":
        return Sample(self.means[part], self.sharpness[part], self.contrast[part], self.confidence[part])

    def measures(self) -> list[ImageMeasures]:
        """Of one eye each."""
        columns = zip(self.sharpness.tolist(), self.contrast.tolist(), self.means.tolist(), strict=True)
        return [ImageMeasures(sharp, mean[1], contrast, tuple(mean)) for sharp, contrast, mean in columns]

    def fails(self, limits: QualityLimits) -> npt.NDArray[np.bool_]:
        """`serving.quality.judge` of one eye each."""
        green = self.means[:, 1]
        too_dark, too_bright = green < limits.min_brightness, green > limits.max_brightness
        return too_dark | too_bright | (self.contrast < limits.min_contrast) | (self.sharpness < limits.min_sharpness)

    def counts(self, limits: QualityLimits) -> DriftCounts:
        """`DriftCounts.of` of both eyes, summed."""
        red, green, blue = self.means.sum(axis=0).tolist()
        one = DriftCounts(
            images=len(self.means),
            channel_sum=(red, green, blue),
            confidence={task: quick_histogram(self.confidence[:, index]) for index, task in enumerate(TASKS)},
            quality_failures=int(self.fails(limits).sum()),
        )
        return one + one


def histogram(confidence: npt.NDArray[np.float64]) -> tuple[int, ...]:
    return tuple(np.histogram(confidence, bins=CONFIDENCE_BINS, range=(0.0, 1.0))[0].tolist())


def population(rng: np.random.Generator, photographs: int) -> Sample:
    """Draw patients with this many eyes."""
    patients = photographs // 2
    light = rng.normal(size=patients)
    means = np.array([150.0, 80.0, 40.0]) * np.exp(0.2 * light[:, None] + 0.15 * rng.normal(size=(patients, 3)))
    sharpness = 60.0 * np.exp(0.4 * rng.normal(size=patients))
    contrast = 18.0 * np.exp(0.15 * light + 0.2 * rng.normal(size=patients))
    easy = rng.random((patients, len(TASKS))) < (0.7, 0.4)
    confidence = np.where(easy, rng.beta(20, 1, easy.shape), rng.beta(5, 2.5, easy.shape))
    return Sample(means, sharpness, contrast, 0.25 + 0.75 * confidence)


def trained(rng: np.random.Generator, training: int, validation: int) -> tuple[Reference, QualityLimits]:
    """Return what a bundle states of this many images."""
    measures = 2 * population(rng, training).measures()
    scores = np.repeat(population(rng, validation).confidence, 2, axis=0)
    names = np.arange(validation).astype(str)
    predictions = {
        task: Predictions(five_grades(scores[:, index]), np.zeros(validation, np.int64), names, names)
        for index, task in enumerate(TASKS)
    }
    plain = TaskCalibration(images=validation, temperature=1.0, coverage=0.9, quantile=0.9, referable_from=1)
    return reference(measures, predictions, dict.fromkeys(TASKS, plain)), quality_limits(measures)


def five_grades(confidence: npt.NDArray[np.float64]) -> npt.NDArray[np.float32]:
    """Return probabilities (n, 5) of which the highest is as given."""
    rest = np.repeat((1.0 - confidence[:, None]) / 4.0, 4, axis=1)
    return np.concatenate([confidence[:, None], rest], axis=1).astype(np.float32)


def quick_histogram(confidence: npt.NDArray[np.float64]) -> tuple[int, ...]:
    """The same for numbers that are no bin's edge."""
    return tuple(np.bincount((confidence * CONFIDENCE_BINS).astype(int), minlength=CONFIDENCE_BINS).tolist())


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def watched(rng: np.random.Generator, sample: Sample, *, training: int = 256, validation: int = 400) -> list[Reading]:
    """Return what a watch says of a sample."""
    known, limits = trained(rng, training, validation)
    watch = DriftWatch("m", known, clock=Clock())
    watch.add(sample.counts(limits))
    return watch.readings()


def drifted(readings: list[Reading]) -> set[str]:
    return {reading.statistic for reading in readings if reading.drifted}


def month(watch: DriftWatch, clock: Clock, limits: QualityLimits, sample: Sample) -> set[str]:
    """Send a sample to a watch, a thirtieth a day, and return every alarm of the evenings."""
    alarms = set()
    patients = len(sample.means) // 30
    for start in range(0, len(sample.means), patients):
        clock.now += 1.03 * DAY  # the window may hold some minutes more than a day
        watch.add(sample[start : start + patients].counts(limits))
        alarms |= drifted(watch.readings())
    return alarms
