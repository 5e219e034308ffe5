"""The web application on a real port, over a real predictor on a tiny bundle, for the tests of HTTP and of the page."""

import asyncio
import base64
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

import cv2
import numpy as np
import requests
import simplejpeg
import uvicorn

from retina_ray.bundle import CARD, Bundle
from retina_ray.data.fundus import NoFundusError, prepare_bytes
from retina_ray.data.schema import LESIONS
from retina_ray.errors import DataError
from retina_ray.serving import drawing
from retina_ray.serving.http import HttpSettings, build_app
from retina_ray.serving.keys import ApiKeys
from retina_ray.serving.predictor import Predictor
from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.schema import (
    GradeResponse,
    ImageQuality,
    Lesion,
    ModelDescription,
    ModelsResponse,
    Overlays,
    TaskDescription,
)
from retina_ray.serving.service import GradeRequest
from tests.serving_photographs import photograph

SETTINGS = HttpSettings(max_body_bytes=2**20, body_seconds=5.0, max_batch=3)
RAW = {"Content-Type": "application/octet-stream"}
_SHOWN = 320


def wall() -> bytes:
    """Return a photograph that shows no fundus."""
    return bytes(simplejpeg.encode_jpeg(np.full((200, 200, 3), 90, np.uint8)))


@dataclass
class PredictorService:
    """Grades in this process; what a test changes decides how it goes wrong.

    Attributes:
        bundle: the model.
        draws: whether it claims to draw and segment, of which the networks know nothing: it paints what is bright.
        refusal: is raised in place of grading.
        failure: is raised in place of grading, against the protocol.
        rate_limit: photographs that are admitted.
        starting: why it is not ready.
        altered: fields of answers that are replaced.
        before: is called with each request, and may raise.
        asked: the requests that were graded or refused.
        observed: route and status of each finished request.
    """

    bundle: Bundle
    draws: bool = False
    refusal: RefusedError | None = None
    failure: Exception | None = None
    rate_limit: float = float("inf")
    starting: str | None = None
    altered: dict[str, object] = field(default_factory=dict)
    before: Callable[[GradeRequest], None] = lambda _: None
    asked: list[GradeRequest] = field(default_factory=list)
    observed: list[tuple[str, int]] = field(default_factory=list)

    def __post_init__(self) -> None:
        self._predictor = Predictor(self.bundle)

    async def grade(self, request: GradeRequest) -> GradeResponse:
        self.asked.append(request)
        self.before(request)
        if self.failure is not None:
            raise self.failure
        if self.refusal is not None:
            raise self.refusal
        if request.model not in (None, "tiny"):
            raise RefusedError("unknown-model", f"no such model is served: {request.model!r}; served are tiny")
        start = time.perf_counter()
        try:
            answer = await asyncio.to_thread(self._predictor.grade, request.photograph)
        except NoFundusError as error:
            verdict = ImageQuality(ok=False, reason=f"retake: no fundus found ({error.what})")
            raise RefusedError("no-fundus", f"{error.what}; {error.fix}", image=verdict) from None
        except DataError as error:
            raise RefusedError("unreadable-image", f"{error.what}; {error.fix}") from None
        update: dict[str, object] = {**self.altered, "request_id": request.request_id}
        update["timing"] = answer.timing.model_copy(update={"total_ms": 1e3 * (time.perf_counter() - start)})
        if self.draws:
            update |= self._drawn(request, list(answer.tasks))
        return answer.model_copy(update=update)

    def _drawn(self, request: GradeRequest, tasks: list[str]) -> dict[str, object]:
        square = prepare_bytes(request.photograph, name="photograph", size=_SHOWN)
        grey = cv2.GaussianBlur(square.max(axis=2), (0, 0), 6).astype(np.float32) / 255
        found: dict[str, object] = {}
        if request.options.explain is not None:
            heat = (grey / grey.max()) ** 8
            maps = {task: np.rot90(heat, turn).copy() for turn, task in enumerate(tasks)}
            found["fundus"] = drawing.picture_png(square)
            found["explanation"] = Overlays(
                method=request.options.explain,
                tasks={task: base64.b64encode(drawing.overlay_png(square, one)) for task, one in maps.items()},
            )
        if request.options.lesions:
            found["fundus"] = drawing.picture_png(square)
            masks = [(grey > low) & (grey < low + 0.02) for low in (0.6, 0.65, 0.7, 9.0)]
            found["lesions"] = {
                lesion: Lesion(area=drawing.area(mask), mask=base64.b64encode(drawing.mask_png(mask)))
                for lesion, mask in zip(LESIONS, masks, strict=True)
            }
        if request.options.enhance:
            found["enhanced"] = drawing.picture_png(cv2.convertScaleAbs(square, alpha=1.3))
        return found

    async def models(self) -> ModelsResponse:
        manifest = self.bundle.manifest
        description = ModelDescription(
            served_as="tiny",
            model=self._predictor.grade(photograph()).model,
            method=manifest.method,
            tasks={
                task.name: TaskDescription(
                    grades=list(task.grades),
                    referable_from=manifest.calibration[task.name].referable_from,
                    coverage=manifest.calibration[task.name].coverage,
                    metrics=dict(manifest.metrics[task.name].metrics),
                )
                for task in manifest.tasks
            },
            image_size=manifest.preprocessing.image_size,
            explanations=["gradcam", "gmsv"] if self.draws else [],
            lesions=self.draws,
            enhances=self.draws,
            created=manifest.created,
            card=self.bundle.store.read_bytes(CARD).decode(),
        )
        return ModelsResponse(models=[description])

    async def admit(self, key_id: str, photographs: int) -> None:
        if photographs > self.rate_limit:
            raise RefusedError("rate-limited", f"the key {key_id} has sent its share; wait 2 s", retry_after=1.2)
        self.rate_limit -= photographs

    async def metrics(self) -> str:
        return "# HELP retina_ray_up One.\n# TYPE retina_ray_up gauge\nretina_ray_up 1.0\n"

    async def not_ready(self) -> str | None:
        return self.starting

    def observe(self, route: str, status: int, seconds: float) -> None:
        assert seconds >= 0
        self.observed.append((route, status))


@contextmanager
def served(service: PredictorService, settings: HttpSettings = SETTINGS, keys: ApiKeys | None = None) -> Iterator[str]:
    """Run the application on a free port for the length of a block, and give its address."""
    with listening_app(build_app(service, settings, keys)) as url:
        yield url


@contextmanager
def listening_app(app: Callable[..., object]) -> Iterator[str]:
    """Run an ASGI application on a free port for the length of a block, and give its address."""
    listening = socket.create_server(("127.0.0.1", 0))
    server = uvicorn.Server(uvicorn.Config(app, log_config=None, access_log=False, timeout_keep_alive=2))
    thread = threading.Thread(target=server.run, kwargs={"sockets": [listening]})
    thread.start()
    host, port = listening.getsockname()
    try:
        wait_until(lambda: server.started, "the server is up")
        yield f"http://{host}:{port}"
    finally:
        server.should_exit = True
        thread.join(20)
        listening.close()
        assert not thread.is_alive()


def wait_until(holds: Callable[[], bool], what: str, seconds: float = 20.0) -> None:
    """Poll until something holds."""
    deadline = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < deadline, f"not within {seconds:g} s: {what}"
        time.sleep(0.01)


def problem_of(response: requests.Response) -> dict[str, object]:
    """Return the problem that a response holds, after checking its form."""
    assert response.headers["content-type"] == "application/problem+json"
    problem: dict[str, object] = response.json()
    assert problem["status"] == response.status_code
    assert problem["request_id"] == response.headers["x-request-id"]
    assert problem["title"]
    assert problem["detail"]
    return problem


def post(url: str, data: bytes = b"", **options: object) -> requests.Response:
    """Send a body as it is."""
    return requests.post(f"{url}/v1/grade", data=data, headers=RAW, timeout=20, **options)  # type: ignore[arg-type]
