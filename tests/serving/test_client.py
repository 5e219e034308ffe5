"""The client against a real server: what it sends, what it makes of answers, which arguments it takes."""

import email
import email.policy
import hashlib
import pickle
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from pydantic import ValidationError

from retina_ray.client import Client, RequestError
from retina_ray.errors import ConfigError, DataError
from retina_ray.serving.schema import GradeResponse
from tests.misbehaving import (
    ANSWER,
    PNG,
    Handler,
    Server,
    Step,
    Time,
    answer,
    chunks,
    garbage,
    illustrated,
    problem,
)

EYE = b"a photograph"


def test_a_photograph_is_sent_and_its_grades_come_back(server: Server, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "Smith_Jane_1950.jpg"
    file.write_bytes(EYE)
    server.script = [answer()] * 3
    for photograph in (file, str(file), EYE):
        assert client.grade(photograph) == ANSWER
    for asked in server.asked:
        assert (asked.method, asked.path, asked.body) == ("POST", "/v1/grade", EYE)
        assert asked.headers["authorization"] == "Bearer rr_key"
        assert asked.headers["content-type"] == "application/octet-stream"
        assert "Smith" not in str(asked)


def test_wishes_become_the_query(server: Server, client: Client) -> None:
    server.script = [answer(illustrated())]
    graded = client.grade(EYE, model="a b&c", explain="gmsv", lesions=True, enhance=True, low_resolution=True)
    assert server.asked[0].path == (
        "/v1/grade?model=a+b%26c&explain=gmsv&lesions=true&enhance=true&low_resolution=true"
    )
    assert graded.explanation is not None
    assert graded.lesions is not None
    assert graded.explanation.tasks == {"dr": PNG}
    assert graded.lesions["MA"].mask == graded.enhanced == PNG


def test_a_batch_is_a_form_whose_parts_name_no_patient(server: Server, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "Smith_Jane_1950.jpg"
    file.write_bytes(EYE)
    binary = bytes(range(256)) + b"\r\n--"
    refused = {"type": "no-fundus", "title": "No fundus", "status": 422, "detail": "none; send another"}
    items = [{"name": "1", "answer": ANSWER.model_dump(mode="json")}, {"name": "2", "problem": refused}]
    server.script = [answer({"photographs": items})]
    graded = client.grade_batch([file, binary], lesions=True)
    assert [item.name for item in graded.photographs] == [str(file), "2"]
    assert graded.photographs[0].answer == ANSWER
    assert graded.photographs[1].problem is not None
    (asked,) = server.asked
    assert asked.path == "/v1/grade/batch?lesions=true"
    form = email.message_from_bytes(
        f"Content-Type: {asked.headers['content-type']}\r\n\r\n".encode() + asked.body, policy=email.policy.HTTP
    )
    parts = list(form.iter_parts())
    assert [part.get_payload(decode=True) for part in parts] == [EYE, binary]
    assert [part.get_filename() for part in parts] == ["1", "2"]
    assert b"Smith" not in asked.body


def test_an_answer_to_another_number_of_photographs_is_refused(server: Server, client: Client) -> None:
    server.script = [answer({"photographs": []})]
    with pytest.raises(RequestError, match="1 photographs were sent, but the answer is to another number: 0"):
        client.grade_batch([EYE])


def test_models_are_listed(server: Server, client: Client) -> None:
    task = {"grades": ["none", "some"], "referable_from": 1, "coverage": 0.9, "metrics": {"accuracy": 0.9, "ece": None}}
    model = {
        "served_as": "grader",
        "model": {"name": "tiny", "hash": "0123"},
        "method": "sall",
        "tasks": {"dr": task},
        "image_size": 299,
        "explanations": ["gradcam"],
        "lesions": False,
        "enhances": False,
        "created": "2026-01-01T00:00:00Z",
        "card": "# tiny",
    }
    server.script = [answer({"models": [model]})]
    [described] = client.models().models
    assert described.served_as == "grader"
    assert described.created.year == 2026
    assert (server.asked[0].method, server.asked[0].path) == ("GET", "/v1/models")
    assert "idempotency-key" not in server.asked[0].headers


def test_an_error_survives_pickling(server: Server, client: Client) -> None:
    server.script = [problem(422)]
    with pytest.raises(RequestError) as caught:
        client.grade(EYE)
    again = pickle.loads(pickle.dumps(caught.value))
    assert (str(again), again.status, again.problem) == (
        str(caught.value),
        caught.value.status,
        caught.value.problem,
    )


def test_what_a_newer_service_adds_is_passed_over(server: Server, client: Client) -> None:
    newer = illustrated()
    for place in (newer, newer["tasks"]["dr"], newer["image"], newer["explanation"], newer["lesions"]["MA"]):
        place["novelty"] = {"deep": [1, 2]}
    with pytest.raises(ValidationError):
        GradeResponse.model_validate(newer)  # as our own tests want it
    refusal = {"type": "t", "title": "T", "status": 422, "detail": "d", "novelty": 1}
    server.script = [answer(newer), answer(refusal, 422, "application/problem+json")]
    graded = client.grade(EYE)
    assert graded.tasks == ANSWER.tasks
    assert "novelty" not in str(graded.model_dump())
    with pytest.raises(RequestError) as caught:
        client.grade(EYE)
    assert caught.value.problem is not None
    assert caught.value.problem.type == "t"


@pytest.mark.parametrize(
    ("step", "said"),
    [
        (answer(ANSWER.model_dump_json().encode()[:-40]), "is not understood: Invalid JSON: EOF"),
        (answer({"tasks": {}}), "is not understood: image: Field required"),
        (answer(b"\xff\xfe"), "is not understood"),
        (answer(b"<html>Sign in</html>", media_type="text/html"), "is no JSON: text/html; check that the address"),
        (answer(ANSWER.model_dump(mode="json"), 204), "has status 204"),
        (garbage, "no HTTP"),
    ],
    ids=["truncated", "incomplete", "no text", "a web page", "no content", "another protocol"],
)
def test_what_is_no_answer_of_the_service_is_told(
    server: Server, client: Client, time_: Time, step: Step, said: str
) -> None:
    server.script = [step, answer()]
    with pytest.raises(RequestError, match=said):
        client.grade(EYE)
    assert len(server.asked) == 1
    assert time_.waits == []


def test_an_answer_in_chunks_is_read(server: Server, client: Client) -> None:
    server.script = [chunks, answer()]
    assert client.grade(EYE) == client.grade(EYE) == ANSWER
    assert len({asked.peer for asked in server.asked}) == 1


def test_threads_get_their_own_answers(server: Server, client: Client) -> None:
    def echo(handler: Handler) -> None:
        digest = hashlib.sha256(handler.asked.body).hexdigest()
        answer(ANSWER.model_dump(mode="json") | {"request_id": digest})(handler)

    server.script = [echo] * 160
    contents = [f"photograph {number}".encode() for number in range(160)]
    with ThreadPoolExecutor(8) as threads:
        answers = list(threads.map(client.grade, contents))
    assert [each.request_id for each in answers] == [hashlib.sha256(content).hexdigest() for content in contents]
    assert len({asked.peer for asked in server.asked}) <= 8


def test_a_closed_client_holds_no_connection(server: Server, client: Client) -> None:
    server.script = [answer()]
    client.grade(EYE)
    client.close()
    assert server.hung_up.wait(10)
    with pytest.raises(RuntimeError, match="closed"):
        client.grade(EYE)


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False), (502, False)])
def test_readiness_is_asked_once(server: Server, client: Client, time_: Time, status: int, ready: bool) -> None:
    server.script = [answer(b"ok", status, "text/plain")]
    assert client.ready() is ready
    assert server.asked[0].path == "/readyz"
    assert time_.waits == []


def test_another_service_is_not_taken_for_one_that_is_not_ready(server: Server, client: Client) -> None:
    server.script = [answer(b"no such page", 404, "text/plain")]
    with pytest.raises(RequestError, match="status 404"):
        client.ready()


def test_a_service_below_a_path(server: Server, time_: Time) -> None:
    server.script = [answer(), answer(b"ready", 200, "text/plain")]
    with Client(f"{server.url}/retina/", clock=time_.clock) as client:
        client.grade(EYE)
        assert client.ready()
    assert [asked.path for asked in server.asked] == ["/retina/v1/grade", "/retina/readyz"]
    assert "authorization" not in server.asked[0].headers


@pytest.mark.parametrize(
    "url",
    [
        "grading.example.org",
        "ftp://grading.example.org",
        "http://",
        "https://host:port",
        "https://host:99999",
        "https://host:0",
        "https://host/?a=b",
        "https://host/#a",
        "https://host/a b",
        "https://host/\r\nX: y",
        "",
    ],
)
def test_what_is_no_address_is_refused(url: str) -> None:
    with pytest.raises(ConfigError, match="no address of a service"):
        Client(url)


def test_a_password_in_an_address_is_refused_and_not_shown() -> None:
    with pytest.raises(ConfigError, match="no address") as caught:
        Client("https://jane:sesame@host")
    assert "sesame" not in str(caught.value)


@pytest.mark.parametrize("changes", [{"timeout_s": 0}, {"timeout_s": float("inf")}, {"retry_for_s": float("nan")}])
def test_times_that_cannot_be_waited_for_are_refused(changes: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="no time to wait"):
        Client("https://host", **changes)


@pytest.mark.parametrize("key", ["", "two words", "rr_\nX-Other: 1", "rr_\u20ac"])
def test_a_key_that_no_header_can_hold_is_refused_and_not_shown(key: str) -> None:
    with pytest.raises(ConfigError, match="cannot be sent") as caught:
        Client("https://host", key)
    assert "rr_" not in str(caught.value)


def test_a_key_goes_unencrypted_to_this_machine_alone() -> None:
    for host in ("10.0.0.1", "127.0.0.1.example.org", "localhost.example.org", "[2001:db8::1]"):
        with pytest.raises(ConfigError, match="unencrypted"):
            Client(f"http://{host}", "rr_key")
        Client(f"http://{host}")
        Client(f"https://{host}", "rr_key")
        Client(f"http://{host}", "rr_key", allow_plain_http=True)
    for host in ("127.0.0.1", "127.9.9.9", "localhost", "[::1]", "LOCALHOST:8000"):
        Client(f"http://{host}", "rr_key")


def test_a_file_that_cannot_be_read_is_named(client: Client, server: Server) -> None:
    with pytest.raises(DataError, match=r"No such file or directory.*nowhere\.jpg"):
        client.grade("nowhere.jpg")
    assert server.asked == []


def test_the_client_is_light() -> None:
    program = (
        "import sys, retina_ray.client\n"
        "print(*sorted({name.partition('.')[0] for name in sys.modules} & {'torch', 'ray', 'numpy', 'fastapi'}))"
    )
    done = subprocess.run([sys.executable, "-c", program], check=True, capture_output=True, text=True)
    assert done.stdout.split() == []
