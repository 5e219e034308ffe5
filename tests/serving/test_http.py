"""The web application over a real socket: answers, limits, keys, and a problem for all that goes wrong."""

import json
import logging
import math
import re
from collections.abc import Iterator

import pytest
import requests

from retina_ray.bundle import Bundle
from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.schema import BatchResponse, GradeResponse, ModelsResponse
from retina_ray.serving.service import GradeRequest
from tests.bundles import make_everything
from tests.serving_http import RAW, SETTINGS, PredictorService, post, problem_of, served, wait_until, wall
from tests.serving_photographs import photograph


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_everything(tmp_path_factory.mktemp("dataset")).build(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def shared(bundle: Bundle) -> Iterator[tuple[PredictorService, str]]:
    service = PredictorService(bundle)
    with served(service) as url:
        yield service, url


@pytest.fixture
def service(shared: tuple[PredictorService, str]) -> PredictorService:
    fresh = PredictorService.__dataclass_fields__
    for name in ("refusal", "failure", "rate_limit", "starting", "before"):
        setattr(shared[0], name, fresh[name].default)
    shared[0].altered = {}
    shared[0].asked.clear()
    shared[0].observed.clear()
    return shared[0]


@pytest.fixture
def url(service: PredictorService, shared: tuple[PredictorService, str]) -> str:
    return shared[1]


# -- answers


@pytest.mark.parametrize("form", [False, True], ids=["raw", "form"])
def test_a_photograph_is_graded(service: PredictorService, url: str, form: bool) -> None:
    if form:
        response = requests.post(f"{url}/v1/grade", files={"photograph": photograph()}, timeout=20)
    else:
        response = post(url, photograph())
    assert response.status_code == 200, response.text
    answer = GradeResponse.model_validate_json(response.content)
    assert {task: len(graded.probabilities) for task, graded in answer.tasks.items()} == {"dr": 5, "amd": 4}
    [asked] = service.asked
    assert asked.photograph == photograph()
    assert (asked.key_id, asked.model, asked.idempotency_key) == ("anonymous", None, None)
    assert answer.request_id == asked.request_id == response.headers["x-request-id"]
    assert re.fullmatch("[0-9a-f]{32}", asked.request_id)
    assert service.observed == [("/v1/grade", 200)]


@pytest.mark.parametrize("media_type", ["image/jpeg", "IMAGE/PNG; q=1", "application/dicom"])
def test_the_declared_type_of_an_image_does_not_matter(url: str, media_type: str) -> None:
    response = requests.post(f"{url}/v1/grade", photograph(), headers={"Content-Type": media_type}, timeout=20)
    assert response.status_code == 200


def test_options_reach_the_service(service: PredictorService, url: str) -> None:
    query = {"model": "tiny", "explain": "gmsv", "lesions": "true", "enhance": "false", "low_resolution": "true"}
    headers = {**RAW, "Idempotency-Key": "a-1"}
    assert requests.post(f"{url}/v1/grade", photograph(), params=query, headers=headers, timeout=20).ok
    [asked] = service.asked
    assert (asked.model, asked.idempotency_key) == ("tiny", "a-1")
    assert asked.options.explain == "gmsv"
    assert (asked.options.lesions, asked.options.enhance, asked.options.low_resolution) == (True, False, True)


def test_one_bad_photograph_in_a_batch_fails_alone(service: PredictorService, url: str) -> None:
    files = [
        ("p", ("left.jpg", photograph(0))),
        ("p", ("wall.jpg", wall())),
        ("p", ("right.jpg", photograph(1))),
    ]
    headers = {"Idempotency-Key": "b-1"}
    response = requests.post(f"{url}/v1/grade/batch", files=files, headers=headers, timeout=20)
    assert response.status_code == 200, response.text
    left, bad, right = BatchResponse.model_validate_json(response.content).photographs
    assert [item.name for item in (left, bad, right)] == ["left.jpg", "wall.jpg", "right.jpg"]
    assert left.answer is not None
    assert right.answer is not None
    assert left.problem is None
    assert left.answer.tasks == GradeResponse.model_validate_json(post(url, photograph(0)).content).tasks
    assert left.answer.tasks != right.answer.tasks
    assert bad.answer is None
    assert bad.problem is not None
    assert (bad.problem.type, bad.problem.status) == ("no-fundus", 422)
    assert bad.problem.image is not None
    numbers = {asked.request_id for asked in service.asked}
    assert {left.answer.request_id, bad.problem.request_id, right.answer.request_id} < numbers
    assert sorted(str(asked.idempotency_key) for asked in service.asked[:3]) == ["b-1/0", "b-1/1", "b-1/2"]


def test_the_models_are_listed(url: str, bundle: Bundle) -> None:
    response = requests.get(f"{url}/v1/models", timeout=20)
    [model] = ModelsResponse.model_validate_json(response.content).models
    assert (model.served_as, model.model.hash) == ("tiny", bundle.hash)
    assert model.card.startswith("# tiny")


def test_health_readiness_and_metrics(service: PredictorService, url: str) -> None:
    assert requests.get(f"{url}/healthz", timeout=20).text == "ok\n"
    assert requests.get(f"{url}/readyz", timeout=20).text == "ready\n"
    metrics = requests.get(f"{url}/metrics", timeout=20)
    assert metrics.headers["content-type"].startswith("text/plain; version=0.0.4")
    assert "retina_ray_up 1.0" in metrics.text
    service.starting = "the model tiny is being loaded; wait a moment"
    assert requests.get(f"{url}/healthz", timeout=20).status_code == 200
    response = requests.get(f"{url}/readyz", timeout=20)
    problem = problem_of(response)
    assert (problem["type"], problem["status"]) == ("not-ready", 503)
    assert problem["detail"] == service.starting
    assert response.headers["retry-after"] == "1"


# -- what is refused


def test_a_photograph_that_cannot_be_graded(url: str) -> None:
    damaged = problem_of(post(url, photograph()[:500]))
    assert (damaged["type"], damaged["status"]) == ("unreadable-image", 422)
    empty = problem_of(post(url))
    assert (empty["type"], empty["status"]) == ("unreadable-image", 422)
    grey = problem_of(post(url, wall()))
    assert (grey["type"], grey["status"]) == ("no-fundus", 422)
    assert "retake" in str(grey["image"])


@pytest.mark.parametrize(
    ("query", "says"),
    [
        ("explain=gradcan", "'gradcan'; input should be 'gradcam' or 'gmsv'"),
        ("explian=gradcam", "unknown parameter 'explian'; did you mean explain"),
        ("patient=Doe", "unknown parameter 'patient'; there are model, explain"),
        ("lesions=yes", "lesions cannot be 'yes'; write true or false"),
        ("lesions=1", "lesions cannot be '1'; write true or false"),
        ("enhance=NaN", "'NaN'; write true or false"),
        ("model=", "model"),
        ("lesions=no&enhance=no", "lesions cannot be 'no'; write true or false; the parameter enhance"),
    ],
)
def test_a_wrong_query_is_named(service: PredictorService, url: str, query: str, says: str) -> None:
    problem = problem_of(requests.post(f"{url}/v1/grade?{query}", photograph(), headers=RAW, timeout=20))
    assert (problem["type"], problem["status"]) == ("bad-request", 400)
    assert says in str(problem["detail"])
    assert not service.asked


@pytest.mark.parametrize("key", ["a b", "x" * 129, "a/0", ""])
def test_a_wrong_idempotency_key_is_named(url: str, key: str) -> None:
    headers = {**RAW, "Idempotency-Key": key}
    problem = problem_of(requests.post(f"{url}/v1/grade", photograph(), headers=headers, timeout=20))
    assert problem["status"] == 400
    assert "the header idempotency-key" in str(problem["detail"])


def test_a_model_that_is_not_served(url: str) -> None:
    problem = problem_of(requests.post(f"{url}/v1/grade?model=big", photograph(), headers=RAW, timeout=20))
    assert (problem["type"], problem["status"]) == ("unknown-model", 404)


@pytest.mark.parametrize("path", ["/v1/grade", "/v1/grade/batch"])
@pytest.mark.parametrize("media_type", ["application/x-www-form-urlencoded", "text/plain", ""])
def test_a_body_of_another_type_is_refused(url: str, path: str, media_type: str) -> None:
    headers = {"Content-Type": media_type}
    problem = problem_of(requests.post(f"{url}{path}", photograph(), headers=headers, timeout=20))
    assert (problem["type"], problem["status"]) == ("unsupported-media-type", 415)
    assert "multipart/form-data" in str(problem["detail"])


def test_a_photograph_on_which_the_service_fails_does_so_alone(service: PredictorService, url: str) -> None:
    def fail(request: GradeRequest) -> None:
        if request.photograph == b"the one":
            raise ValueError("Smith, Jane")

    service.before = fail
    files = [("p", ("a.jpg", photograph())), ("p", ("b.jpg", b"the one")), ("p", ("c.jpg", photograph(1)))]
    response = requests.post(f"{url}/v1/grade/batch", files=files, timeout=20)
    assert response.status_code == 200
    found = BatchResponse.model_validate_json(response.content).photographs
    assert [item.problem is None for item in found] == [True, False, True]
    assert found[1].problem is not None
    assert (found[1].problem.type, found[1].problem.status) == ("internal", 500)
    assert "Smith" not in response.text


def test_a_batch_has_an_end(service: PredictorService, url: str) -> None:
    files = [("p", (f"{index}.jpg", b"x")) for index in range(SETTINGS.max_batch + 1)]
    problem = problem_of(requests.post(f"{url}/v1/grade/batch", files=files, timeout=20))
    assert (problem["type"], problem["status"]) == ("bad-request", 400)
    several = problem_of(requests.post(f"{url}/v1/grade", files=files[:2], timeout=20))
    assert several["status"] == 400
    assert not service.asked


@pytest.mark.parametrize(
    ("method", "path", "status"),
    [
        ("GET", "/v1/grade", 405),
        ("DELETE", "/v1/models", 405),
        ("PATCH", "/", 405),
        ("GET", "/v1/grade/", 404),
        ("GET", "/v2/grade", 404),
        ("POST", "/nowhere", 404),
        ("GET", "/docs", 404),
        ("GET", "/page/index.html", 404),
        ("GET", "/%00/..%2f..%2fetc/passwd", 404),
    ],
)
def test_unknown_addresses_and_methods(
    service: PredictorService, url: str, method: str, path: str, status: int
) -> None:
    response = requests.request(method, url + path, timeout=20)
    assert problem_of(response)["status"] == status
    if status == 405:
        assert response.headers["allow"] == ("POST" if "grade" in path else "GET")
    wait_until(lambda: len(service.observed) == 1, "the request is counted")
    [(route, counted)] = service.observed
    assert counted == status
    assert route == ("unknown" if status == 404 else path)


@pytest.mark.parametrize(
    ("refusal", "status", "retry_after"),
    [
        (RefusedError("overloaded", "busy", retry_after=0.2), 503, "1"),
        (RefusedError("overloaded", "busy", retry_after=2.3), 503, "3"),
        (RefusedError("timeout", "slow"), 504, None),
        (RefusedError("key-reused", "twice"), 409, None),
        (RefusedError("unsupported", "no"), 422, None),
    ],
)
def test_a_refusal_becomes_its_problem(
    service: PredictorService, url: str, refusal: RefusedError, status: int, retry_after: str | None
) -> None:
    service.refusal = refusal
    response = post(url, photograph())
    assert problem_of(response)["type"] == refusal.kind
    assert response.status_code == status
    assert response.headers.get("retry-after") == retry_after


def test_a_rate_limit_turns_away_before_the_body_is_read(service: PredictorService, url: str) -> None:
    service.rate_limit = 2
    files = [("p", ("a.jpg", photograph())) for _ in range(3)]
    response = requests.post(f"{url}/v1/grade/batch", files=files, timeout=20)
    assert problem_of(response)["type"] == "rate-limited"
    assert response.headers["retry-after"] == "2"
    assert [post(url, photograph()).status_code for _ in range(3)] == [200, 200, 429]
    assert len(service.asked) == 2


def test_a_failure_is_a_problem_that_gives_nothing_away(
    service: PredictorService, url: str, caplog: pytest.LogCaptureFixture
) -> None:
    service.failure = ValueError("patient Doe, 1970-01-01")
    with caplog.at_level(logging.DEBUG):
        response = post(url, photograph())
    problem = problem_of(response)
    assert (problem["type"], problem["status"]) == ("internal", 500)
    assert "Doe" not in response.text + caplog.text
    assert response.headers["x-request-id"] in caplog.text
    assert "ValueError" in caplog.text
    assert "serving_http.py" in caplog.text  # where it was raised
    assert service.observed == [("/v1/grade", 500)]


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_a_number_that_json_cannot_hold_is_a_failure(service: PredictorService, url: str, number: float) -> None:
    good = GradeResponse.model_validate_json(post(url, photograph()).content)
    graded = good.tasks["dr"].model_copy(update={"probabilities": [number] * 5})
    service.altered = {"tasks": {**good.tasks, "dr": graded}}
    problem = problem_of(post(url, photograph()))
    assert (problem["type"], problem["status"]) == ("internal", 500)


def test_file_names_come_back_and_stay_out_of_logs(url: str, caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.DEBUG):
        files = [("p", ("doe-jane-1970.jpg", photograph())), ("p", ("doe-john.jpg", b"no image"))]
        response = requests.post(f"{url}/v1/grade/batch", files=files, timeout=20)
    named = [item.name for item in BatchResponse.model_validate_json(response.content).photographs]
    assert named == ["doe-jane-1970.jpg", "doe-john.jpg"]
    ours = [record.getMessage() for record in caplog.records if record.name.startswith("retina_ray")]
    assert not [line for line in ours if "doe" in line]


# -- headers


@pytest.mark.parametrize("path", ["/", "/page.css", "/page.js", "/healthz", "/v1/models", "/nowhere"])
def test_every_response_carries_the_headers_that_keep_it_safe(url: str, path: str) -> None:
    headers = requests.get(url + path, timeout=20).headers
    assert headers["x-content-type-options"] == "nosniff"
    assert headers["cache-control"] == "no-store"
    assert headers["referrer-policy"] == "no-referrer"
    assert "default-src 'none'" in headers["content-security-policy"]
    assert "unsafe" not in headers["content-security-policy"]
    assert "access-control-allow-origin" not in headers


def test_a_request_cannot_choose_its_number(url: str) -> None:
    headers = {"X-Request-Id": "mine"}
    numbers = {requests.get(f"{url}/healthz", headers=headers, timeout=20).headers["x-request-id"] for _ in range(2)}
    assert len(numbers) == 2
    assert "mine" not in numbers


def test_answers_are_json_that_any_parser_reads(url: str) -> None:
    def refuse(constant: str) -> None:
        raise AssertionError(f"{constant} is no JSON")

    json.loads(post(url, photograph()).text, parse_constant=refuse)
