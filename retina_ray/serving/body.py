"""A request's body: read under limits of bytes and time, and taken apart where it is a multipart form.

Everything stays in memory: a photograph of a patient is never written to a temporary file, as web frameworks do with
uploads. What is not here: which routes take which bodies (``http``).
"""

import asyncio
from collections.abc import Awaitable, Callable, Mapping, MutableMapping
from dataclasses import dataclass
from typing import Any

from python_multipart.exceptions import FormParserError
from python_multipart.multipart import MultipartParser, parse_options_header

from retina_ray.serving.refusals import RefusedError

Receive = Callable[[], Awaitable[MutableMapping[str, Any]]]
"""Of ASGI: returns the next event of a connection."""

_LINGER_S = 2.0  # a sender on a fast network has sent a photograph by then
_MAX_NAME = 200  # characters of a part's name that are kept


class SenderGoneError(Exception):
    """The sender closed the connection before the body was whole; nobody is left to be answered."""


@dataclass(frozen=True, slots=True)
class BodyLimits:
    """What a body may take.

    Attributes:
        max_bytes: of the whole body.
        seconds: until its last byte is there.
    """

    max_bytes: int
    seconds: float


@dataclass(frozen=True, slots=True)
class Part:
    """One part of a multipart form.

    Attributes:
        name: of the file, or of the field where the part names no file.
        data: its content.
    """

    name: str
    data: bytes


async def read_body(receive: Receive, headers: Mapping[str, str], limits: BodyLimits) -> bytes:
    """Read a body to its end.

    Args:
        receive: of ASGI.
        headers: of the request, names in lower case.
        limits: a body that is announced as too large is not read at all.

    Raises:
        RefusedError: it is too large, or arrives too slowly.
        SenderGoneError: the connection closed first.
    """
    announced = headers.get("content-length", "")
    if announced.isdigit() and int(announced) > limits.max_bytes:
        raise _too_large(f"{int(announced)} bytes", limits)
    try:
        async with asyncio.timeout(limits.seconds):
            return await _read(receive, limits)
    except TimeoutError:
        what = f"the body was not there after {limits.seconds:g} s"
        raise RefusedError("slow-sender", f"{what}; send it over a faster line, or a smaller one") from None


async def _read(receive: Receive, limits: BodyLimits) -> bytes:
    body = bytearray()
    while True:
        event = await receive()
        if event["type"] == "http.disconnect":
            raise SenderGoneError
        body += event.get("body", b"")
        if len(body) > limits.max_bytes:
            raise _too_large(f"more than {limits.max_bytes} bytes", limits)
        if not event.get("more_body", False):
            return bytes(body)


def _too_large(size: str, limits: BodyLimits) -> RefusedError:
    limit = f"at most {limits.max_bytes / 2**20:g} MiB"
    return RefusedError("too-large", f"the body has {size}; send {limit}, for instance fewer photographs or JPEG files")


async def drain(receive: Receive, limits: BodyLimits) -> None:
    """Read and drop what is left of a refused body, for a short while.

    A sender that finds the connection closed while it is still sending never reads why.

    Args:
        receive: of ASGI.
        limits: no more than twice ``max_bytes`` are read.
    """
    left = 2 * limits.max_bytes
    try:
        async with asyncio.timeout(min(_LINGER_S, limits.seconds)):
            while left > 0:
                event = await receive()
                left -= len(event.get("body", b""))
                if not event.get("more_body", False):
                    return
    except TimeoutError:
        return


def parse_form(body: bytes, content_type: str, *, max_parts: int) -> list[Part]:
    """Take a multipart form apart; every part is taken for a photograph.

    Args:
        body: the whole form.
        content_type: the header, which names the boundary.
        max_parts: that it may have.

    Returns:
        Its parts, in order; at least one.

    Raises:
        RefusedError: it is damaged, empty, or has too many parts.
    """
    _, options = parse_options_header(content_type)
    collector = _Collector(max_parts)
    try:
        parser = MultipartParser(options.get(b"boundary", b""), collector.callbacks())
        parser.write(body)
        parser.finalize()
    except FormParserError:  # its message quotes the body
        raise _damaged("is damaged") from None
    if not collector.ended:
        raise _damaged("is cut off" if body else "is empty")
    if not collector.parts:
        raise RefusedError("bad-request", "the form has no part; send a photograph as a file")
    return collector.parts


def _damaged(how: str) -> RefusedError:
    fix = "send it again as multipart/form-data, with the boundary that its Content-Type names"
    return RefusedError("bad-request", f"the multipart form {how}; {fix}")


class _Collector:
    """Takes what the parser finds."""

    def __init__(self, max_parts: int) -> None:
        self.parts: list[Part] = []
        self.ended = False
        self._max_parts = max_parts
        self._header = (bytearray(), bytearray())
        self._disposition = b""
        self._data = bytearray()

    def callbacks(self) -> Any:
        return {
            "on_part_begin": self._begin,
            "on_header_field": self._header_name,
            "on_header_value": self._header_value,
            "on_header_end": self._header_end,
            "on_part_data": self._part_data,
            "on_part_end": self._part_end,
            "on_end": self._end,
        }

    def _begin(self) -> None:
        if len(self.parts) == self._max_parts:
            several = "part" if self._max_parts == 1 else "parts"
            raise RefusedError(
                "bad-request",
                f"the form has more than {self._max_parts} {several}; send at most {self._max_parts}, "
                "nothing but photographs, and options in the query",
            )
        self._disposition, self._data = b"", bytearray()

    def _header_name(self, data: bytes, start: int, end: int) -> None:
        self._header[0].extend(data[start:end])

    def _header_value(self, data: bytes, start: int, end: int) -> None:
        self._header[1].extend(data[start:end])

    def _header_end(self) -> None:
        name, value = self._header
        if name.lower() == b"content-disposition":
            self._disposition = bytes(value)
        self._header = (bytearray(), bytearray())

    def _part_data(self, data: bytes, start: int, end: int) -> None:
        self._data += data[start:end]

    def _part_end(self) -> None:
        _, options = parse_options_header(self._disposition)
        name = options.get(b"filename") or options.get(b"name") or b""
        self.parts.append(Part(name.decode("utf-8", "replace")[:_MAX_NAME], bytes(self._data)))

    def _end(self) -> None:
        self.ended = True
