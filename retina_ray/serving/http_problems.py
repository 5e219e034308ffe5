"""Every error as a problem (RFC 9457): those of the service, of a request's form, and of HTTP itself."""

import difflib
import math
from collections.abc import Mapping, Sequence
from http import HTTPStatus
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from starlette.exceptions import HTTPException
from starlette.responses import Response

from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.schema import Problem

MEDIA_TYPE = "application/problem+json"

_SHOWN = 80  # characters of a wrong value that are repeated to its sender


def install(app: FastAPI, *, parameters: Sequence[str]) -> None:
    """Answer with problems, whatever goes wrong in an application.

    Args:
        app: the application.
        parameters: of the query, among which the nearest to an unknown one is found.
    """

    async def refused(request: Request, error: Exception) -> Response:
        assert isinstance(error, RefusedError)
        return refusal(error, request.state.request_id)

    async def invalid(request: Request, error: Exception) -> Response:
        assert isinstance(error, RequestValidationError)
        detail = "; ".join(_what_is_wrong(each, parameters) for each in error.errors())
        return refusal(RefusedError("bad-request", detail), request.state.request_id)

    async def of_http(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == HTTPStatus.NOT_FOUND:
            where = f"there is nothing at {request.url.path[:_SHOWN]}; the API is described at /v1/openapi.json"
            return refusal(RefusedError("not-found", where), request.state.request_id)
        return _plain(error, request)

    app.add_exception_handler(RefusedError, refused)
    app.add_exception_handler(RequestValidationError, invalid)
    app.add_exception_handler(HTTPException, of_http)


def refusal(error: RefusedError, request_id: str | None) -> Response:
    """Return the response to a refused request."""
    headers = {}
    if error.retry_after is not None:
        headers["Retry-After"] = str(max(1, math.ceil(error.retry_after)))
    if error.kind == "unauthenticated":
        headers["WWW-Authenticate"] = "Bearer"
    return _response(error.problem(request_id), headers)


def unsupported_media_type(detail: str) -> HTTPException:
    """Return the error of a body that is of a type the API does not take."""
    return HTTPException(HTTPStatus.UNSUPPORTED_MEDIA_TYPE, detail)


def _plain(error: HTTPException, request: Request) -> Response:
    """Return what HTTP itself has a word for, such as a method that an address does not know."""
    status = HTTPStatus(error.status_code)
    detail = error.detail
    if status is HTTPStatus.METHOD_NOT_ALLOWED:
        allowed = (error.headers or {}).get("Allow", "another method")
        detail = f"{request.method} is not allowed at {request.url.path[:_SHOWN]}; use {allowed}"
    problem = Problem(
        type=status.phrase.lower().replace(" ", "-"),
        title=status.phrase,
        status=status,
        detail=detail,
        request_id=request.state.request_id,
    )
    return _response(problem, error.headers or {})


def _response(problem: Problem, headers: Mapping[str, str]) -> Response:
    return Response(
        problem.model_dump_json(exclude_none=True), problem.status, headers=dict(headers), media_type=MEDIA_TYPE
    )


def _what_is_wrong(error: Mapping[str, Any], parameters: Sequence[str]) -> str:
    """Return an error of validation as: what, the value, what to do."""
    place, *path = (str(part) for part in error["loc"])
    name = ".".join(path)
    kind = "header" if place == "header" else "parameter"
    if error["type"] == "extra_forbidden":
        nearest = difflib.get_close_matches(name, parameters, 1)
        fix = f"did you mean {nearest[0]}" if nearest else f"there are {', '.join(parameters)}"
        return f"unknown parameter {name[:_SHOWN]!r}; {fix}"
    message = str(error["msg"]).removeprefix("Value error, ")
    return f"the {kind} {name} cannot be {str(error['input'])[:_SHOWN]!r}; {message[:1].lower()}{message[1:]}"
