"""What the HTTP interface asks of whatever grades: requests, and the one protocol between the two.

What is not here: HTTP (``http``), and grading (``grading_service``).
"""

from dataclasses import dataclass
from typing import Protocol

from retina_ray.serving.schema import Explanation, GradeResponse, ModelsResponse

ANONYMOUS = "anonymous"
"""Id of whoever asks where keys are off."""


@dataclass(frozen=True, slots=True)
class GradeOptions:
    """What is wanted of a photograph beyond its grades.

    Attributes:
        explain: the map of each task's most probable grade.
        lesions: the lesions' masks and areas.
        enhance: the super-resolved fundus square.
        low_resolution: the photograph is what a super-resolving network takes, and is not degraded first.
    """

    explain: Explanation | None = None
    lesions: bool = False
    enhance: bool = False
    low_resolution: bool = False


@dataclass(frozen=True, slots=True)
class GradeRequest:
    """One photograph to be graded.

    Attributes:
        photograph: the file.
        request_id: by which logs name the request.
        key_id: who asks; `ANONYMOUS` where keys are off.
        model: what the model is served as; None: the first.
        options: what is wanted.
        idempotency_key: the same for a request and its repetitions, if the sender gave one.
    """

    photograph: bytes
    request_id: str
    key_id: str
    model: str | None = None
    options: GradeOptions = GradeOptions()
    idempotency_key: str | None = None


class Service(Protocol):
    """Grades photographs."""

    async def grade(self, request: GradeRequest) -> GradeResponse:
        """Grade one photograph.

        Raises:
            RefusedError: it is not graded.
        """

    async def models(self) -> ModelsResponse:
        """Return the models that can be asked.

        Raises:
            RefusedError: none is ready.
        """

    async def admit(self, key_id: str, photographs: int) -> None:
        """Count photographs against a key's rate limit.

        Raises:
            RefusedError: the limit is reached (``rate-limited``, with the seconds to wait).
        """

    async def metrics(self) -> str:
        """Return the metrics of all replicas in Prometheus's text format.

        Raises:
            RefusedError: they cannot be had at the moment (``overloaded``).
        """

    async def not_ready(self) -> str | None:
        """Return why no photograph can be graded at the moment; None where one can."""

    def observe(self, route: str, status: int, seconds: float) -> None:
        """Count a finished request.

        Args:
            route: the address's template, such as ``/v1/grade``.
            status: of HTTP.
            seconds: from its first byte to the answer.
        """
