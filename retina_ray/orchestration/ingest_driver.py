"""Ingest on a Ray cluster: every core of every node makes parts.

The driver sends rows, never photographs: workers read them from the source and write parts beside the data set, so
both must be reachable from every node (a shared folder, or S3).
"""

from collections.abc import Callable, Generator, Iterator, Sequence
from contextlib import contextmanager
from itertools import islice

import ray
from ray.exceptions import RayTaskError

from retina_ray.config_runtime import RuntimeConfig
from retina_ray.data.parts import Part
from retina_ray.data.workers import Work
from retina_ray.errors import ResourceError, RetinaRayError
from retina_ray.orchestration.ray_settings import connected

_IN_FLIGHT_PER_CPU, _FEWEST_IN_FLIGHT = 2, 64
_TRIES = 3
"""A part is made anew where a node was lost; what a photograph is refused for is no reason to try again."""


@contextmanager
def on_cluster(address: str) -> Iterator[Work]:
    """Connect to a Ray cluster and return what makes parts there.

    Args:
        address: ``HOST:PORT``, ``ray://HOST:PORT``, or ``auto`` for the cluster of this machine.

    Raises:
        ResourceError: the cluster cannot be reached.
    """
    with connected(RuntimeConfig(address=address)):
        yield _make_parts


def _make_parts(function: Callable[[Part], Part], parts: Sequence[Part]) -> Generator[Part, None, None]:
    task = ray.remote(num_cpus=1, max_retries=_TRIES)(function)
    waiting = iter(parts)
    running: set[ray.ObjectRef[Part]] = set()
    try:
        while True:
            cpus = int(ray.cluster_resources().get("CPU", 0))  # of a cluster that grows with its work
            room = max(_FEWEST_IN_FLIGHT, _IN_FLIGHT_PER_CPU * cpus) - len(running)
            for part in islice(waiting, room):
                running.add(task.remote(part))
            if not running:
                return
            [finished], _ = ray.wait(list(running), num_returns=1)
            running.remove(finished)
            yield _result(finished)
    finally:
        for reference in running:
            ray.cancel(reference, force=True)


def _result(reference: "ray.ObjectRef[Part]") -> Part:
    try:
        return ray.get(reference)
    except RayTaskError as error:
        if isinstance(error.cause, RetinaRayError):
            raise error.cause from error
        raise
    except ray.exceptions.RayError as error:
        fix = "check the nodes; the same command goes on from there"
        raise ResourceError("a part could not be made on the cluster", str(error).splitlines()[0], fix) from error
