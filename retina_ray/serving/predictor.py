"""A photograph's bytes -> grades, with the pixels, networks and temperatures of the evaluation.

No Ray, no web server: an endpoint prepares photographs one by one, so that a bad one fails alone, and grades what it
has as a batch. What is not here: preparing them (``preparation``) and maps that explain a grade (``explanation``).
"""

import time
from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor, nn

from retina_ray.bundle import Bundle, low_resolution_side
from retina_ray.bundle_manifest import TaskCalibration
from retina_ray.data.batch import normalise
from retina_ray.data.fundus import PREPROCESSING_VERSION
from retina_ray.data.schema import Task
from retina_ray.errors import BundleError
from retina_ray.methods.base import Method
from retina_ray.metrics.calibration import apply_temperature, prediction_set
from retina_ray.serving.preparation import Preparation, Prepared
from retina_ray.serving.quality import judge
from retina_ray.serving.schema import GradeResponse, ModelVersion, TaskGrade, Timing

_REFERRAL_PROBABILITY = 0.5

Networks = Sequence[tuple[Method, nn.Module]]
"""A bundle's networks, each with the method that reads it."""


class Predictor:
    """Grades photographs with a bundle; may be used by several threads.

    Args:
        bundle: the model.
        device: where the networks run.
        low_resolution: photographs are what a super-resolving network takes, and are not degraded first.
        networks: the bundle's, where they are loaded already; in evaluation mode on the device.
        version: its number in the registry, if it came from there.

    Raises:
        ConfigError: the networks take no low-resolution photographs.
        BundleError: the bundle wants another preprocessing than this release's, or is inconsistent.
    """

    def __init__(
        self,
        bundle: Bundle,
        device: torch.device | str = "cpu",
        *,
        low_resolution: bool = False,
        networks: Networks | None = None,
        version: int | None = None,
    ) -> None:
        self.preparation = preparation_of(bundle, low_resolution=low_resolution)
        self._device = torch.device(device)
        self._networks = bundle.network_modules(self._device) if networks is None else networks
        self._manifest = bundle.manifest
        self._model = ModelVersion(name=bundle.manifest.name, version=version, hash=bundle.hash)
        self._degrades = not low_resolution

    def prepare(self, data: bytes, *, name: str = "photograph") -> Prepared:
        """Prepare a photograph, as `Preparation.prepare` does."""
        return self.preparation.prepare(data, name=name)

    def preprocess(self, data: bytes, *, name: str = "photograph") -> Tensor:
        """Return the network's input (1, 3, H, W) float32 on the device; `prepare` says what it raises."""
        return self.inputs([self.prepare(data, name=name).pixels])

    def grade(self, data: bytes, *, name: str = "photograph") -> GradeResponse:
        """Grade one photograph; `prepare` says what it raises."""
        return self.grade_batch([self.prepare(data, name=name)])[0]

    def grade_batch(self, photographs: Sequence[Prepared]) -> list[GradeResponse]:
        """Grade prepared photographs together, at least one."""
        start = time.perf_counter()
        probabilities = self.probabilities(self.inputs([photograph.pixels for photograph in photographs]))
        return self.answers(photographs, probabilities, network_ms=1e3 * (time.perf_counter() - start))

    def answers(
        self,
        photographs: Sequence[Prepared],
        probabilities: dict[str, npt.NDArray[np.float32]],
        *,
        network_ms: float,
    ) -> list[GradeResponse]:
        """Return the answers to photographs whose probabilities are known.

        Args:
            photographs: B of them.
            probabilities: (B, K) of each task, before calibration.
            network_ms: what they took.
        """
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

    def inputs(self, pixels: Sequence[npt.NDArray[np.uint8]]) -> Tensor:
        """Return prepared pixels as (B, 3, H, W), normalised, on the device."""
        return normalise(torch.from_numpy(np.stack(pixels)).to(self._device))


def preparation_of(bundle: Bundle, *, low_resolution: bool = False) -> Preparation:
    """Return how a bundle's photographs are prepared.

    Args:
        bundle: the model.
        low_resolution: photographs are what a super-resolving network takes.

    Raises:
        ConfigError: the networks take no low-resolution photographs.
        BundleError: the bundle wants another preprocessing than this release's.
    """
    wanted = bundle.manifest.preprocessing
    if wanted.version != PREPROCESSING_VERSION:
        fix = f"this release prepares photographs by version {PREPROCESSING_VERSION}: train again"
        what = f"the bundle {bundle.manifest.name} was trained on another preprocessing"
        raise BundleError(what, wanted.version, fix)
    if low_resolution:
        side = low_resolution_side(bundle, wanted.image_size)
        return Preparation(side, side)
    return Preparation(wanted.stored_size, wanted.image_size)


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
