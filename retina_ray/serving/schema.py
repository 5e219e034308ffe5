"""What an endpoint answers. Needs pydantic alone, so that a client can read it too."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import Base64Bytes, BaseModel, ConfigDict, Field

Explanation = Literal["gradcam", "gmsv"]
"""Maps of what a grade goes by: Grad-CAM of any convolutional network, GMSV of DeepMT-DR's."""

Png = Annotated[Base64Bytes, Field(description="A PNG file in base64.")]


class _Answer(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class TaskGrade(_Answer):
    """The grade of one disease. Probabilities are calibrated."""

    grade: int = Field(ge=0)
    """The most probable grade."""
    grade_name: str
    probabilities: list[float]
    """Of each grade, mildest first."""
    confidence: float
    """Probability of the most probable grade."""
    referable: bool
    """Whether a grade that calls for a referral is at least as probable as one that does not."""
    referable_probability: float
    prediction_set: list[int]
    """The grades that remain possible at the stated coverage, ascending; never empty."""
    coverage: float
    """Share of prediction sets that are meant to hold the true grade."""
    abstain: bool
    """The set holds grades with and without a referral: a human has to decide."""


class ImageQuality(_Answer):
    """Whether the photograph is like those that the model was trained on."""

    ok: bool
    reason: str | None = None
    """What is unlike, and what to do; null where ok."""


class ModelVersion(_Answer):
    """Which model answered."""

    name: str
    version: int | None = None
    """Number in the registry; null where the bundle was given by its folder."""
    hash: str
    """First digits of the SHA-256 of its bundle.json."""


class Timing(_Answer):
    """Where the time went, milliseconds."""

    prepare_ms: float
    """Decoding, finding the fundus and resampling this photograph."""
    network_ms: float
    """The networks, over the whole batch that the photograph was in."""
    total_ms: float | None = None
    """From the whole photograph received to the answer; null where no endpoint was asked."""


class Overlays(_Answer):
    """Where the networks see what they grade, drawn over the photograph's fundus square."""

    method: Explanation
    tasks: dict[str, Png]
    """By task: Grad-CAM of its most probable grade, GMSV of any retinopathy."""


class Lesion(_Answer):
    """One kind of lesion, as the model segments it."""

    area: float = Field(ge=0.0, le=1.0)
    """Share of the fundus disc that it covers."""
    mask: Png
    """White where it is, of the fundus square's size."""


class GradeResponse(_Answer):
    """The answer to one photograph."""

    tasks: dict[str, TaskGrade]
    image: ImageQuality
    model: ModelVersion
    timing: Timing
    request_id: str | None = None
    """By which log and audit log name the request; null where no endpoint was asked."""
    fundus: Png | None = None
    """The fundus square that maps and masks lie over, where an explanation or lesions are asked for."""
    explanation: Overlays | None = None
    """Where asked for."""
    lesions: dict[str, Lesion] | None = None
    """By lesion (MA, HM, HE, SE), where asked for."""
    enhanced: Png | None = None
    """The super-resolved fundus square, where asked for."""


class Problem(_Answer):
    """Why there is no answer (RFC 9457, ``application/problem+json``)."""

    type: str
    """A short name for programs, such as ``no-fundus``."""
    title: str
    """What is wrong, the same for all problems of a type."""
    status: int
    """Of HTTP."""
    detail: str
    """What is wrong, the value, and what to do."""
    request_id: str | None = None
    image: ImageQuality | None = None
    """The verdict on a photograph that cannot be graded."""


class BatchItem(_Answer):
    """One photograph of a batch: an answer or a problem."""

    name: str
    """Of the part that held it, as the sender called it."""
    answer: GradeResponse | None = None
    problem: Problem | None = None


class BatchResponse(_Answer):
    """The answers to several photographs, in their order."""

    photographs: list[BatchItem]


class TaskDescription(_Answer):
    """A disease that a model grades."""

    grades: list[str]
    """Names, mildest first."""
    referable_from: int
    """The mildest grade that calls for a referral."""
    coverage: float
    """Share of prediction sets that are meant to hold the true grade."""
    metrics: dict[str, float | None]
    """On the model's test split."""


class ModelDescription(_Answer):
    """A model that can be asked."""

    served_as: str
    """What requests call it."""
    model: ModelVersion
    method: str
    tasks: dict[str, TaskDescription]
    image_size: int
    """Side of the fundus square that the networks see, pixels."""
    explanations: list[Explanation]
    """Maps that it can draw."""
    lesions: bool
    """Whether it segments lesions."""
    enhances: bool
    """Whether it super-resolves."""
    created: datetime
    card: str
    """Its model card, Markdown."""
    replicas: int = 1
    """Processes that answer with it."""
    rollout: "Rollout | None" = None
    """Of another model in its place; null where none is under way."""


class Rollout(_Answer):
    """A model that is to take another's place."""

    bundle: str
    """Its address."""
    state: Literal["loading", "refused"]
    replicas: int
    """Processes that answer with it already."""
    detail: str = ""
    """Why it was refused."""


class ModelsResponse(_Answer):
    """The models that can be asked; the first is asked where a request names none."""

    models: list[ModelDescription]
