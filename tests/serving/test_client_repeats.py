"""The client against a real server that misbehaves on purpose, with a clock that only its waits move."""

import ipaddress
import json
import socket
import ssl
import time
import uuid
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID
from hypothesis import given
from hypothesis import strategies as st

from retina_ray.client import Client, RequestError
from retina_ray.client_transport import REPEATED, Clock, Patience
from tests.misbehaving import (
    ANSWER,
    Handler,
    Server,
    Step,
    Time,
    answer,
    cut_off,
    cut_off_chunks,
    drip,
    hang_up,
    problem,
    refuse_unread,
    reset,
    reset_amid,
    serving,
    silence,
)

EYE = b"a photograph"


@pytest.mark.parametrize("status", sorted(REPEATED))
def test_what_may_pass_is_repeated_under_one_key(server: Server, client: Client, time_: Time, status: int) -> None:
    server.script = [problem(status), problem(status), answer(), answer()]
    assert client.grade(EYE) == client.grade(EYE) == ANSWER
    keys = [asked.headers["idempotency-key"] for asked in server.asked]
    assert keys[0] == keys[1] == keys[2] != keys[3]
    assert uuid.UUID(keys[0]).version == 4
    assert {asked.body for asked in server.asked} == {EYE}
    assert time_.waits == pytest.approx([0.15, 0.3])


@pytest.mark.parametrize("broken", [reset, reset_amid, cut_off, cut_off_chunks], ids=lambda step: step.__name__)
def test_a_broken_connection_is_repeated_under_one_key(
    server: Server, client: Client, time_: Time, broken: Step
) -> None:
    server.script = [broken, broken, answer()]
    assert client.grade(EYE) == ANSWER
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 1
    assert len(time_.waits) == 2


@pytest.mark.parametrize("status", [307, 400, 401, 403, 404, 405, 408, 409, 413, 415, 422, 501])
def test_what_will_not_pass_is_raised_at_once(server: Server, client: Client, time_: Time, status: int) -> None:
    server.script = [problem(status, "its-kind", "the words", Location=server.url), answer()]
    with pytest.raises(RequestError) as caught:
        client.grade(EYE)
    assert len(server.asked) == 1
    assert time_.waits == []
    assert caught.value.status == status
    assert caught.value.problem is not None
    assert caught.value.problem.type == "its-kind"
    assert str(caught.value).startswith("some title: the words")
    assert "rr_key" not in repr(caught.value)


def test_it_gives_up_after_ten_seconds_and_says_what_the_service_said(
    server: Server, client: Client, time_: Time
) -> None:
    server.script = [problem(503, "overloaded", "all busy; ask later")] * 99
    with pytest.raises(RequestError, match="some title: all busy; ask later; name request a1b2 to who") as caught:
        client.grade(EYE)
    assert caught.value.status == 503
    assert sum(time_.waits) == pytest.approx(10.0)
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 1
    assert len(server.asked) == len(time_.waits) + 1  # the last wait ends with a last attempt


def test_nothing_is_repeated_where_that_is_switched_off(server: Server, time_: Time) -> None:
    server.script = [problem(503)]
    with Client(server.url, retry_for_s=0, clock=time_.clock) as client, pytest.raises(RequestError):
        client.grade(EYE)
    assert time_.waits == []


def test_a_proxy_that_has_no_service_behind_it_is_no_problem_of_ours(server: Server, client: Client) -> None:
    server.script = [answer(b"<html>Bad Gateway</html>", 502, "text/html")] * 99
    with pytest.raises(RequestError, match="status 502") as caught:
        client.grade(EYE)
    assert caught.value.problem is None


@pytest.mark.parametrize(
    ("headers", "wait"),
    [
        ({"Retry_After": "3"}, 3.15),
        ({"Retry_After": "0"}, 0.15),
        ({"Retry_After": "Wed, 21 Oct 2026 07:28:04 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 4.15),
        ({"Retry_After": "Wed, 21 Oct 2015 07:28:04 GMT", "Date": "Wed, 21 Oct 2026 07:28:00 GMT"}, 0.15),
        ({"Retry_After": "soon"}, 0.15),
        ({"Retry_After": "-5"}, 0.15),
        ({"Retry_After": "nan"}, 0.15),
    ],
    ids=str,
)
def test_the_service_says_when(
    server: Server, client: Client, time_: Time, headers: dict[str, str], wait: float
) -> None:
    body = json.dumps({"type": "t", "title": "T", "status": 429, "detail": "d"}).encode()

    def busy(handler: Handler) -> None:
        handler.send_response_only(429)
        for name, value in {"Content-Length": str(len(body)), **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(body)

    server.script = [busy, answer()]
    assert client.grade(EYE) == ANSWER
    assert time_.waits == pytest.approx([wait])


@pytest.mark.parametrize("asked", ["11", "9" * 400])
def test_who_is_told_to_come_back_too_late_does_not_wait(
    server: Server, client: Client, time_: Time, asked: str
) -> None:
    server.script = [problem(429, Retry_After=asked)]
    with pytest.raises(RequestError) as caught:
        client.grade(EYE)
    assert caught.value.status == 429
    assert time_.waits == []


@given(
    retry_for_s=st.floats(0, 100),
    failures=st.lists(
        st.tuples(st.none() | st.floats(0, 20), st.floats(0, 20), st.floats(0, 1, exclude_max=True)), max_size=40
    ),
)
def test_waits_end_in_time_and_are_never_shorter_than_asked(
    retry_for_s: float, failures: list[tuple[float | None, float, float]]
) -> None:
    now = chance = 0.0
    patience = Patience(retry_for_s, Clock(now=lambda: now, chance=lambda: chance))
    first: float | None = None
    for asked, attempt_s, luck in failures:
        now += attempt_s
        chance = luck
        first = now if first is None else first
        wait = patience.wait(asked)
        if wait is None:
            assert now - first + (asked or 0.0) >= retry_for_s - 1e-9
            return
        assert wait >= (asked or 0.0)
        assert wait <= (asked or 0.0) + 3.2
        assert now + wait <= first + retry_for_s + 1e-9
        now += wait


def test_a_service_that_starts_again_is_waited_for(time_: Time) -> None:
    server = Server(listen=False)
    server.script = [answer()]
    time_.during = lambda: server.server_activate() if len(time_.waits) == 3 else None
    with serving(server), Client(server.url, clock=time_.clock) as client:
        assert client.grade(EYE) == ANSWER
    assert len(time_.waits) == 3


def test_a_service_that_is_not_there_is_named(time_: Time) -> None:
    with socket.socket() as bound:
        bound.bind(("127.0.0.1", 0))
        url = f"http://127.0.0.1:{bound.getsockname()[1]}"
        with Client(url, clock=time_.clock) as client:
            assert not client.ready()
            assert time_.waits == []
            with pytest.raises(RequestError, match=rf"cannot be reached \(Connection refused\): {url}") as caught:
                client.models()
    assert caught.value.status is None
    assert sum(time_.waits) == pytest.approx(10.0)


@pytest.mark.parametrize("late", [silence, drip], ids=lambda step: step.__name__)
def test_an_answer_that_takes_too_long_is_not_asked_for_again(server: Server, late: Step) -> None:
    waits: list[float] = []
    server.script = [late, answer()]
    start = time.monotonic()
    with (
        Client(server.url, timeout_s=0.2, clock=Clock(sleep=waits.append)) as client,
        pytest.raises(RequestError, match=r"no answer within 0\.2 s"),
    ):
        client.grade(EYE)
    assert time.monotonic() - start < 5.0
    assert waits == []
    assert len(server.asked) == 1


def test_a_refusal_before_the_photograph_is_read_arrives(server: Server, client: Client, time_: Time) -> None:
    server.script = [refuse_unread] * 10 + [answer()]
    for _ in range(10):
        with pytest.raises(RequestError) as caught:
            client.grade(bytes(8 * 2**20))
        assert caught.value.status == 413
    assert time_.waits == []
    assert client.grade(EYE) == ANSWER


def test_connections_are_reused_and_left_when_the_other_end_has_gone(
    server: Server, client: Client, time_: Time
) -> None:
    server.script = [answer(), hang_up, answer()]
    client.grade(EYE)
    client.grade(EYE)
    assert server.hung_up.wait(10)
    client.grade(EYE)
    first, second, third = (asked.peer for asked in server.asked)
    assert first == second != third
    assert time_.waits == []


class TlsServer(Server):
    """The same behind TLS; counts the connections, of which those with a failed handshake ask nothing."""

    def __init__(self, certificate: Path) -> None:
        super().__init__()
        self.connections = 0
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(certificate)
        self.socket = context.wrap_socket(self.socket, server_side=True)

    @property
    def url(self) -> str:
        return super().url.replace("http:", "https:")

    def get_request(self) -> Any:
        self.connections += 1
        return super().get_request()


@pytest.fixture
def certificate(tmp_path: Path) -> Path:
    """A file with a key and a certificate for 127.0.0.1 that no authority has signed."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "127.0.0.1")])
    day = timedelta(days=1)
    made = (
        x509.CertificateBuilder(name, name, key.public_key(), x509.random_serial_number())
        .not_valid_before(datetime.now(UTC) - day)
        .not_valid_after(datetime.now(UTC) + day)
        .add_extension(x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]), critical=False)
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .sign(key, hashes.SHA256())
    )
    file = tmp_path / "certificate.pem"
    pem = serialization.Encoding.PEM
    private = key.private_bytes(pem, serialization.PrivateFormat.PKCS8, serialization.NoEncryption())
    file.write_bytes(private + made.public_bytes(pem))
    return file


def test_a_certificate_is_trusted_or_not(certificate: Path, time_: Time, monkeypatch: pytest.MonkeyPatch) -> None:
    with serving(TlsServer(certificate)) as server:
        server.script = [answer(), answer()]
        with Client(server.url, "rr_key", clock=time_.clock) as stranger:
            for ask in (partial(stranger.grade, EYE), stranger.ready):
                with pytest.raises(RequestError, match=r"certificate is not trusted.*SSL_CERT_FILE"):
                    ask()
        assert time_.waits == []
        assert server.connections == 2
        assert server.asked == []
        monkeypatch.setenv("SSL_CERT_FILE", str(certificate))
        with Client(server.url, "rr_key", clock=time_.clock) as friend:
            assert friend.grade(EYE) == friend.grade(EYE) == ANSWER
        assert server.connections == 3


def test_https_to_a_service_without_is_told(server: Server, time_: Time) -> None:
    with (
        Client(server.url.replace("http:", "https:"), clock=time_.clock) as client,
        pytest.raises(RequestError, match="no TLS with the service"),
    ):
        client.grade(EYE)
    assert time_.waits == []


def batch(*problems: int | None) -> Step:
    """Return what answers a batch: with a problem's status where there is one, else with grades."""
    graded = ANSWER.model_dump(mode="json")
    items: list[dict[str, object]] = []
    for number, status in enumerate(problems, start=1):
        refused = {"type": "its-kind", "title": "Some title", "status": status, "detail": "the words"}
        items.append({"name": str(number), **({"answer": graded} if status is None else {"problem": refused})})
    return answer({"photographs": items})


def test_photographs_of_a_batch_that_were_too_many_are_sent_again_alone(
    server: Server, client: Client, time_: Time
) -> None:
    server.script = [batch(None, 503, 422, 504), batch(None, 503), batch(None)]
    found = client.grade_batch([b"one", b"two", b"three", b"four"]).photographs
    assert [item.problem is None for item in found] == [True, True, False, True]
    assert [item.name for item in found] == ["1", "2", "3", "4"]
    sent = [[name for name in (b"one", b"two", b"three", b"four") if name in asked.body] for asked in server.asked]
    assert sent == [[b"one", b"two", b"three", b"four"], [b"two", b"four"], [b"four"]]
    assert len({asked.headers["idempotency-key"] for asked in server.asked}) == 3
    assert len(time_.waits) == 2


def test_what_a_batch_brought_is_kept_where_repeating_the_rest_fails(server: Server, client: Client) -> None:
    server.script = [batch(None, 503), problem(401, "its-kind", "the words")]
    found = client.grade_batch([b"one", b"two"]).photographs
    assert found[0].answer == ANSWER
    assert found[1].problem is not None
    assert found[1].problem.status == 503
