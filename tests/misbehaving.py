"""An HTTP server of a test's own that answers by a script: well, badly, late, in part, or not at all."""

import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from retina_ray.client_transport import Clock
from retina_ray.serving.schema import GradeResponse, ImageQuality, Lesion, ModelVersion, Overlays, TaskGrade, Timing

PNG = b"\x89PNG\r\n\x1a\n and so on"

ANSWER = GradeResponse(
    tasks={
        "dr": TaskGrade(
            grade=2,
            grade_name="moderate",
            probabilities=[0.1, 0.1, 0.6, 0.1, 0.1],
            confidence=0.6,
            referable=True,
            referable_probability=0.8,
            prediction_set=[2, 3],
            coverage=0.9,
            abstain=False,
        )
    },
    image=ImageQuality(ok=True),
    model=ModelVersion(name="tiny", version=3, hash="0123456789ab"),
    timing=Timing(prepare_ms=1.0, network_ms=2.0, total_ms=3.0),
    request_id="a1b2",
)


def illustrated(lesion: str = "MA") -> dict[str, Any]:
    """An answer with every picture, as JSON holds it."""
    given = ANSWER.model_dump(mode="json")
    pictures = GradeResponse.model_construct(
        explanation=Overlays.model_construct(method="gradcam", tasks={"dr": PNG}),
        lesions={lesion: Lesion.model_construct(area=0.0125, mask=PNG)},
        enhanced=PNG,
    )
    return given | pictures.model_dump(mode="json", include={"explanation", "lesions", "enhanced"})


@dataclass(frozen=True)
class Asked:
    """A request as it came."""

    method: str
    path: str
    headers: dict[str, str]  # names in lower case
    body: bytes
    peer: tuple[str, int]


class Time:
    """A clock that stands still but for waits, which take no time."""

    def __init__(self) -> None:
        self.now = 100.0
        self.waits: list[float] = []
        self.during: Callable[[], None] = lambda: None

    def sleep(self, seconds: float) -> None:
        self.waits.append(seconds)
        self.now += seconds
        self.during()

    @property
    def clock(self) -> Clock:
        return Clock(now=lambda: self.now, sleep=self.sleep, chance=lambda: 0.5)


class Server(ThreadingHTTPServer):
    """Follows a script, one step a request; ``asked`` is what came."""

    def __init__(self, *, listen: bool = True) -> None:
        super().__init__(("127.0.0.1", 0), Handler, bind_and_activate=False)
        self.server_bind()
        if listen:
            self.server_activate()
        self.script: list[Step] = []
        self.asked: list[Asked] = []
        self.over = threading.Event()  # ends every wait
        self.hung_up = threading.Event()
        self.lock = threading.Lock()

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"

    def shutdown_request(self, request: Any) -> None:
        super().shutdown_request(request)
        self.hung_up.set()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Keep quiet: connections break off on purpose."""


class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: Server

    def _follow(self) -> None:
        with self.server.lock:
            step = self.server.script.pop(0)
        length = int(self.headers.get("Content-Length", 0))
        body = b"" if getattr(step, "deaf", False) else self.rfile.read(length)
        headers = {name.lower(): value for name, value in self.headers.items()}
        with self.server.lock:
            self.asked = Asked(self.command, self.path, headers, body, self.client_address)
            self.server.asked.append(self.asked)
        step(self)

    do_GET = do_POST = _follow  # noqa: N815

    def log_message(self, *arguments: Any) -> None:
        """Keep quiet."""

    def head(self, status: int, length: int, media_type: str = "application/json", **headers: str) -> None:
        self.send_response(status)
        given = {"Content-Type": media_type, "Content-Length": str(length)}
        for name, value in {**given, **{name.replace("_", "-"): value for name, value in headers.items()}}.items():
            self.send_header(name, value)
        self.end_headers()

    def reset(self) -> None:
        """Break the connection off as a dying process does."""
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
        self.rfile.close()
        self.connection.close()


Step = Callable[[Handler], None]


def answer(content: Any = None, status: int = 200, media_type: str = "application/json", **headers: str) -> Step:
    """Answer with an object as JSON, or with bytes."""
    given = ANSWER.model_dump(mode="json") if content is None else content
    body = given if isinstance(given, bytes) else json.dumps(given).encode()

    def step(handler: Handler) -> None:
        handler.head(status, len(body), media_type, **headers)
        handler.wfile.write(body)

    return step


def problem(status: int, kind: str = "some-kind", detail: str = "words; do this", **headers: str) -> Step:
    """Answer with a problem, as RFC 9457 has it."""
    content = {"type": kind, "title": "Some title", "status": status, "detail": detail, "request_id": "a1b2"}
    return answer(content, status, "application/problem+json", **headers)


def reset(handler: Handler) -> None:
    """Break off before the answer."""
    handler.reset()


def reset_amid(handler: Handler) -> None:
    """Break off amid the answer."""
    body = ANSWER.model_dump_json().encode()
    handler.head(200, len(body))
    handler.wfile.write(body[:40])
    handler.reset()


def cut_off(handler: Handler) -> None:
    """End the stream amid the answer, without a reset."""
    body = ANSWER.model_dump_json().encode()
    handler.head(200, len(body))
    handler.wfile.write(body[:40])
    handler.close_connection = True


def cut_off_chunks(handler: Handler) -> None:
    """End the stream amid an answer in chunks."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    handler.wfile.write(b'20\r\n{"tasks": ')
    handler.close_connection = True


def chunks(handler: Handler) -> None:
    """Answer in chunks, as a service does that does not know the length beforehand."""
    handler.send_response(200)
    handler.send_header("Content-Type", "application/json")
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    body = ANSWER.model_dump_json().encode()
    for piece in (body[:100], body[100:], b""):
        handler.wfile.write(f"{len(piece):x}\r\n".encode() + piece + b"\r\n")


def silence(handler: Handler) -> None:
    """Say nothing until the server ends."""
    handler.server.over.wait()
    handler.close_connection = True


def drip(handler: Handler) -> None:
    """Answer a byte at a time: each in good time, all of them much too late."""
    handler.head(200, 500)
    for _ in range(500):
        handler.server.over.wait(0.01)
        handler.wfile.write(b" ")


def garbage(handler: Handler) -> None:
    """Speak another protocol."""
    handler.wfile.write(b"220 mail.example.org ESMTP ready\r\n")
    handler.close_connection = True


def hang_up(handler: Handler) -> None:
    """Answer, and close the connection without having said so."""
    answer()(handler)
    handler.close_connection = True


def refuse_unread(handler: Handler) -> None:
    """Refuse a request without reading its body."""
    problem(413, "too-large", Connection="close")(handler)
    handler.close_connection = True


refuse_unread.deaf = True  # type: ignore[attr-defined]


@contextmanager
def serving(server: Server) -> Iterator[Server]:
    """Run a server until the block ends."""
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield server
    finally:
        server.over.set()
        server.shutdown()
        thread.join()
        server.server_close()
