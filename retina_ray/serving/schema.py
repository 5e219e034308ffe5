"""What an endpoint answers. Needs pydantic alone, so that a client can read it too."""

from pydantic import BaseModel, ConfigDict, Field


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
    """What is unlike; null where ok."""


class ModelVersion(_Answer):
    """Which model answered."""

    name: str
    hash: str
    """First digits of the SHA-256 of its bundle.json."""


class Timing(_Answer):
    """Where the time went, milliseconds."""

    prepare_ms: float
    """Decoding, finding the fundus and resampling this photograph."""
    network_ms: float
    """The networks, over the whole batch that the photograph was in."""


class GradeResponse(_Answer):
    """The answer to one photograph."""

    tasks: dict[str, TaskGrade]
    image: ImageQuality
    model: ModelVersion
    timing: Timing
