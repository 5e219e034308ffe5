"""What ``bundle.json`` says: everything but the weights that serving needs to know of a trained model.

What is not here: making, writing and reading a bundle (``bundle``).
"""

import math
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Final, Literal

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, model_validator

from retina_ray.data.schema import Task

BUNDLE_VERSION: Final = 2
"""Version of the format that is written."""

READABLE_VERSIONS: Final = (1, BUNDLE_VERSION)
"""Versions of the format that are read: in the first, no task's metrics have a `TaskMetrics.test_fingerprint`."""

CONFIDENCE_BINS = 20
"""Equal-width bins of [0, 1] in `Reference.confidence`."""


def _finite(value: Any) -> Any:
    """JSON has no NaN: a metric that is undefined on the test split becomes null."""
    return None if isinstance(value, float) and not math.isfinite(value) else value


Number = Annotated[float | None, BeforeValidator(_finite)]


class Part(BaseModel):
    """A frozen part of the manifest; unknown keys are refused."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True, allow_inf_nan=False)


class NetworkEntry(Part):
    """One of the networks; there are several where each task has its own."""

    settings: dict[str, Any]
    """What `methods.catalogue.build` takes; SALL's temperature T is in it."""
    prefix: str
    """Of its tensors' names in ``model.safetensors``."""


class Preprocessing(Part):
    """From a photograph to the network's input."""

    version: int
    """Of finding and cutting the fundus disc."""
    stored_size: int = Field(gt=0)
    """Side of the square that is cut, pixels."""
    image_size: int = Field(gt=0)
    """Side of the network's input, pixels."""


class TaskCalibration(Part):
    """What turns a task's probabilities into decisions; fitted on the validation split."""

    images: int = Field(gt=0)
    """Graded validation images."""
    temperature: float = Field(gt=0.0)
    """Calibration temperature (Guo et al. 2017), applied after the network's own probabilities."""
    coverage: float = Field(gt=0.0, lt=1.0)
    """Share of prediction sets that are to hold the truth."""
    quantile: float = Field(ge=0.0, le=1.0)
    """Conformal threshold on 1 - calibrated probability."""
    referable_from: int = Field(ge=1)
    """The mildest grade that calls for a referral."""


class QualityLimits(Part):
    """Bounds of `data.quality.measure` outside which a photograph is unlike the training images."""

    min_sharpness: float
    min_brightness: float
    max_brightness: float
    min_contrast: float


class Reference(Part):
    """What the images and scores looked like, for noticing drift."""

    images: int = Field(gt=0)
    """Training images measured."""
    channel_mean: tuple[float, float, float]
    """Mean over images of each image's mean R, G and B over the fundus, 0..255."""
    channel_std: tuple[float, float, float]
    """Standard deviation over images of the same."""
    confidence: dict[str, list[int]]
    """Per task: validation images by calibrated confidence, in `CONFIDENCE_BINS` equal bins of [0, 1]."""


class TaskMetrics(Part):
    """What the model reaches on a task's test split, before calibration unless said otherwise."""

    images: int = Field(gt=0)
    metrics: dict[str, Number]
    """By name of `metrics.grading.METRICS`; null where undefined."""
    intervals: dict[str, tuple[Number, Number]]
    """Low and high bound by the same names; empty where none were computed."""
    set_coverage: float
    """Share of calibrated prediction sets that hold the truth."""
    set_size: float
    """Mean number of grades in a set."""
    test_fingerprint: str | None = None
    """Of the test images and their grades, see `data.tested_images`; null in bundles of version 1."""


class DataFacts(Part):
    """The data set it was trained on."""

    fingerprint: str
    source: str
    counts: dict[str, dict[str, list[int]]]
    """Images per split, task and grade."""
    training_images: int = Field(gt=0)
    """Rows that the final networks were trained on."""


class CodeVersion(Part):
    """The code that made it."""

    package: str
    commit: str | None
    """git commit, marked -dirty if the code was changed; null outside a checkout."""


class BundleManifest(Part):
    """The fields of ``bundle.json``."""

    version: Literal[1, 2] = BUNDLE_VERSION
    name: str
    method: str
    networks: tuple[NetworkEntry, ...] = Field(min_length=1)
    tasks: tuple[Task, ...] = Field(min_length=1)
    preprocessing: Preprocessing
    calibration: dict[str, TaskCalibration]
    quality: QualityLimits
    reference: Reference
    metrics: dict[str, TaskMetrics]
    data: DataFacts
    config: dict[str, Any]
    """Resolved configuration, without the address of the tracking server."""
    code: CodeVersion
    created: datetime
    files: dict[Annotated[str, Field(pattern=r"^\w[\w.-]*$")], str]
    """SHA-256 of the other files by name."""

    @model_validator(mode="after")
    def _parts_fit(self) -> "BundleManifest":
        names = {task.name for task in self.tasks}
        for field in ("calibration", "metrics"):
            if set(getattr(self, field)) != names:
                raise ValueError(f"{field} covers {sorted(getattr(self, field))}, the tasks are {sorted(names)}")
        if len({network.prefix for network in self.networks}) != len(self.networks):
            raise ValueError("two networks share a prefix")
        return self

    def content(self) -> Mapping[str, Any]:
        """Return all fields but the time of making, and the card, which shows it."""
        fields = self.model_dump(mode="json", exclude={"created"})
        return {**fields, "files": {name: digest for name, digest in self.files.items() if not name.endswith(".md")}}
