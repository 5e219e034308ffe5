"""What the processes of an endpoint send each other: jobs, answers, and what a model's replica says of itself.

Without torch, so that a process without networks starts quickly and stays small.
"""

from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from retina_ray.bundle_manifest import QualityLimits, Reference
from retina_ray.serving.preparation import Preparation, Prepared
from retina_ray.serving.schema import GradeResponse, ModelDescription
from retina_ray.serving.service import GradeOptions


@dataclass(frozen=True, slots=True)
class Job:
    """A prepared photograph.

    Attributes:
        prepared: the photograph.
        model: hash of the bundle that it was prepared for.
        options: what is wanted of it.
    """

    prepared: Prepared
    model: str
    options: GradeOptions


@dataclass(frozen=True, slots=True)
class Answer:
    """What the networks make of a photograph.

    Attributes:
        response: the grades.
        maps: (H, W) in [0, 1] by task; empty where none are wanted.
        lesions: (4, H, W) probabilities in [0, 1], where wanted.
        enhanced: (H, W, 3) uint8 RGB, where wanted.
        batch_size: photographs that were graded together.
    """

    response: GradeResponse
    maps: dict[str, npt.NDArray[np.float32]]
    lesions: npt.NDArray[np.float32] | None = None
    enhanced: npt.NDArray[np.uint8] | None = None
    batch_size: int = 1


@dataclass(frozen=True, slots=True)
class Failed:
    """A job whose networks raised.

    Attributes:
        detail: the kind of error.
    """

    detail: str


@dataclass(frozen=True, slots=True)
class Swap:
    """A model that is to take another's place.

    Attributes:
        bundle: its address.
        state: ``loading`` or ``refused``.
        detail: why it was refused.
    """

    bundle: str
    state: Literal["loading", "refused"]
    detail: str = ""


@dataclass(frozen=True, slots=True)
class HostState:
    """What whoever sends photographs has to know of a host.

    Attributes:
        description: of the model that answers; None until the first is loaded.
        preparation: of its photographs.
        low_resolution: of photographs that are not degraded first; None where it takes none.
        reference: statistics that drift is told by.
        quality: limits that drift is told by.
        swap: the model that is to take its place, if any.
    """

    description: ModelDescription | None = None
    preparation: Preparation | None = None
    low_resolution: Preparation | None = None
    reference: Reference | None = None
    quality: QualityLimits | None = None
    swap: Swap | None = None
