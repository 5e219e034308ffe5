"""Why a request gets no answer: one exception, and every kind with its HTTP status in one table.

What is not here: turning it into a response (``serving.http``).
"""

from typing import Literal

from retina_ray.serving.schema import ImageQuality, Problem

Kind = Literal[
    "bad-request",
    "unauthenticated",
    "unknown-model",
    "not-found",
    "slow-sender",
    "key-reused",
    "too-large",
    "unreadable-image",
    "no-fundus",
    "unsupported",
    "rate-limited",
    "internal",
    "overloaded",
    "not-ready",
    "timeout",
]

_TABLE: dict[Kind, tuple[int, str]] = {
    "bad-request": (400, "The request cannot be understood"),
    "unauthenticated": (401, "The request names no valid API key"),
    "not-found": (404, "There is nothing at this address"),
    "unknown-model": (404, "No such model is served"),
    "slow-sender": (408, "The request did not arrive in time"),
    "key-reused": (409, "The idempotency key was used for another request"),
    "too-large": (413, "The request is too large"),
    "unreadable-image": (422, "The photograph cannot be read"),
    "no-fundus": (422, "The photograph shows no fundus"),
    "unsupported": (422, "The model cannot do what was asked"),
    "rate-limited": (429, "The API key's rate limit is reached"),
    "internal": (500, "The service failed"),
    "overloaded": (503, "The service is overloaded"),
    "not-ready": (503, "The service is not ready"),
    "timeout": (504, "The answer took too long"),
}


class RefusedError(Exception):
    """A request that gets a problem instead of an answer.

    Args:
        kind: of the problem; decides status and title.
        detail: what is wrong, the value, and what to do.
        retry_after: seconds after which it may succeed; None where repeating is no use.
        image: the verdict on the photograph, where that is why.
    """

    def __init__(
        self, kind: Kind, detail: str, *, retry_after: float | None = None, image: ImageQuality | None = None
    ) -> None:
        super().__init__(kind, detail)
        self.kind = kind
        self.detail = detail
        self.retry_after = retry_after
        self.image = image

    def __reduce__(self) -> tuple[object, ...]:
        return _again, (self.kind, self.detail, self.retry_after, self.image)

    @property
    def status(self) -> int:
        """The HTTP status."""
        return _TABLE[self.kind][0]

    def problem(self, request_id: str | None = None) -> Problem:
        """Return what the sender is told."""
        status, title = _TABLE[self.kind]
        return Problem(
            type=self.kind, title=title, status=status, detail=self.detail, request_id=request_id, image=self.image
        )


def _again(kind: Kind, detail: str, retry_after: float | None, image: ImageQuality | None) -> RefusedError:
    return RefusedError(kind, detail, retry_after=retry_after, image=image)
