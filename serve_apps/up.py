"""An application on a Ray cluster of one's own, for the length of a block."""

import os
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress

from retina_ray.errors import ResourceError
from serve_apps.control import Cluster, Serving
from serve_apps.local import Local, announced, cluster_here


@contextmanager
def served_here(serving: Serving, *, announce: bool = True) -> Iterator[str]:
    """Serve on this machine, and yield the endpoint's address when it answers.

    Args:
        serving: what to serve; `local.take_token` was called before Ray was imported.
        announce: let other commands of this user find it.

    Raises:
        ResourceError: the cluster does not start, or the application does not.
    """
    url = f"http://{serving.host}:{serving.port}"
    with ExitStack() as stack:
        dashboard = stack.enter_context(cluster_here(serving.cpus))
        if announce:
            stack.enter_context(announced(Local(dashboard, os.environ["RAY_AUTH_TOKEN"], url)))
        cluster = Cluster(dashboard)
        cluster.apply(serving)
        stack.callback(_remove, cluster)
        cluster.wait(serving.app)
        yield url


def _remove(cluster: Cluster) -> None:
    """End what is served, so that requests under way are answered; a cluster that is gone already has none."""
    with suppress(ResourceError):
        cluster.remove()
