"""How the client gets a request to the service and an answer back: connections, time limits, waits between attempts.

What is not here: what is asked and what an answer means (``client``).
"""

import http.client
import random
import re
import select
import socket
import ssl
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass
from email.message import Message
from email.utils import parsedate_to_datetime
from urllib.parse import SplitResult

REPEATED = frozenset({429, 500, 502, 503, 504})
"""Statuses after which a request is repeated."""

_FIRST_WAIT_S = 0.2
_DOUBLINGS = 4
_PIECE_BYTES = 64 * 2**10


@dataclass(frozen=True, slots=True)
class Clock:
    """Time and chance as a client sees them, so that tests need not wait.

    Attributes:
        now: seconds, of a clock that never goes back.
        sleep: waits so many seconds.
        chance: a number in [0, 1).
    """

    now: Callable[[], float] = time.monotonic
    sleep: Callable[[float], None] = time.sleep
    chance: Callable[[], float] = random.random


REAL_CLOCK = Clock()


@dataclass(frozen=True, slots=True)
class Reply:
    """An answer as it came, read to its end."""

    status: int
    headers: Message
    body: bytes

    @property
    def wait_s(self) -> float | None:
        """How long Retry-After asks to wait: seconds, or a date, which is held against the answer's own."""
        text = self.headers.get("Retry-After", "")
        if re.fullmatch(r"[0-9]+(\.[0-9]+)?", text):
            return float(text)
        try:
            wait = parsedate_to_datetime(text) - parsedate_to_datetime(self.headers.get("Date", ""))
        except (TypeError, ValueError):
            return None
        return max(0.0, wait.total_seconds())


class Transport:
    """Connections to one service; may be used by several threads, and keeps as many as were in use at one time.

    Args:
        address: scheme, host, port and path prefix.
        timeout_s: how long an attempt may take to connect, and then to be answered.
        clock: time.
    """

    def __init__(self, address: SplitResult, *, timeout_s: float, clock: Clock) -> None:
        self._address = address
        self._tls = ssl.create_default_context() if address.scheme == "https" else None
        self._timeout_s = timeout_s
        self._clock = clock
        self._lock = threading.Lock()
        self._idle: list[http.client.HTTPConnection] = []
        self._closed = False

    def exchange(self, method: str, target: str, body: bytes | None, headers: Mapping[str, str]) -> Reply:
        """Send a request once and return what comes back, whatever its status.

        Args:
            method: of HTTP.
            target: path below the address, and query.
            body: None for none.
            headers: name to value.

        Raises:
            OSError: there is no connection, or it broke off, or the time is over (TimeoutError).
            http.client.HTTPException: the answer ended early (IncompleteRead) or is no HTTP.
            RuntimeError: the transport is closed.
        """
        connection = self._connection()
        try:
            if connection.sock is None:
                connection.connect()
            line: socket.socket = connection.sock  # which the connection forgets when the answer is its last
            until = self._clock.now() + self._timeout_s
            line.settimeout(self._timeout_s)
            response = _send(connection, method, self._address.path.rstrip("/") + target, body, headers)
            reply = Reply(response.status, response.headers, self._body(response, line, until))
        except BaseException:
            connection.close()
            raise
        with self._lock:
            kept = not (response.will_close or self._closed)
            if kept:
                self._idle.append(connection)
        if not kept:
            connection.close()
        return reply

    def close(self) -> None:
        """Close the connections, those in use when their answer is read."""
        with self._lock:
            self._closed = True
            idle, self._idle = self._idle, []
        for connection in idle:
            connection.close()

    def _connection(self) -> http.client.HTTPConnection:
        """Return a connection that nobody uses: one whose other end is still there, or a new one."""
        while True:
            with self._lock:
                if self._closed:
                    raise RuntimeError("the client is closed")
                if not self._idle:
                    break
                connection = self._idle.pop()
            if not _has_input(connection.sock):  # the end of the stream is input too, and no other is expected
                return connection
            connection.close()
        host, port = self._address.hostname or "", self._address.port
        if self._tls is not None:
            return http.client.HTTPSConnection(host, port or 443, timeout=self._timeout_s, context=self._tls)
        return http.client.HTTPConnection(host, port or 80, timeout=self._timeout_s)

    def _body(self, response: http.client.HTTPResponse, line: socket.socket, until: float) -> bytes:
        """Read an answer to its end, until a time: a socket's own limit would hold for each packet anew."""
        body = bytearray()
        length = response.length
        while length is None or len(body) < length:
            left = until - self._clock.now()
            if left <= 0:
                raise TimeoutError
            line.settimeout(left)
            piece = response.read1(_PIECE_BYTES if length is None else min(_PIECE_BYTES, length - len(body)))
            if not piece:
                break
            body += piece
        if length is not None and len(body) < length:
            raise http.client.IncompleteRead(bytes(body), length - len(body))
        response.close()
        return bytes(body)


class Patience:
    """How long a request waits before it is repeated; counts from its first failure.

    Args:
        retry_for_s: after which it is no longer repeated.
        clock: time and chance.
    """

    def __init__(self, retry_for_s: float, clock: Clock) -> None:
        self._retry_for_s = retry_for_s
        self._clock = clock
        self._until: float | None = None
        self._failures = 0

    def wait(self, asked_s: float | None = None) -> float | None:
        """Return the seconds to wait after a failure, or None to give up.

        Args:
            asked_s: how long the service asks to wait; a wait is never shorter.
        """
        now = self._clock.now()
        if self._until is None:
            self._until = now + self._retry_for_s
        left = self._until - now
        least = asked_s or 0.0
        if left <= 0 or least > left:
            return None
        own = _FIRST_WAIT_S * 2.0 ** min(self._failures, _DOUBLINGS)
        self._failures += 1
        return min(left, least + own * (0.5 + 0.5 * self._clock.chance()))


def may_pass(error: Exception) -> bool:
    """Return whether an exchange that raised this may succeed when repeated.

    No certificate gets better by waiting, and who had all its time to answer needs no second request.
    """
    match error:
        case ssl.SSLError():
            return isinstance(error, ssl.SSLEOFError | ssl.SSLZeroReturnError)
        case socket.gaierror():
            return error.errno == socket.EAI_AGAIN
        case TimeoutError():
            return False
    return isinstance(error, OSError | http.client.IncompleteRead)


def _send(
    connection: http.client.HTTPConnection, method: str, target: str, body: bytes | None, headers: Mapping[str, str]
) -> http.client.HTTPResponse:
    """Send a request and return its answer, of which the body is still to be read."""
    try:
        connection.request(method, target, body, headers)
    except ConnectionError:
        # A service need not read a photograph to its end in order to refuse it: what it said may have arrived.
        with suppress(OSError, http.client.HTTPException):
            response = connection.getresponse()
            response.will_close = True
            return response
        raise
    return connection.getresponse()


def _has_input(line: socket.socket) -> bool:
    waiting = select.poll()
    waiting.register(line, select.POLLIN)
    return bool(waiting.poll(0))
