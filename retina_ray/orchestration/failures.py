"""Word of workers that failed, as soon as Ray Train knows; it then starts all of them anew, or gives up."""

import re
from collections.abc import Mapping
from typing import Any

from ray.exceptions import RayActorError

# From its own module: type checkers take the name in ray.train for that of its first version.
from ray.train.v2.api.callback import UserCallback

_COLLECTIVE = re.compile(r"\b(gloo|nccl)", re.IGNORECASE)
_LONGEST = 200


class TellFailures(UserCallback):
    """Pushes a record of kind ``failed`` to the driver's relay; Ray's controller calls it.

    Args:
        stage: name that the records carry.
        relay: the driver's relay actor.
    """

    def __init__(self, stage: str, relay: Any) -> None:
        self._stage = stage
        self._relay = relay

    def after_exception(self, run_context: Any, worker_exceptions: Mapping[int, Exception]) -> None:
        """Tell of the workers that failed, by rank."""
        ranks, reason = first_to_fail(worker_exceptions)
        self._relay.push.remote({"stage": self._stage, "kind": "failed", "ranks": ranks, "reason": reason})


def first_to_fail(errors: Mapping[int, Exception]) -> tuple[list[int], str]:
    """Return the ranks that failed by themselves, and of what.

    Args:
        errors: of ranks, as Ray Train met them. Where the process of a rank has gone, the others fail of that.
    """
    causes = {rank: getattr(error, "health_check_failure", error) for rank, error in errors.items()}
    gone = {rank: error for rank, error in causes.items() if isinstance(error, RayActorError)}
    first = gone or causes
    return sorted(first), _reason(first[min(first)])


def _reason(error: Exception) -> str:
    if isinstance(error, RayActorError):
        return "its node was lost" if "node has died" in str(error) else "its process has gone"
    text = f"{type(error).__name__}: {error}".strip()
    if _COLLECTIVE.search(text):
        return "its connection to another rank broke"
    return text.splitlines()[0][:_LONGEST]
