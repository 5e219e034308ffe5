"""A body is read whole or refused, whatever arrives and however slowly; a form comes apart into what was put in."""

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from contextlib import suppress
from typing import Any

import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from requests import Request

from retina_ray.serving.body import BodyLimits, Part, SenderGoneError, drain, parse_form, read_body
from retina_ray.serving.refusals import RefusedError

LIMITS = BodyLimits(max_bytes=100, seconds=5.0)


class Sender:
    """An ASGI connection that delivers chunks, and then does what it is told."""

    def __init__(self, chunks: Sequence[bytes], then: str = "ends") -> None:
        self.left = [*chunks]
        self.then = then

    async def receive(self) -> dict[str, Any]:
        if self.left:
            chunk = self.left.pop(0)
            return {"type": "http.request", "body": chunk, "more_body": bool(self.left) or self.then != "ends"}
        if self.then == "stalls":
            await asyncio.Event().wait()
        return {"type": "http.disconnect"}


def read(sender: Sender, limits: BodyLimits = LIMITS, **headers: str) -> bytes:
    named = {name.replace("_", "-"): value for name, value in headers.items()}
    return asyncio.run(read_body(sender.receive, named, limits))


def kind_of(call: Callable[[], object]) -> str:
    with pytest.raises(RefusedError) as caught:
        call()
    return caught.value.kind


@given(st.lists(st.binary(max_size=60), min_size=1, max_size=6))
@example([b"x" * 100])
@example([b"x" * 100, b"", b"y"])
def test_a_body_arrives_as_it_was_sent_or_is_too_large(chunks: list[bytes]) -> None:
    whole = b"".join(chunks)
    if len(whole) <= LIMITS.max_bytes:
        assert read(Sender(chunks)) == whole
    else:
        assert kind_of(lambda: read(Sender(chunks))) == "too-large"


def test_what_is_announced_as_too_large_is_not_read() -> None:
    sender = Sender([b"x"])
    assert kind_of(lambda: read(sender, content_length="101")) == "too-large"
    assert sender.left == [b"x"]
    assert read(sender, content_length="100") == b"x"


def test_no_more_than_the_limit_is_kept_of_an_endless_body() -> None:
    sender = Sender([b"x" * 60] * 1000)
    assert kind_of(lambda: read(sender)) == "too-large"
    assert len(sender.left) == 998


@pytest.mark.parametrize("chunks", [[], [b"x"], [b"x", b"y"]])
def test_a_sender_that_stalls_is_given_up(chunks: list[bytes]) -> None:
    start = time.monotonic()
    assert kind_of(lambda: read(Sender(chunks, then="stalls"), BodyLimits(100, 0.05))) == "slow-sender"
    assert time.monotonic() - start < 2


def test_a_sender_that_leaves_is_nobody_to_answer() -> None:
    with pytest.raises(SenderGoneError):
        read(Sender([b"x"], then="leaves"))


@pytest.mark.parametrize(
    ("sender", "left"),
    [
        (Sender([b"x"] * 20), 0),
        (Sender([b"x" * 60] * 20), 16),
        (Sender([b"x"], then="stalls"), 0),
        (Sender([b"x"], then="leaves"), 0),
    ],
)
def test_draining_ends(sender: Sender, left: int) -> None:
    async def drained() -> None:
        drained: Awaitable[None] = drain(sender.receive, BodyLimits(100, 0.05))
        await asyncio.wait_for(drained, 2)

    asyncio.run(drained())
    assert len(sender.left) == left


def form_of(files: Sequence[tuple[str, bytes]]) -> tuple[bytes, str]:
    """Return a form as a client's library makes it, and its Content-Type."""
    named = [("photographs", (name, data, "image/jpeg")) for name, data in files]
    request = Request("POST", "http://localhost", files=named).prepare()
    assert isinstance(request.body, bytes)
    return request.body, request.headers["Content-Type"]


NAMES = st.text(st.characters(codec="ascii", categories=["L", "N"], include_characters=" ._-;'()"), min_size=1)
FILES = st.lists(st.tuples(NAMES.filter(str.strip), st.binary(max_size=300)), min_size=1, max_size=4)


@given(FILES)
@example([("a.jpg", b"\r\n--\r\n"), ("b.jpg", b"")])
def test_a_form_comes_apart_into_what_was_put_in(files: list[tuple[str, bytes]]) -> None:
    body, content_type = form_of(files)
    assert parse_form(body, content_type, max_parts=4) == [Part(name, data) for name, data in files]


@given(FILES, st.data())
def test_a_form_that_is_cut_off_is_refused(files: list[tuple[str, bytes]], data: st.DataObject) -> None:
    body, content_type = form_of(files)
    kept = data.draw(st.integers(0, len(body) - 5))  # the last bytes close the form
    assert kind_of(lambda: parse_form(body[:kept], content_type, max_parts=4)) == "bad-request"


@given(FILES, st.data())
def test_a_damaged_form_is_refused_or_read_but_breaks_nothing(
    files: list[tuple[str, bytes]], data: st.DataObject
) -> None:
    body, content_type = form_of(files)
    place = data.draw(st.integers(0, len(body) - 1))
    damaged = body[:place] + data.draw(st.binary(max_size=8)) + body[place + data.draw(st.integers(0, 8)) :]
    with suppress(RefusedError):
        assert parse_form(damaged, content_type, max_parts=4)


@given(st.binary(max_size=200), st.text(st.characters(max_codepoint=255), max_size=40))
def test_no_bytes_break_the_parser(body: bytes, boundary: str) -> None:
    assert kind_of(lambda: parse_form(body, f"multipart/form-data; boundary={boundary}", max_parts=4)) == "bad-request"


def test_a_form_with_too_many_parts_says_how_many_it_may_have() -> None:
    body, content_type = form_of([("a", b"1"), ("b", b"2"), ("c", b"3")])
    with pytest.raises(RefusedError, match="at most 2"):
        parse_form(body, content_type, max_parts=2)
    assert len(parse_form(body, content_type, max_parts=3)) == 3


def test_names_of_other_alphabets_and_of_any_length() -> None:
    head = b'--b\r\nContent-Disposition: form-data; name="p"; filename="'
    whole = head + "\u7709\u0436".encode() * 300 + b'"\r\n\r\nx\r\n--b--\r\n'
    [part] = parse_form(whole, "multipart/form-data; boundary=b", max_parts=1)
    assert part == Part(("\u7709\u0436" * 300)[:200], b"x")
    broken = head + b'\xff"\r\n\r\nx\r\n--b--\r\n'
    assert parse_form(broken, "multipart/form-data; boundary=b", max_parts=1) == [Part("\ufffd", b"x")]


def test_a_refusal_does_not_quote_the_form() -> None:
    body = b"--b\r\nContent-Disposition form-data; patient=Doe\r\n\r\n"
    with pytest.raises(RefusedError) as caught:
        parse_form(body, "multipart/form-data; boundary=b", max_parts=1)
    assert "Doe" not in caught.value.detail
