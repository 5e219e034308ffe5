"""`retina-ray jobs` on a bad line to the dashboard: errors that pass, connections that die without a word."""

import asyncio
import os
import re
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import suppress

import pytest
from aiohttp import web

from retina_ray.cli.main import run
from retina_ray.errors import ResourceError
from retina_ray.orchestration import job_client, jobs
from retina_ray.orchestration.dashboard import authenticate

authenticate()  # before the first Jobs imports Ray

JOB = "night-4045"
LOG = "".join(f"epoch {number}\n" for number in range(1, 9))
TRACEBACK = 'Traceback (most recent call last):\n  File "gcs.py", line 404, in ask\nOSError: it does not exist now'

NEVER = 0
"""In place of a status: no answer at all."""

Spoil = Callable[[str, int], tuple[int, str] | None]
Tail = Callable[["Dashboard", web.WebSocketResponse, int], object]


class Dashboard:
    """Plays a cluster's dashboard with one job, as a server of its own thread.

    Attributes:
        address: its own.
        status, log: of the job.
        asked: what it was asked, such as ``GET /api/jobs/NAME``.
        submitted: names of the jobs that were sent to it.
        spoil: returns status and text to answer a question with instead, by what was asked and how often before.
        tail: sends the log to a follower, the how manieth of them counted from 0.
    """

    def __init__(self) -> None:
        self.status, self.log = "RUNNING", LOG
        self.asked: list[str] = []
        self.submitted: list[str] = []
        self.spoil: Spoil = lambda asked, before: None
        self.tail: Tail = whole
        self._ready = threading.Event()
        self._thread = threading.Thread(target=lambda: asyncio.run(self._run()))

    @property
    def tails(self) -> int:
        return sum(asked.endswith("/logs/tail") for asked in self.asked)

    def start(self) -> None:
        self._thread.start()
        assert self._ready.wait(10)

    def stop(self) -> None:
        self._loop.call_soon_threadsafe(self._over.set)
        self._thread.join(10)

    async def _run(self) -> None:
        self._loop, self._over = asyncio.get_running_loop(), asyncio.Event()
        app = web.Application(middlewares=[self._answer])
        app.router.add_route("*", "/{path:.*}", self._told)
        runner = web.AppRunner(app, shutdown_timeout=0.1)
        await runner.setup()
        await web.TCPSite(runner, "127.0.0.1", 0).start()
        self.address = f"http://127.0.0.1:{runner.addresses[0][1]}"
        self._ready.set()
        await self._over.wait()
        await runner.cleanup()

    @web.middleware
    async def _answer(self, request: web.Request, handler: Callable[[web.Request], object]) -> web.StreamResponse:
        asked = f"{request.method} {request.path}"
        before = self.asked.count(asked)
        self.asked.append(asked)
        if spoilt := self.spoil(asked, before):
            if spoilt[0] == NEVER:
                await asyncio.sleep(60)
            return web.Response(status=spoilt[0], text=spoilt[1])
        return await handler(request)

    async def _told(self, request: web.Request) -> web.StreamResponse:
        asked = f"{request.method} {request.path}"
        if asked == "GET /api/version":
            return web.json_response({"version": "4", "ray_version": "2.60.0"})
        if asked.startswith("GET /api/packages/"):
            return web.Response()
        if asked == "POST /api/jobs/":
            self.submitted.append((await request.json())["submission_id"])
            return web.json_response(dict.fromkeys(("job_id", "submission_id"), self.submitted[-1]))
        if asked.endswith("/logs/tail"):
            return await self._follow(request)
        if asked.endswith("/logs"):
            return web.json_response({"logs": self.log})
        if asked.endswith("/stop"):
            self.status = "STOPPED"
            return web.json_response({"stopped": True})
        if request.method == "DELETE":
            return web.json_response({"deleted": True})
        known = {"type": "SUBMISSION", "entrypoint": "train", "submission_id": JOB, "status": self.status}
        return web.json_response(known)

    async def _follow(self, request: web.Request) -> web.StreamResponse:
        socket = web.WebSocketResponse()
        await socket.prepare(request)
        with suppress(ConnectionError):
            await self.tail(self, socket, self.tails - 1)
        return socket


async def whole(dashboard: Dashboard, socket: web.WebSocketResponse, before: int) -> None:
    """The job goes on to its end."""
    await socket.send_str(dashboard.log)
    dashboard.status = "SUCCEEDED"


async def dead_at_first(dashboard: Dashboard, socket: web.WebSocketResponse, before: int) -> None:
    """Two connections die in the middle of a line, with no end that a follower could see."""
    if before == 2:
        await whole(dashboard, socket, before)
        return
    for line in LOG[: 17 * (before + 1)].splitlines(keepends=True):
        await socket.send_str(line)
    await asyncio.sleep(60)


@pytest.fixture
def dashboard(monkeypatch: pytest.MonkeyPatch) -> Iterator[Dashboard]:
    for module in (jobs, job_client):
        monkeypatch.setattr(module, "_POLL_S", 0.05)
    monkeypatch.setattr(jobs, "_NOTICED_S", 0.05)
    played = Dashboard()
    played.start()
    yield played
    played.stop()


def followed(dashboard: Dashboard, *, patience_s: float = 30.0, silence_s: float = 30.0) -> tuple[jobs.JobState, str]:
    written: list[str] = []
    cluster = jobs.Jobs(dashboard.address, patience_s=patience_s, silence_s=silence_s)
    return cluster.follow(JOB, written.append), "".join(written)


def often(times: int, pattern: str, status: int, text: str) -> Spoil:
    """Answer what matches with an error, as often as said."""
    return lambda asked, before: (status, text) if re.fullmatch(pattern, asked) and before < times else None


@pytest.mark.parametrize("status", [500, 502, 503, 504])
def test_an_error_of_the_server_passes(dashboard: Dashboard, status: int) -> None:
    dashboard.spoil = often(2, f"GET /api/jobs/{JOB}.*", status, TRACEBACK)
    state, log = followed(dashboard)
    assert (state.status, log) == ("SUCCEEDED", LOG)


def test_one_that_does_not_pass_ends_the_patience(dashboard: Dashboard) -> None:
    dashboard.spoil = often(1000, f"GET /api/jobs/{JOB}", 502, "<html>no backend</html>")
    with pytest.raises(ResourceError, match=r"gives no answer \(status 502 Bad Gateway\)") as caught:
        followed(dashboard, patience_s=0.2)
    assert "jobs logs -f" in str(caught.value)
    assert len(dashboard.asked) >= 2 + 2, "asked again"


def test_a_traceback_is_told_by_its_last_line(dashboard: Dashboard) -> None:
    dashboard.spoil = often(1000, f"GET /api/jobs/{JOB}", 500, TRACEBACK)
    with pytest.raises(ResourceError, match=r"\(status 500: OSError: it does not exist now\)"):
        followed(dashboard, patience_s=0.2)


@pytest.mark.parametrize("status", [400, 403])
def test_a_refusal_is_told_at_once(dashboard: Dashboard, status: int) -> None:
    dashboard.spoil = often(1000, f"GET /api/jobs/{JOB}", status, f"{JOB} does not exist for you")
    with pytest.raises(ResourceError, match="cannot reach the dashboard"):
        followed(dashboard)
    assert dashboard.asked[2:] == [f"GET /api/jobs/{JOB}"]


def test_only_the_status_says_that_there_is_no_such_job(dashboard: Dashboard) -> None:
    dashboard.spoil = often(1000, f"GET /api/jobs/{JOB}.*", 404, "Job does not exist")
    with pytest.raises(KeyError, match=JOB):
        followed(dashboard)


def test_a_connection_that_died_without_a_word_is_made_again(dashboard: Dashboard) -> None:
    dashboard.tail = dead_at_first
    state, log = followed(dashboard, silence_s=0.3)
    assert (state.status, log, dashboard.tails) == ("SUCCEEDED", LOG, 3)


def test_one_that_lives_is_kept(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    async def slow(played: Dashboard, socket: web.WebSocketResponse, before: int) -> None:
        for line in LOG.splitlines(keepends=True):
            await socket.send_str(line)
            await asyncio.sleep(0.2)
        played.status = "SUCCEEDED"

    dashboard.tail = slow
    monkeypatch.setattr(job_client, "_ANSWER_S", 0.5)
    state, log = followed(dashboard, silence_s=0.7)
    assert (state.status, log, dashboard.tails) == ("SUCCEEDED", LOG, 1)


def test_a_job_that_ends_in_silence_is_seen_to_end(dashboard: Dashboard) -> None:
    async def silent(played: Dashboard, socket: web.WebSocketResponse, before: int) -> None:
        played.status = "FAILED"
        await asyncio.sleep(60)

    dashboard.tail = silent
    state, log = followed(dashboard, silence_s=0.3)
    assert (state.status, log, dashboard.tails) == ("FAILED", LOG, 1)


def test_a_question_that_nobody_answers_is_asked_again(dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(job_client, "_ANSWER_S", 0.5)
    dashboard.spoil = often(1, f"GET /api/jobs/{JOB}", NEVER, "")
    state, log = followed(dashboard)
    assert (state.status, log) == ("SUCCEEDED", LOG)


@pytest.mark.parametrize("status", [404, 500])
def test_a_log_that_went_with_its_machine_hides_no_end(
    dashboard: Dashboard, monkeypatch: pytest.MonkeyPatch, status: int
) -> None:
    monkeypatch.setattr(jobs, "_NO_LOG_S", 0.2)
    dashboard.status = "FAILED"
    dashboard.spoil = often(1000, f"GET /api/jobs/{JOB}/logs", status, TRACEBACK)
    state, log = followed(dashboard)
    assert (state.status, log) == ("FAILED", "")


def test_who_stops_reading_ends_it(dashboard: Dashboard) -> None:
    def closed(text: str) -> None:
        raise BrokenPipeError

    with pytest.raises(BrokenPipeError):
        jobs.Jobs(dashboard.address).follow(JOB, closed)
    assert dashboard.tails == 1


def test_what_is_gone_can_be_forgotten(dashboard: Dashboard) -> None:
    dashboard.spoil = lambda asked, before: ((502, 404)[before], "") if asked.startswith("DELETE") else None
    jobs.Jobs(dashboard.address).forget(JOB)


def test_ctrl_c_takes_the_check_away(dashboard: Dashboard, capsys: pytest.CaptureFixture[str]) -> None:
    async def interrupted(played: Dashboard, socket: web.WebSocketResponse, before: int) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.sleep(60)

    dashboard.tail = interrupted
    dashboard.spoil = often(1, r"GET /api/jobs/mine-check-\w+", 404, "")
    words = ["jobs", "submit", "--address", dashboard.address, "--name", "mine", "--image-code"]
    assert run([*words, "--", "train", "--data", "s3://fundus/set", "--storage", "s3://fundus/runs"]) == 130
    check = dashboard.submitted[0]
    assert check.startswith("mine-check-")
    assert dashboard.asked[-1] == f"DELETE /api/jobs/{check}"
    assert f"POST /api/jobs/{check}/stop" in dashboard.asked
    assert len(dashboard.submitted) == 1, "the job itself was not sent"
    assert f"stopping the check {check}" in capsys.readouterr().err
