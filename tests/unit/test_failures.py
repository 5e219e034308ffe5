"""What is said of workers that failed: the ranks that did so by themselves, and why."""

import pytest
from ray.exceptions import RayActorError
from ray.train.v2._internal.exceptions import WorkerHealthCheckFailedError

from retina_ray.cli.console import _line
from retina_ray.orchestration.failures import TellFailures, first_to_fail


class Relay:
    """Stands for the driver's relay, and keeps what is pushed to it."""

    def __init__(self) -> None:
        self.records: list[dict[str, object]] = []
        self.push = self

    def remote(self, record: dict[str, object]) -> None:
        self.records.append(record)


def died(why: str) -> WorkerHealthCheckFailedError:
    return WorkerHealthCheckFailedError("A worker health check failed.", failure=RayActorError("0" * 32, why))


@pytest.mark.parametrize(
    ("errors", "expected"),
    [
        ({0: RuntimeError("gloo: closed by peer"), 1: died("killed")}, ([1], "its process has gone")),
        ({2: died("The actor died because its node has died."), 3: died("x")}, ([2, 3], "its node was lost")),
        ({1: RuntimeError("[/a/gloo/pair.cc:545] Read error")}, ([1], "its connection to another rank broke")),
        ({1: OSError(28, "No space left\nmore"), 0: OSError(28, "No space left")}, None),
    ],
)
def test_others_fail_of_a_process_that_has_gone(
    errors: dict[int, Exception], expected: tuple[list[int], str] | None
) -> None:
    assert first_to_fail(errors) == (expected or ([0, 1], "OSError: [Errno 28] No space left"))


def test_the_driver_hears_of_it_and_says_it() -> None:
    relay = Relay()
    TellFailures("student", relay).after_exception(None, {1: died("killed")})
    (record,) = relay.records
    assert record == {"stage": "student", "kind": "failed", "ranks": [1], "reason": "its process has gone"}
    assert _line(record) == "failed on rank 1: its process has gone"
