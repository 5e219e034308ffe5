"""What happens around every HTTP request: its number, its headers, its count, and that nothing leaks when it fails."""

import logging
import time
import traceback
import uuid
from collections.abc import MutableMapping
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.types import ASGIApp, Receive, Scope, Send

from retina_ray.serving.body import BodyLimits, SenderGoneError, drain
from retina_ray.serving.http_problems import refusal
from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.service import Service

_logger = logging.getLogger(__name__)

_SENDER_GONE = 499  # as nginx calls it; no response has this status
_HEADERS = {
    "Cache-Control": "no-store",
    "Content-Security-Policy": "default-src 'none'; frame-ancestors 'none'",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
}
"""Of every response that does not say otherwise."""


class Guard:
    """ASGI middleware around the whole application.

    Args:
        app: the application.
        service: is told of each request that is over.
        limits: of what is read of a body that nobody wants any more.
    """

    def __init__(self, app: ASGIApp, service: Service, limits: BodyLimits) -> None:
        self._app = app
        self._service = service
        self._limits = limits

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass a request on."""
        if scope["type"] != "http":
            await self._app(scope, receive, send)
            return
        start = time.perf_counter()
        exchange = _Exchange(scope, receive, send, self._limits)
        try:
            await self._app(scope, exchange.receive, exchange.send)
        except SenderGoneError:
            exchange.status = _SENDER_GONE
        except Exception as error:
            log_failure(exchange.request_id, error)
            if not exchange.started:
                await exchange.apologise()
        route = getattr(scope.get("route"), "path", "unknown")
        self._service.observe(route, exchange.status, time.perf_counter() - start)


class _Exchange:
    """One request and its response."""

    def __init__(self, scope: Scope, receive: Receive, send: Send, limits: BodyLimits) -> None:
        self.status = 500
        self.started = False
        self._scope = scope
        self._receive = receive
        self._send = send
        self._limits = limits
        self.request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = self.request_id
        headers = Headers(scope=scope)
        self._body_left = headers.get("content-length", "0") != "0" or "transfer-encoding" in headers
        self._waits = headers.get("expect", "").lower() == "100-continue"  # sends nothing until something is received

    async def receive(self) -> MutableMapping[str, Any]:
        self._waits = False
        event = await self._receive()
        self._body_left = event["type"] == "http.request" and event.get("more_body", False)
        return event

    async def send(self, event: MutableMapping[str, Any]) -> None:
        if event["type"] == "http.response.start":
            self.started, self.status = True, event["status"]
            headers = MutableHeaders(raw=event.setdefault("headers", []))
            for name, value in _HEADERS.items():
                headers.setdefault(name, value)
            headers["X-Request-Id"] = self.request_id
            if self._body_left and not self._waits:
                await drain(self.receive, self._limits)
            if self._body_left:
                headers["Connection"] = "close"
        await self._send(event)

    async def apologise(self) -> None:
        """Answer a request on which the application failed."""
        response = refusal(failure(self.request_id), self.request_id)
        await response(self._scope, self.receive, self.send)


def failure(request_id: str) -> RefusedError:
    """Return what is answered to a request on which the application failed."""
    detail = f"the service failed; report it with the number {request_id}, or repeat the request"
    return RefusedError("internal", detail)


def log_failure(request_id: str, error: Exception) -> None:
    """Log where an error came from, without its message, which may quote what identifies a patient."""
    frames = "".join(traceback.format_tb(error.__traceback__))
    _logger.error("request %s failed with %s\n%s", request_id, type(error).__name__, frames)
