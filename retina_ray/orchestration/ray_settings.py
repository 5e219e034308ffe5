"""Every setting of Ray that this product changes, each with its reason, and the one way to connect."""

import os
import secrets
import socket
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import ray

from retina_ray.config_runtime import RuntimeConfig
from retina_ray.errors import ResourceError
from retina_ray.orchestration.resources import local_cpus
from retina_ray.orchestration.scratch import scratch_folder

DRIVER_ENVIRONMENT = {
    # report() passes one result per poll of the controller, whose default is 2 s; it also bounds how long a
    # checkpoint that was reported but not yet committed can be lost.
    "RAY_TRAIN_HEALTH_CHECK_INTERVAL_S": "0.2",
    # Otherwise every line that a worker prints appears twice.
    "RAY_TRAIN_ENABLE_PRINT_PATCH": "0",
    # On a busy machine the workers' imports alone can take longer than the default of 60 s; a group that is given up
    # too early is started again, and takes as long again.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "180",
    # How soon the workers learn that a node is to be taken away; of its notice every second counts.
    "RAY_TRAIN_PREEMPTION_POLL_INTERVAL_S": "0.2",
    "RAY_USAGE_STATS_ENABLED": "0",
}

ELASTIC_ENVIRONMENT = {
    # Ray looks at the nodes every 20 s; what it asks for in between may be more than a lost node has left, and would
    # be waited for as long as by a group that needs all its workers.
    "RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S": "20",
}

PRIVATE_ENVIRONMENT = {
    # Nobody reclaims nodes of a cluster that is this process's own; the watcher is one more process to start.
    "RAY_TRAIN_ENABLE_PREEMPTION_WATCHER": "0",
}

SEARCH_ENVIRONMENT = {
    # What Ray Tune would write of each trial is in the search's journal.
    "TUNE_DISABLE_AUTO_CALLBACK_LOGGERS": "1",
    # So is the search's state; Ray Tune's snapshots lag behind the trials and do not hold the scheduler.
    "TUNE_GLOBAL_CHECKPOINT_S": "1000000",
    # The table of the command line is the only one; Ray Tune's newer output has no silent mode.
    "RAY_AIR_NEW_OUTPUT": "0",
    # Ctrl-C ends a search as it ends everything else; Ray Tune's handler would swallow it.
    "TUNE_DISABLE_SIGINT_HANDLER": "1",
}

WORKER_ENVIRONMENT = {
    # A worker whose peer vanished silently would wait 30 s for the process group to shut down.
    "TORCH_PROCESS_GROUP_SHUTDOWN_TIMEOUT_S": "5",
    # Deterministic cuBLAS kernels; read when CUDA starts.
    "CUBLAS_WORKSPACE_CONFIG": ":4096:8",
}

COLLECTIVE_MARGIN_S = 60
"""How much longer than a rank may stand still the others wait for it: it is to tell where it stands before they give
up. Ray's default of 30 minutes would hide a dead peer."""

START_ATTEMPTS = 40
"""How often a group of workers is asked for, each time for RAY_TRAIN_WORKER_GROUP_START_TIMEOUT_S: nodes have to be
started, or other jobs to end. What cannot start at all fails after minutes all the same."""

_ANSWERS_S = 5.0
"""How long a cluster may take to take a connection."""

OBJECT_STORE_BYTES = 200 * 2**20
"""Of a private cluster: nothing but results travels through it, and the default takes 30 % of the memory."""


@contextmanager
def connected(runtime: RuntimeConfig, *, for_search: bool = False) -> Iterator[None]:
    """Connect to the configured cluster, or start a private one, for the length of a block.

    A private cluster has a temporary folder of its own, since two clusters that share one can end each other's
    training, and a token of its own, so that nobody else on the machine can submit work to it. A process that is
    already connected stays so.

    Args:
        runtime: names the cluster.
        for_search: whether trials run on it. Ray Train then learns through the dashboard that a trial was stopped, and
            frees what its workers took; without one the next trial would wait for that for ever.

    Raises:
        ResourceError: the cluster cannot be reached.
    """
    searching = SEARCH_ENVIRONMENT if for_search else {}
    if ray.is_initialized():
        _set(searching)
        yield
        return
    private = runtime.address == "local"
    settings = {**DRIVER_ENVIRONMENT, **searching}
    if private:
        settings |= PRIVATE_ENVIRONMENT
    if runtime.fewest_workers < runtime.most_workers:
        settings |= ELASTIC_ENVIRONMENT
    _set(settings)
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR"}
    if not private:
        try:
            _require_an_answer(runtime.address)
            ray.init(address=runtime.address, **options)
        except (OSError, RuntimeError, ValueError) as error:
            fix = "check that it runs, and that RAY_AUTH_MODE and the token are those of the cluster"
            raise ResourceError("cannot reach the Ray cluster", f"{runtime.address} ({error})", fix) from error
        try:
            yield
        finally:
            ray.shutdown()
        return
    # Ray reads it once in a process, so it stays for later clusters; without it Ray would leave one in the home folder.
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    with (
        scratch_folder() as folder,
        private_cluster(
            folder, num_cpus=local_cpus(), include_dashboard=for_search and runtime.most_workers > 0, **options
        ),
    ):
        yield


def _require_an_answer(address: str) -> None:
    """Ask a cluster's port, since Ray would ask a closed one for minutes.

    Raises:
        OSError: nobody listens there.
    """
    host, _, port = address.rpartition("://")[2].rpartition(":")
    if host and port.isdecimal():
        with socket.create_connection((host.strip("[]"), int(port)), timeout=_ANSWERS_S):
            pass


@contextmanager
def private_cluster(folder: str, **options: Any) -> Iterator[Any]:
    """Run a Ray cluster of this process's own for the length of a block, and yield what ``ray.init`` returns.

    Its processes find it, and no other cluster on the machine, where they look for the one that was started last: the
    one that watches over a training run asks there whether the run still lives. With two clusters to choose from it
    would not know, and what a stopped trial's workers took would never be free again.

    Args:
        folder: for its files; nobody else's.
        options: of ``ray.init``.
    """
    temporary = Path(folder) / "ray"
    with _patched({"RAY_TMPDIR": folder}):
        try:
            context: Any = ray.init(
                address="local", object_store_memory=OBJECT_STORE_BYTES, _temp_dir=str(temporary), **options
            )
            (temporary / "ray_current_cluster").write_text(context.address_info["gcs_address"], encoding="utf-8")
            yield context
        finally:
            ray.shutdown()


@contextmanager
def _patched(environment: Mapping[str, str]) -> Iterator[None]:
    """Set variables for the length of a block."""
    before = {name: os.environ.get(name) for name in environment}
    os.environ.update(environment)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                os.environ.pop(name, None)
            else:
                os.environ[name] = value


def require_dashboard() -> None:
    """Refuse the cluster that this process is connected to unless it has a dashboard; `connected` says what for.

    Raises:
        ResourceError: it has none.
    """
    if ray.util.client.ray.is_connected():
        return  # Ray's client knows of none; what follows would start a cluster
    # Connected already, so this does nothing but return what the first call did, for which Ray has no other public way.
    context = ray.init(ignore_reinit_error=True, configure_logging=False)
    if not context.dashboard_url:
        fix = (
            "start its head node with ray start --head --include-dashboard=true, or set runtime.workers=0, or choose "
            "--scheduler none without --time-budget"
        )
        what = "the Ray cluster has no dashboard, so trials that are stopped would keep their workers' CPUs"
        raise ResourceError(what, ray.get_runtime_context().gcs_address, fix)


def _set(environment: Mapping[str, str]) -> None:
    """Set variables that the user has not."""
    for name, value in environment.items():
        os.environ.setdefault(name, value)
