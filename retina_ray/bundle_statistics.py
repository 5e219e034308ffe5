"""What a bundle states beside its weights: calibration, reference statistics, quality limits and test metrics.

Everything that serving decides by is computed on validation or training data; the test split is only measured.
"""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

import numpy as np
import numpy.typing as npt

from retina_ray.bundle_manifest import CONFIDENCE_BINS, QualityLimits, Reference, TaskCalibration, TaskMetrics
from retina_ray.data.decode import decode_image
from retina_ray.data.quality import ImageMeasures, measure
from retina_ray.data.schema import Task
from retina_ray.data.shards import ShardedDataset
from retina_ray.errors import DataError
from retina_ray.metrics.calibration import apply_temperature, conformal_quantile, fit_temperature, prediction_set
from retina_ray.metrics.table import Predictions

if TYPE_CHECKING:  # at run time it would cost whoever serves a bundle seconds
    from retina_ray.metrics.summary import TaskSummary

REFERENCE_IMAGES = 256
"""Training images behind the reference statistics, at most."""

_LIMIT_PERCENT = 1.0
_REFERABLE_FROM = {"dr": 2, "amd": 2}
"""Moderate non-proliferative DR and big drusen (intermediate AMD); elsewhere, every grade above the first."""


def referable_from(task: Task) -> int:
    """Return the mildest grade of a task that calls for a referral."""
    return min(_REFERABLE_FROM.get(task.name, 1), task.num_grades - 1)


def calibrate(task: Task, validation: Predictions, *, coverage: float) -> TaskCalibration:
    """Fit a task's temperature on the validation split, then the conformal threshold on the calibrated probabilities.

    The same images chose the best epoch, so the coverage is nominal; what the test split shows is in `measure_test`.
    """
    temperature = fit_temperature(validation.probabilities, validation.truth)
    calibrated = apply_temperature(validation.probabilities, temperature)
    return TaskCalibration(
        images=len(validation.truth),
        temperature=temperature,
        coverage=coverage,
        quantile=conformal_quantile(calibrated, validation.truth, coverage=coverage),
        referable_from=referable_from(task),
    )


def measure_test(
    summary: "TaskSummary", test: Predictions, calibration: TaskCalibration, *, fingerprint: str
) -> TaskMetrics:
    """Return a task's test metrics, how its prediction sets do there, and the fingerprint of what that rests on."""
    sets = prediction_set(apply_temperature(test.probabilities, calibration.temperature), calibration.quantile)
    return TaskMetrics(
        images=summary.n,
        metrics=dict(summary.metrics),
        intervals=dict(summary.intervals),
        set_coverage=float(sets[np.arange(len(test.truth)), test.truth].mean()),
        set_size=float(sets.sum(axis=1).mean()),
        test_fingerprint=fingerprint,
    )


def measure_training_images(dataset: ShardedDataset, rows: npt.NDArray[np.int64], *, seed: int) -> list[ImageMeasures]:
    """Measure up to `REFERENCE_IMAGES` training images, drawn by the seed; damaged ones are left out.

    Raises:
        DataError: none of them can be read.
    """
    drawn = np.random.default_rng(seed).permutation(np.sort(rows))[:REFERENCE_IMAGES]
    manifest = dataset.manifest
    measures = []
    for row in drawn.tolist():
        if not dataset.check(row):
            continue
        try:
            image = decode_image(dataset.image(row), encoding=manifest.encoding, size=manifest.image_size)
        except ValueError:
            continue
        measures.append(measure(image))
    if not measures:
        raise DataError("no training image can be read", len(drawn), "run `retina-ray data inspect`")
    return measures


def quality_limits(measures: Sequence[ImageMeasures]) -> QualityLimits:
    """Return bounds that one training image in a hundred violates, for each bound."""
    sharpness, brightness, contrast = (
        [getattr(each, name) for each in measures] for name in ("sharpness", "brightness", "contrast")
    )
    return QualityLimits(
        min_sharpness=float(np.percentile(sharpness, _LIMIT_PERCENT)),
        min_brightness=float(np.percentile(brightness, _LIMIT_PERCENT)),
        max_brightness=float(np.percentile(brightness, 100.0 - _LIMIT_PERCENT)),
        min_contrast=float(np.percentile(contrast, _LIMIT_PERCENT)),
    )


def reference(
    measures: Sequence[ImageMeasures],
    validation: Mapping[str, Predictions],
    calibration: Mapping[str, TaskCalibration],
) -> Reference:
    """Return what training images and validation scores look like."""
    means = np.array([each.means for each in measures])
    channel_mean, channel_std = means.mean(axis=0).tolist(), means.std(axis=0).tolist()
    return Reference(
        images=len(measures),
        channel_mean=tuple(channel_mean),
        channel_std=tuple(channel_std),
        confidence={
            task: _confidence_histogram(predictions, calibration[task].temperature)
            for task, predictions in validation.items()
        },
    )


def _confidence_histogram(validation: Predictions, temperature: float) -> list[int]:
    confidence = apply_temperature(validation.probabilities, temperature).max(axis=1)
    counts, _ = np.histogram(confidence, bins=CONFIDENCE_BINS, range=(0.0, 1.0))
    return [int(count) for count in counts]
