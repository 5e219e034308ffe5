"""What the API's description (OpenAPI 3.1, ``/v1/openapi.json``) says beyond what the code itself tells."""

from collections.abc import Iterable
from http import HTTPStatus
from typing import Any, get_args

from fastapi import FastAPI
from fastapi.openapi.utils import get_openapi

from retina_ray.serving.http_problems import MEDIA_TYPE
from retina_ray.serving.refusals import Kind, RefusedError
from retina_ray.serving.schema import ImageQuality, Problem

DESCRIPTION = (
    "Takes colour fundus photographs (JPEG, PNG, TIFF, BMP, WebP, DICOM) and answers, for each disease that a model "
    "knows: the grade, calibrated probabilities, whether to refer, and what there is to know before trusting it. "
    "For research; not a medical device. Every error is a problem as in RFC 9457."
)
IMAGE_TYPES = (
    "application/octet-stream",
    "image/jpeg",
    "image/png",
    "image/tiff",
    "image/bmp",
    "image/webp",
    "application/dicom",
)
FORM_TYPE = "multipart/form-data"
METRICS_TYPE = "text/plain; version=0.0.4; charset=utf-8"

_BINARY = {"type": "string", "format": "binary"}
_PROBLEM = {"$ref": "#/components/schemas/Problem"}
_REQUEST_ID = {"schema": {"type": "string"}, "description": "By which log and audit log name the request."}
_RETRY_AFTER = {"schema": {"type": "integer", "minimum": 1}, "description": "Seconds to wait before repeating it."}

_UNIDENTIFIED: tuple[Kind, ...] = ("unauthenticated",)
_GRADING = tuple(kind for kind in get_args(Kind) if kind != "not-found")
"""Every kind, except that of an address at which there is nothing."""

_EXAMPLES: dict[Kind, RefusedError] = {
    error.kind: error
    for error in (
        RefusedError("bad-request", "unknown parameter 'explian'; did you mean explain"),
        RefusedError("unauthenticated", "the request has no API key; send it in the header Authorization: Bearer KEY"),
        RefusedError("unknown-model", "no such model is served: 'sal'; served are sall, deepmt_dr"),
        RefusedError("slow-sender", "the body was not there after 30 s; send it over a faster line, or a smaller one"),
        RefusedError("key-reused", "the idempotency key 'a1' was used for another request; make a new one for each"),
        RefusedError("too-large", "the body has 90000000 bytes; send at most 64 MiB, for instance JPEG files"),
        RefusedError("unreadable-image", "the file is empty; copy it again from its source"),
        RefusedError(
            "no-fundus",
            "the photograph is uniform; give a colour photograph that shows the fundus as a disc on a dark surround",
            image=ImageQuality(ok=False, reason="retake: no fundus found (the photograph is uniform)"),
        ),
        RefusedError("unsupported", "the model sall cannot segment lesions; it draws: gradcam"),
        RefusedError("rate-limited", "the key clinic-a may have 600 photographs a minute graded; wait 2 s"),
        RefusedError("internal", "the service failed; report it with the number of the request, or repeat it"),
        RefusedError("overloaded", "32 photographs are being graded, the most that this process takes; repeat it"),
        RefusedError("not-ready", "the model sall is being loaded; wait a moment"),
        RefusedError("timeout", "the answer took longer than 30 s; repeat the request"),
    )
}
_ANSWER = {
    "tasks": {
        "dr": {
            "grade": 2,
            "grade_name": "NPDR II",
            "probabilities": [0.06, 0.13, 0.58, 0.17, 0.06],
            "confidence": 0.58,
            "referable": True,
            "referable_probability": 0.81,
            "prediction_set": [2, 3],
            "coverage": 0.9,
            "abstain": False,
        }
    },
    "image": {"ok": True},
    "model": {"name": "sall", "version": 3, "hash": "0c5d8a6f41be"},
    "timing": {"prepare_ms": 6.1, "network_ms": 14.9, "total_ms": 23.4},
    "request_id": "4f0c2f2c1d9c4a3f9a5b7f7e3a0d1c22",
}


def grade() -> dict[str, Any]:
    """Describe ``POST /v1/grade``."""
    content: dict[str, Any] = {media_type: {"schema": _BINARY} for media_type in IMAGE_TYPES}
    content[FORM_TYPE] = {"schema": _form({"photograph": _BINARY})}
    return {
        "operation_id": "grade",
        "summary": "Grade one photograph",
        "description": "The body is the file, or a form with the file as its only part. The format is told by content.",
        "responses": _answers(_ANSWER, "Its grades.") | _unsupported_type() | _problems(_GRADING),
        "openapi_extra": {"requestBody": {"required": True, "content": content}},
    }


def grade_batch(max_batch: int) -> dict[str, Any]:
    """Describe ``POST /v1/grade/batch``."""
    photographs = {"type": "array", "items": _BINARY, "minItems": 1, "maxItems": max_batch}
    problem = _EXAMPLES["no-fundus"].problem("9d1e7c0a1f6b4b5f8a8e6f0f1c3f2b11").model_dump(exclude_none=True)
    answer = {"photographs": [{"name": "a.jpg", "answer": _ANSWER}, {"name": "b.jpg", "problem": problem}]}
    # What is wrong with one photograph is said in its item.
    kinds = [kind for kind in _GRADING if kind not in ("unreadable-image", "no-fundus")]
    return {
        "operation_id": "grade_batch",
        "summary": "Grade several photographs",
        "description": (
            f"A form with one to {max_batch} files. Each gets an answer or a problem of its own, in the order of the "
            "form; the problems below concern the whole request."
        ),
        "responses": _answers(answer, "An answer or a problem for each.") | _unsupported_type() | _problems(kinds),
        "openapi_extra": {
            "requestBody": {
                "required": True,
                "content": {FORM_TYPE: {"schema": _form({"photographs": photographs})}},
            }
        },
    }


def models() -> dict[str, Any]:
    """Describe ``GET /v1/models``."""
    return {
        "operation_id": "models",
        "summary": "List the models",
        "responses": _answers(None, "The first is asked where a request names none.")
        | _problems([*_UNIDENTIFIED, "internal", "not-ready"]),
    }


def healthz() -> dict[str, Any]:
    """Describe ``GET /healthz``."""
    return {"operation_id": "healthz", "summary": "The process lives", "responses": _text("ok")}


def readyz() -> dict[str, Any]:
    """Describe ``GET /readyz``."""
    responses = _text("ready") | _problems(["internal", "not-ready"])
    return {"operation_id": "readyz", "summary": "Photographs can be graded", "responses": responses}


def metrics() -> dict[str, Any]:
    """Describe ``GET /metrics``."""
    responses = _text("# HELP ...") | _problems([*_UNIDENTIFIED, "internal", "overloaded"])
    return {"operation_id": "metrics", "summary": "Metrics in Prometheus's text format", "responses": responses}


def complete(app: FastAPI) -> None:
    """Have an application describe itself with the schema of problems, which its routes refer to."""

    def description() -> dict[str, Any]:
        if app.openapi_schema is None:
            found = get_openapi(
                title=app.title,
                version=app.version,
                openapi_version=app.openapi_version,
                summary=app.summary,
                description=app.description,
                routes=app.routes,
            )
            problem = Problem.model_json_schema(ref_template="#/components/schemas/{model}", mode="serialization")
            found["components"]["schemas"] |= problem.pop("$defs") | {"Problem": problem}
            app.openapi_schema = found
        return app.openapi_schema

    app.openapi = description  # type: ignore[method-assign]


def _form(properties: dict[str, Any]) -> dict[str, Any]:
    return {"type": "object", "properties": properties, "required": list(properties), "additionalProperties": False}


def _answers(example: dict[str, Any] | None, description: str) -> dict[int | str, Any]:
    content = {} if example is None else {"content": {"application/json": {"example": example}}}
    return {200: {"description": description, "headers": {"X-Request-Id": _REQUEST_ID}, **content}}


def _text(example: str) -> dict[int | str, Any]:
    content = {"text/plain": {"schema": {"type": "string"}, "example": example}}
    return {200: {"description": "Text.", "headers": {"X-Request-Id": _REQUEST_ID}, "content": content}}


def _problems(kinds: Iterable[Kind]) -> dict[int | str, Any]:
    """Describe the problems that a request can get, by status."""
    by_status: dict[int, list[Problem]] = {}
    for kind in kinds:
        problem = _EXAMPLES[kind].problem()
        by_status.setdefault(problem.status, []).append(problem)
    return {status: _problem(problems) for status, problems in by_status.items()}


def _unsupported_type() -> dict[int | str, Any]:
    status = HTTPStatus.UNSUPPORTED_MEDIA_TYPE
    detail = f"the body's Content-Type is 'text/plain'; send one of: {', '.join((*IMAGE_TYPES, FORM_TYPE))}"
    kind = "unsupported-media-type"
    return {int(status): _problem([Problem(type=kind, title=status.phrase, status=status, detail=detail)])}


def _problem(problems: list[Problem]) -> dict[str, Any]:
    headers: dict[str, Any] = {"X-Request-Id": _REQUEST_ID}
    if problems[0].status in (HTTPStatus.TOO_MANY_REQUESTS, HTTPStatus.SERVICE_UNAVAILABLE):
        headers["Retry-After"] = _RETRY_AFTER
    examples = {problem.type: {"value": problem.model_dump(exclude_none=True)} for problem in problems}
    return {
        "description": "; or: ".join(problem.title for problem in problems) + ".",
        "headers": headers,
        "content": {MEDIA_TYPE: {"schema": _PROBLEM, "examples": examples}},
    }
