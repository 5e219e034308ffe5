"""Ray Jobs: send a command to a cluster, follow it through lost connections, end it.

The job runs whether or not anybody follows it, and its log stays on the cluster.
"""

import asyncio
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import aclosing, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from retina_ray.errors import ResourceError
from retina_ray.orchestration.dashboard import reached

STOP_WAIT_S = 60
"""From being told to stop until it is killed: a training writes a checkpoint meanwhile."""

_POLL_S = 0.5

_NO_LOG_S = 10.0
"""How long a dashboard is asked again for a log that it fails to get: it may have gone with its machine."""

_NOTICED_S = 4.0
"""Until Ray, which looks every second, has noticed that a stopped job's processes are gone; one that is removed before
then is listed anew, as failed."""


@dataclass(frozen=True)
class JobRequest:
    """A command for a cluster.

    Attributes:
        id: of the job, nobody else's on that cluster.
        command: what the cluster's shell runs.
        files: content by name, laid into the job's working folder.
        packages: folders of Python packages that go along; empty where the cluster's own are used.
        environment: variables of the job's processes.
        metadata: shown with the job.
        gpus: for the command's own process; its workers' are not counted here.
    """

    id: str
    command: str
    files: Mapping[str, bytes] = field(default_factory=dict)
    packages: tuple[Path, ...] = ()
    environment: Mapping[str, str] = field(default_factory=dict)
    metadata: Mapping[str, str] = field(default_factory=dict)
    gpus: float = 0.0


@dataclass(frozen=True)
class JobState:
    """What a cluster says of a job.

    Attributes:
        id: of the job.
        status: PENDING, RUNNING, SUCCEEDED, FAILED or STOPPED.
        message: why, where there is something to say.
        command: what was submitted, as the user wrote it where that is known.
        started, ended: seconds since 1970; None where it has not yet.
        exit_code: its process's; None where it has none.
        metadata: as submitted.
    """

    id: str
    status: str
    message: str
    command: str
    started: float | None
    ended: float | None
    exit_code: int | None
    metadata: Mapping[str, str]

    @property
    def is_over(self) -> bool:
        """Whether it has ended, however it did."""
        return self.status in ("SUCCEEDED", "FAILED", "STOPPED")


class Jobs:
    """The jobs of a cluster.

    Args:
        address: of its dashboard, such as ``http://127.0.0.1:8265``.
        patience_s: how long a connection may be lost before a caller hears of it.
        silence_s: how long a followed log may say nothing before its connection is taken for dead.

    Raises:
        ResourceError: it does not answer.
    """

    def __init__(self, address: str, *, patience_s: float = 120.0, silence_s: float = 60.0) -> None:
        from retina_ray.orchestration.job_client import JobClient

        self.address = address
        self._client = JobClient(address, patience_s=patience_s, silence_s=silence_s)

    def submit(self, request: JobRequest) -> None:
        """Send a job; returns when the cluster has it.

        Raises:
            ResourceError: a job of that name is there already, or the cluster cannot be reached.
        """
        with suppress(KeyError):
            self.state(request.id)
            fix = f"choose another --name, or look at it with `retina-ray jobs status {request.id}`"
            raise ResourceError("a job of this name exists", request.id, fix)
        with tempfile.TemporaryDirectory(prefix="retina-ray-job-") as folder:
            for name, content in request.files.items():
                file = Path(folder, name)
                file.parent.mkdir(parents=True, exist_ok=True)
                file.write_bytes(content)
            environment = {"RAY_JOB_STOP_WAIT_TIME_S": str(STOP_WAIT_S), **request.environment}
            runtime_env: dict[str, Any] = {"working_dir": folder, "env_vars": environment}
            if request.packages:
                runtime_env["py_modules"] = [str(package) for package in request.packages]
            try:
                self._client.submit_job(
                    entrypoint=request.command,
                    submission_id=request.id,
                    runtime_env=runtime_env,
                    metadata=dict(request.metadata),
                    entrypoint_num_gpus=request.gpus or None,
                )
            except (ConnectionError, RuntimeError, OSError) as error:
                # The answer may have been lost, not the request.
                with suppress(KeyError):
                    self.state(request.id)
                    return
                with reached(self.address):
                    raise error

    def state(self, job: str) -> JobState:
        """Return what the cluster says of a job.

        Raises:
            KeyError: it knows none of that name.
            ResourceError: the cluster cannot be reached.
        """
        return _state(self._client.patiently(lambda: self._client.get_job_info(job)))

    def list(self) -> list[JobState]:
        """Return all jobs that were submitted, the newest first.

        Raises:
            ResourceError: the cluster cannot be reached.
        """
        found = [_state(each) for each in self._client.patiently(self._client.list_jobs) if each.submission_id]
        return sorted(found, key=lambda each: each.started or float("inf"), reverse=True)

    def log(self, job: str) -> str:
        """Return what a job has written so far.

        Raises:
            KeyError: there is no such job.
            ResourceError: the cluster cannot be reached, or the log went with the machine that held it.
        """
        return str(self._client.patiently(lambda: self._client.get_job_logs(job), failing_s=_NO_LOG_S))

    def follow(self, job: str, write: Callable[[str], None]) -> JobState:
        """Pass on what a job writes until it ends, from its beginning, each character once however often it is lost.

        Args:
            job: which.
            write: receives pieces of its log.

        Raises:
            KeyError: there is no such job.
            ResourceError: the connection was lost for longer than the patience; the job goes on.
        """
        state = self.state(job)
        shown = 0

        def show(text: str) -> None:
            nonlocal shown
            write(text)
            shown += len(text)

        while not state.is_over:
            asyncio.run(self._tail(job, lambda: shown, show))
            time.sleep(_POLL_S)
            state = self.state(job)
        with suppress(ResourceError, KeyError):  # without its machine there is no log, but there is an end
            show(self.log(job)[shown:])
        return state

    def stop(self, job: str) -> JobState:
        """Tell a job to stop, and wait until it has.

        Raises:
            KeyError: there is no such job.
            ResourceError: the cluster cannot be reached, or the job goes on.
        """
        state = self.state(job)
        if state.is_over:
            return state
        self._client.patiently(lambda: self._client.stop_job(job))
        until = time.monotonic() + STOP_WAIT_S + 30
        while not (state := self.state(job)).is_over:
            if time.monotonic() > until:
                raise ResourceError("the job does not stop", job, "look at its log, and at the cluster's head node")
            time.sleep(_POLL_S)
        return state

    def forget(self, job: str) -> None:
        """Remove a job that has ended from the cluster's list, and its log."""
        with suppress(KeyError):  # removed by a request whose answer was lost
            if self.state(job).status == "STOPPED":
                time.sleep(_NOTICED_S)
            self._client.patiently(lambda: self._client.delete_job(job))

    async def _tail(self, job: str, shown: Callable[[], int], show: Callable[[str], None]) -> None:
        """Pass on what comes after the characters already shown, until the job or the connection ends."""
        passed = 0
        async with aclosing(self._client.pieces(job)) as pieces:
            async for text in pieces:
                known = min(len(text), max(0, shown() - passed))
                passed += len(text)
                if text[known:]:
                    show(text[known:])


def _state(found: Any) -> JobState:
    metadata = found.metadata or {}
    return JobState(
        id=found.submission_id,
        status=str(getattr(found.status, "value", found.status)),
        message=found.message or "",
        command=metadata.get("command", found.entrypoint),
        started=None if found.start_time is None else found.start_time / 1000,
        ended=None if found.end_time is None else found.end_time / 1000,
        exit_code=found.driver_exit_code,
        metadata=metadata,
    )
