"""Ray's client for jobs, in which every wait has an end, and which asks again while a cluster cannot answer.

Kept apart since it takes a second to import.
"""

import re
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import suppress
from math import inf
from typing import Any, TypeVar

import aiohttp
from ray.exceptions import RayError
from ray.job_submission import JobSubmissionClient

from retina_ray.errors import ResourceError
from retina_ray.orchestration.dashboard import reached

_Answer = TypeVar("_Answer")

_POLL_S = 0.5

_ANSWER_S = 30.0
"""How long a request may wait for its connection, and then for each part of the answer."""

_UPLOAD_S = 600.0
"""The same for one that sends something: a package may be large, and the line slow."""

_GOODBYE_S = 1.0
"""How long the other end of a log's connection may take to say that it ends too."""

_JOB_ENDPOINT = re.compile(r"/api/jobs/(?P<job>[^/]+)")


class _UnavailableError(ConnectionError):
    """There is no answer now, but there may be one later."""


class _FailingError(_UnavailableError):
    """The dashboard itself says so, not what lies between."""


class JobClient(JobSubmissionClient):
    """Ray's client for the jobs of a cluster.

    Args:
        address: of its dashboard.
        patience_s: how long it may be out of reach before a caller hears of it.
        silence_s: how long a log may say nothing before its connection is taken for dead.

    Raises:
        ResourceError: it does not answer.
    """

    def __init__(self, address: str, *, patience_s: float, silence_s: float) -> None:
        self._patience_s = patience_s
        self._silence_s = silence_s
        with reached(address):
            super().__init__(address)

    def patiently(self, ask: Callable[[], _Answer], *, failing_s: float = inf) -> _Answer:
        """Ask the dashboard, again and again while it does not answer.

        Args:
            ask: does so.
            failing_s: how long to go on at most, where it is the dashboard itself that answers with an error.

        Raises:
            KeyError: it knows no such job.
            ResourceError: it did not answer within the patience, or refused.
        """
        begun = time.monotonic()
        while True:
            try:
                return ask()
            except OSError as error:
                patience_s = min(self._patience_s, failing_s if isinstance(error, _FailingError) else inf)
                if time.monotonic() > begun + patience_s:
                    fix = "a job goes on by itself; follow it with `retina-ray jobs logs -f NAME` when it answers again"
                    reason = " ".join(str(error).split())[:200]
                    raise ResourceError(f"the dashboard gives no answer ({reason})", self._address, fix) from None
                time.sleep(_POLL_S)
            except (RuntimeError, RayError):
                with reached(self._address):
                    raise

    async def pieces(self, job: str) -> AsyncGenerator[str, None]:
        """Yield a job's log from its beginning, until it or the connection ends, or nothing has come for too long.

        A connection may be dead without a word: a laptop slept, a router forgot it. Ray's end answers no pings, so
        silence is all that there is to go by; that of a job with nothing to say costs a new connection, no more.
        Ray's own `tail_job_logs` would wait for ever, and cannot be left without complaints of what it left open.
        """
        url = f"{self._address}/api/jobs/{job}/logs/tail"
        within = aiohttp.ClientTimeout(total=_ANSWER_S)
        goodbye = aiohttp.ClientWSTimeout(ws_close=_GOODBYE_S)
        with suppress(OSError, aiohttp.ClientError):
            async with (
                aiohttp.ClientSession(cookies=self._cookies, headers=self._headers, timeout=within) as session,
                session.ws_connect(url, timeout=goodbye) as socket,
            ):
                while (piece := await socket.receive(self._silence_s)).type is aiohttp.WSMsgType.TEXT:
                    yield piece.data

    def _do_request(self, method: str, endpoint: str, **options: Any) -> Any:
        """Send a request, as Ray's client does with each of its own.

        Raises:
            KeyError: there is no such job.
            _UnavailableError: the dashboard, or something on the way to it, cannot answer now.
        """
        sends = any(options.get(each) is not None for each in ("data", "json_data"))
        answer = super()._do_request(method, endpoint, timeout=_UPLOAD_S if sends else _ANSWER_S, **options)
        status = answer.status_code
        if status == 404 and (found := _JOB_ENDPOINT.match(endpoint)):
            raise KeyError(found["job"])
        if status == 500:
            last = answer.text.strip().rpartition("\n")[2]  # of a traceback
            raise _FailingError(f"status 500: {last}")
        if status > 500:
            raise _UnavailableError(f"status {status} {answer.reason}")
        return answer
