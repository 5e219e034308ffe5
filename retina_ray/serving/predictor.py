"""A photograph's bytes -> grades, with the pixels, networks and temperatures of the evaluation.

No Ray, no web server: an endpoint prepares photographs one by one, so that a bad one fails alone, and grades what it
has as a batch. What is not here: maps that explain a grade (``serving.explain``).
"""

import time
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from retina_ray.bundle import Bundle, low_resolution_side
from retina_ray.bundle_manifest import TaskCalibration
from retina_ray.data.augment import matrices
from retina_ray.data.batch import normalise
from retina_ray.data.fundus import PREPROCESSING_VERSION, prepare_bytes
from retina_ray.data.quality import ImageMeasures, measure
from retina_ray.data.schema import Task
from retina_ray.data.torch_loader import warp
from retina_ray.errors import BundleError
from retina_ray.metrics.calibration import apply_temperature, prediction_set
from retina_ray.serving.quality import judge
from retina_ray.serving.schema import GradeResponse, ModelVersion, TaskGrade, Timing

_REFERRAL_PROBABILITY = 0.5


@dataclass(frozen=True, slots=True)
class Prepared:
    """A photograph ready to be graded.

    Attributes:
        pixels: (H, W, 3) uint8 RGB at the network's input size.
        measures: of the square at the stored size.
        prepare_ms: what it took.
    """

    pixels: npt.NDArray[np.uint8]
    measures: ImageMeasures
    prepare_ms: float


class Predictor:
    """Grades photographs with a bundle; may be used by several threads.

    Args:
        bundle: the model.
        device: where the networks run.
        low_resolution: photographs are what a super-resolving network takes, and are not degraded first.

    Raises:
        ConfigError: the networks take no low-resolution photographs.
        BundleError: the bundle wants another preprocessing than this release's, or is inconsistent.
    """

    def __init__(self, bundle: Bundle, device: torch.device | str = "cpu", *, low_resolution: bool = False) -> None:
        manifest = bundle.manifest
        if manifest.preprocessing.version != PREPROCESSING_VERSION:
            fix = f"this release prepares photographs by version {PREPROCESSING_VERSION}: train again"
            what = f"the bundle {manifest.name} was trained on another preprocessing"
            raise BundleError(what, manifest.preprocessing.version, fix)
        self._device = torch.device(device)
        self._networks = bundle.network_modules(self._device)
        self._manifest = manifest
        self._model = ModelVersion(name=manifest.name, hash=bundle.hash)
        size = manifest.preprocessing
        self._degrades = not low_resolution
        self._side = low_resolution_side(bundle, size.image_size) if low_resolution else size.image_size
        self._stored_side = self._side if low_resolution else size.stored_size
        self._matrix = matrices(
            None, seed=0, epoch=0, rows=np.zeros(1, np.int64), in_size=self._stored_side, out_size=self._side
        )[0]

    def prepare(self, data: bytes, *, name: str = "photograph") -> Prepared:
        """Decode a photograph, cut the fundus and resample it, as ingest and evaluation do.

        Args:
            data: the file.
            name: what error messages call it.

        Raises:
            DataError: it is no photograph (CorruptImageError) or shows no fundus (NoFundusError).
        """
        start = time.perf_counter()
        square = prepare_bytes(data, name=name, size=self._stored_side)
        pixels = np.ascontiguousarray(warp(square, self._matrix, self._side))
        return Prepared(pixels, measure(square), _milliseconds_since(start))

    def preprocess(self, data: bytes, *, name: str = "photograph") -> Tensor:
        """Return the network's input (1, 3, H, W) float32 on the device; `prepare` says what it raises."""
        return self._input([self.prepare(data, name=name)])

    def grade(self, data: bytes, *, name: str = "photograph") -> GradeResponse:
        """Grade one photograph; `prepare` says what it raises."""
        return self.grade_batch([self.prepare(data, name=name)])[0]

    def grade_batch(self, photographs: Sequence[Prepared]) -> list[GradeResponse]:
        """Grade prepared photographs together, at least one."""
        start = time.perf_counter()
        probabilities = self.probabilities(self._input(photographs))
        network_ms = _milliseconds_since(start)
        graded = {
            task.name: _grades(probabilities[task.name], task, self._manifest.calibration[task.name])
            for task in self._manifest.tasks
        }
        return [
            GradeResponse(
                tasks={task: grades[i] for task, grades in graded.items()},
                image=judge(photograph.measures, self._manifest.quality),
                model=self._model,
                timing=Timing(prepare_ms=photograph.prepare_ms, network_ms=network_ms),
            )
            for i, photograph in enumerate(photographs)
        ]

    def probabilities(self, images: Tensor) -> dict[str, npt.NDArray[np.float32]]:
        """Return each task's probabilities (B, K) before calibration, as evaluation stores them.

        Args:
            images: (B, 3, H, W), normalised, on the device.
        """
        found: dict[str, Tensor] = {}
        with torch.inference_mode():
            for method, network in self._networks:
                found.update(method.probabilities(network, method.inputs(images) if self._degrades else images))
        return {task: values.float().cpu().numpy() for task, values in found.items()}

    def _input(self, photographs: Sequence[Prepared]) -> Tensor:
        pixels = np.stack([photograph.pixels for photograph in photographs])
        return normalise(torch.from_numpy(pixels).to(self._device))


def _grades(probabilities: npt.NDArray[np.float32], task: Task, calibration: TaskCalibration) -> list[TaskGrade]:
    """Return the answer for each row of one task's probabilities (B, K)."""
    calibrated = apply_temperature(probabilities, calibration.temperature)
    sets = prediction_set(calibrated, calibration.quantile)
    return [_grade(row, kept, task, calibration) for row, kept in zip(calibrated, sets, strict=True)]


def _grade(
    probabilities: npt.NDArray[np.float64], kept: npt.NDArray[np.bool_], task: Task, calibration: TaskCalibration
) -> TaskGrade:
    grade = int(probabilities.argmax())
    first = calibration.referable_from
    referable_probability = float(probabilities[first:].sum())
    return TaskGrade(
        grade=grade,
        grade_name=task.grades[grade],
        probabilities=probabilities.tolist(),
        confidence=float(probabilities[grade]),
        referable=referable_probability >= _REFERRAL_PROBABILITY,
        referable_probability=referable_probability,
        prediction_set=np.flatnonzero(kept).tolist(),
        coverage=calibration.coverage,
        abstain=bool(kept[:first].any() and kept[first:].any()),
    )


def _milliseconds_since(start: float) -> float:
    return 1e3 * (time.perf_counter() - start)
