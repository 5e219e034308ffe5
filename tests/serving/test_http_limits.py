"""Who is let in, and how much and how slowly they may send: over bare sockets where a client's library is too kind."""

import socket
import time
from collections.abc import Iterator
from hashlib import sha256
from urllib.parse import urlsplit

import pytest
import requests

from retina_ray.bundle import Bundle
from retina_ray.serving.http import HttpSettings
from retina_ray.serving.keys import ApiKey, ApiKeys
from tests.bundles import make_everything
from tests.serving_http import RAW, SETTINGS, PredictorService, post, problem_of, served, wait_until
from tests.serving_photographs import photograph

KEY, METRICS_KEY = "rr_of-a-clinic", "rr_of-prometheus"
SLOW_S = 0.5


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_everything(tmp_path_factory.mktemp("dataset")).build(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def open_to_all(bundle: Bundle) -> Iterator[tuple[PredictorService, str]]:
    service = PredictorService(bundle)
    with served(service) as url:
        yield service, url


@pytest.fixture(scope="module")
def guarded(bundle: Bundle) -> Iterator[tuple[PredictorService, str]]:
    """A service that wants keys, and gives senders half a second."""
    keys = ApiKeys(
        [
            ApiKey(id="clinic", sha256=sha256(KEY.encode()).hexdigest(), per_minute=600, scopes=("grade",)),
            ApiKey(id="watch", sha256=sha256(METRICS_KEY.encode()).hexdigest(), per_minute=600, scopes=("metrics",)),
        ]
    )
    service = PredictorService(bundle)
    with served(service, HttpSettings(max_body_bytes=2**20, body_seconds=SLOW_S, max_batch=3), keys) as url:
        yield service, url


def bearer(key: str) -> dict[str, str]:
    return {**RAW, "Authorization": f"Bearer {key}"}


def talk(url: str, head: str, *pieces: bytes, pause_s: float = 0.0) -> bytes:
    """Send a request in pieces and return everything that comes back."""
    address = urlsplit(url)
    received = b""
    with socket.create_connection((str(address.hostname), int(address.port or 0)), timeout=20) as connection:
        connection.sendall(f"POST /v1/grade HTTP/1.1\r\nHost: {address.netloc}\r\n{head}\r\n".encode())
        try:
            for piece in pieces:
                connection.sendall(piece)
                connection.settimeout(pause_s or None)
                if pause_s:
                    try:
                        received += connection.recv(1 << 16)
                        break
                    except TimeoutError:
                        continue
        finally:
            connection.settimeout(20)
        while chunk := connection.recv(1 << 16):
            received += chunk
    return received


def status_of(reply: bytes) -> int:
    return int(reply.split(b" ", 2)[1])


OCTETS = "Content-Type: application/octet-stream\r\n"
AUTHORIZED = f"Authorization: Bearer {KEY}\r\n"


def test_a_body_over_the_limit_is_refused(open_to_all: tuple[PredictorService, str]) -> None:
    _, url = open_to_all
    assert problem_of(post(url, b"\xff" * (SETTINGS.max_body_bytes + 1)))["type"] == "too-large"
    assert problem_of(post(url, b"\xff" * SETTINGS.max_body_bytes))["type"] == "unreadable-image"
    chunks = (b"\xff" * 2**16 for _ in range(17))  # chunked: the length is not announced
    assert problem_of(requests.post(f"{url}/v1/grade", chunks, headers=RAW, timeout=20))["type"] == "too-large"
    announced = talk(url, f"{OCTETS}Content-Length: 9999999999\r\nExpect: 100-continue\r\n")
    assert status_of(announced) == 413  # and not 100


def test_a_slow_sender_is_refused_in_time(guarded: tuple[PredictorService, str]) -> None:
    head = f"{OCTETS}{AUTHORIZED}Content-Length: 1000\r\n"
    start = time.monotonic()
    trickle = talk(guarded[1], head, *[b"x"] * 100, pause_s=0.05)
    assert status_of(trickle) == 408
    assert b"connection: close" in trickle.lower()
    assert SLOW_S <= time.monotonic() - start < 5
    assert problem_of(post(guarded[1]))["type"] == "unauthenticated"  # it still answers


def test_a_sender_that_leaves_is_counted_and_forgotten(open_to_all: tuple[PredictorService, str]) -> None:
    service, url = open_to_all
    service.asked.clear()
    service.observed.clear()
    address = urlsplit(url)
    with socket.create_connection((str(address.hostname), int(address.port or 0))) as connection:
        connection.sendall(f"POST /v1/grade HTTP/1.1\r\nHost: x\r\n{OCTETS}Content-Length: 9\r\n\r\nx".encode())
    wait_until(lambda: service.observed == [("/v1/grade", 499)], "the request is counted")
    assert not service.asked
    assert post(url, photograph()).ok


@pytest.mark.parametrize(
    ("headers", "says"),
    [
        ({}, "no API key"),
        ({"Authorization": "Basic abc"}, "no API key"),
        ({"Authorization": "Bearer"}, "no API key"),
        ({"Authorization": f"Bearer {KEY}x"}, "not known"),
        ({"Authorization": f"Bearer {METRICS_KEY}"}, "not for grade"),
    ],
)
def test_without_a_valid_key_nothing_is_told(
    guarded: tuple[PredictorService, str], headers: dict[str, str], says: str
) -> None:
    service, url = guarded
    service.asked.clear()
    for call in (
        lambda: requests.post(f"{url}/v1/grade?wrong=1", photograph(), headers={**RAW, **headers}, timeout=20),
        lambda: requests.post(f"{url}/v1/grade/batch", files={"p": photograph()}, headers=headers, timeout=20),
        lambda: requests.get(f"{url}/v1/models", headers=headers, timeout=20),
    ):
        response = call()
        problem = problem_of(response)
        assert (problem["type"], problem["status"]) == ("unauthenticated", 401)
        assert says in str(problem["detail"])
        assert response.headers["www-authenticate"] == "Bearer"
    assert not service.asked


def test_a_key_opens_what_it_is_for(guarded: tuple[PredictorService, str]) -> None:
    service, url = guarded
    service.asked.clear()
    assert requests.post(f"{url}/v1/grade", photograph(), headers=bearer(KEY), timeout=20).ok
    assert service.asked[0].key_id == "clinic"
    assert requests.get(f"{url}/v1/models", headers=bearer(KEY), timeout=20).ok
    assert requests.get(f"{url}/metrics", headers=bearer(METRICS_KEY), timeout=20).ok
    assert problem_of(requests.get(f"{url}/metrics", headers=bearer(KEY), timeout=20))["status"] == 401


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/healthz", "/readyz", "/v1/openapi.json"])
def test_some_addresses_need_no_key(guarded: tuple[PredictorService, str], path: str) -> None:
    assert requests.get(guarded[1] + path, timeout=20).status_code == 200


def test_the_key_is_looked_at_before_the_body_is_there(guarded: tuple[PredictorService, str]) -> None:
    waiting = talk(guarded[1], f"{OCTETS}Content-Length: 1000000\r\nExpect: 100-continue\r\n")
    assert status_of(waiting) == 401
    stalled = talk(guarded[1], f"{OCTETS}Content-Length: 1000000\r\n", b"x")
    assert status_of(stalled) == 401


def test_a_sender_in_full_flow_gets_to_read_why_it_is_refused(guarded: tuple[PredictorService, str]) -> None:
    for _ in range(5):
        response = requests.post(f"{guarded[1]}/v1/grade", b"x" * SETTINGS.max_body_bytes, headers=RAW, timeout=20)
        assert problem_of(response)["status"] == 401
