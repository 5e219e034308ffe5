"""The arguments of the served application, typed: what the files beside this one may say.

Two kinds. `Arguments` say how the application is built; another value restarts its replicas, a few at a time.
`ModelSettings` and `IngressSettings` are the ``user_config`` of a deployment, which changes in place: which bundle is
served, and how a candidate is tried.
"""

from typing import Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

_LOOK_BACK_S = 12.0
"""Over which requests at a time are averaged; Serve asks for more than the ten seconds between reports."""


class _Strict(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)


class Scaling(_Strict):
    """How many replicas a deployment has."""

    least: int = Field(default=1, ge=1)
    most: int = Field(default=1, ge=1)
    target_ongoing: float = Field(default=4.0, gt=0)
    """Requests at a time that a replica is to have on average; more of them bring more replicas."""
    up_after_s: float = Field(default=5.0, ge=0)
    """How long there must be too many of them."""
    down_after_s: float = Field(default=300.0, ge=0)
    """How long there must be too few of them."""

    def for_serve(self) -> dict[str, float]:
        """Return the same in Serve's terms."""
        return {
            "min_replicas": self.least,
            "max_replicas": self.most,
            "target_ongoing_requests": self.target_ongoing,
            "upscale_delay_s": self.up_after_s,
            "downscale_delay_s": self.down_after_s,
            "look_back_period_s": max(_LOOK_BACK_S, self.up_after_s),
        }

    @model_validator(mode="after")
    def _ordered(self) -> "Scaling":
        if self.least > self.most:
            raise ValueError(f"least = {self.least} replicas are more than most = {self.most}")
        return self


class ModelArguments(_Strict):
    """A served model's deployment, and that of a candidate for its place."""

    scaling: Scaling = Scaling()
    num_cpus: float = Field(default=1.0, gt=0)
    """Of each replica; also the threads of its networks."""
    num_gpus: float = Field(default=0.0, ge=0)
    """Of each replica; a fraction shares a GPU."""
    precision: Literal["float32", "bfloat16"] = "float32"
    max_batch: int = Field(default=8, ge=1)
    """Photographs that are graded together, at most: those that arrived while the ones before them were graded."""


class HttpArguments(_Strict):
    """The deployment that takes requests, and what it bounds them by."""

    scaling: Scaling = Scaling()
    num_cpus: float = Field(default=1.0, gt=0)
    """Of each replica; also the threads that decode and draw."""
    in_flight: int = Field(default=32, ge=1)
    """Photographs at a time per replica; more are refused with 503."""
    seconds: float = Field(default=30.0, gt=0)
    """That a photograph may take before it is refused with 504."""
    max_megabytes: float = Field(default=50.0, gt=0)
    """Of a request's body."""
    body_seconds: float = Field(default=20.0, gt=0)
    """That a body may take to arrive."""
    max_photographs: int = Field(default=32, ge=1)
    """In a batch."""


class Arguments(_Strict):
    """The application."""

    models: dict[str, ModelArguments] = Field(min_length=1)
    """By what they are served as; the first is asked where a request names none."""
    layout: Literal["two_hop", "one_hop"] = "two_hop"
    """``one_hop``: the networks run in the process that takes the request, which saves some milliseconds and lets
    neither grow without the other; without candidates."""
    http: HttpArguments = HttpArguments()
    keys: str | None = None
    """File of API keys on every node; null: everyone may ask, which is for loopback alone."""
    audit: str | None = None
    """Folder of the audit log on every node; null: none is written."""
    shadow: str | None = None
    """Folder on every node for what a shadowing candidate answers; null: it is not recorded."""
    storage: str = "runs"
    """Folder or ``s3://`` prefix whose registry ``models:/`` addresses mean, without a tracking server."""


class ModelSettings(_Strict):
    """Which bundle a model's deployment answers with."""

    bundle: str | None = None
    """Folder, ``s3://`` prefix or ``models:/NAME/VERSION``; null: none."""
    previous: str | None = None
    """What a roll-back returns to, and what a new replica answers with where it refuses the bundle."""
    attempt: int = 0
    """Raised to have a bundle that was refused tried again."""


class TrialSettings(_Strict):
    """How a candidate is tried."""

    canary_percent: float = Field(default=0.0, ge=0.0, le=100.0)
    """Share of the photographs that it answers."""
    shadow: bool = False
    """Whether it sees a copy of the others."""


class IngressSettings(_Strict):
    """How candidates are tried, and in one hop the models themselves, by served name."""

    trials: dict[str, TrialSettings] = {}
    models: dict[str, ModelSettings] = {}
