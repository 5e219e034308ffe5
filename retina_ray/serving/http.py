"""The web application: HTTP in, problems and answers out. Grading itself is behind `service.Service`.

Run by any ASGI server. What is not here: limits and forms of bodies (``body``), errors (``http_problems``), what
surrounds every request (``http_guard``), the API's description (``http_description``) and the page (``http_page``).
"""

import asyncio
import math
import uuid
from collections.abc import Awaitable, Callable, Iterable
from dataclasses import dataclass
from typing import Annotated, Any

from fastapi import Depends, FastAPI, Header, Query, Request
from fastapi.security import HTTPAuthorizationCredentials, HTTPBearer
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field
from pydantic.json_schema import SkipJsonSchema
from starlette.responses import Response

from retina_ray.serving import http_description as described
from retina_ray.serving import http_problems
from retina_ray.serving.body import BodyLimits, Part, parse_form, read_body
from retina_ray.serving.http_guard import Guard, failure, log_failure
from retina_ray.serving.http_page import page_routes
from retina_ray.serving.keys import KnownKeys, Scope
from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.schema import BatchItem, BatchResponse, Explanation, GradeResponse, ModelsResponse
from retina_ray.serving.service import ANONYMOUS, GradeOptions, GradeRequest, Service

Nothing = SkipJsonSchema[None]
"""A parameter that is left out; the description does not offer it as a value."""


@dataclass(frozen=True, slots=True)
class HttpSettings:
    """Limits of a request.

    Attributes:
        max_body_bytes: of a body, be it one photograph or a batch.
        body_seconds: until the whole body is there.
        max_batch: photographs in a batch.
        batch_share: photographs of one batch that are graded at a time, so that it leaves room for others and does not
            overload the service by itself.
    """

    max_body_bytes: int = 64 * 2**20
    body_seconds: float = 30.0
    max_batch: int = 16
    batch_share: int = 8


ROUTES = ("/", "/v1/grade", "/v1/grade/batch", "/v1/models", "/v1/openapi.json", "/healthz", "/readyz", "/metrics")
"""Addresses that `Service.observe` is told about one by one; the page's assets are not worth it."""


def build_app(service: Service, settings: HttpSettings, keys: KnownKeys | None) -> FastAPI:
    """Build the web application.

    Args:
        service: answers.
        settings: limits of a request.
        keys: who may ask; None: everybody.
    """
    app = FastAPI(
        title="retina_ray",
        summary="Grades of retinal diseases in colour fundus photographs.",
        description=described.DESCRIPTION,
        version="1",
        openapi_url="/v1/openapi.json",
        docs_url=None,  # its page would load scripts from elsewhere
        redoc_url=None,
        redirect_slashes=False,  # a redirected photograph would be sent twice
    )
    endpoints = _Endpoints(service, settings)
    _add_routes(app, endpoints, keys, settings)
    app.include_router(page_routes())
    http_problems.install(app, parameters=list(GradeQuery.model_fields))
    described.complete(app)
    app.add_middleware(Guard, service=service, limits=endpoints.limits)
    return app


def _flag(value: object) -> object:
    if value in ("true", "false") or isinstance(value, bool):
        return value
    raise ValueError("write true or false")


Flag = Annotated[bool, BeforeValidator(_flag)]


class GradeQuery(BaseModel):
    """What is asked of a photograph; unknown parameters are refused, since a misspelt one would go unnoticed."""

    model_config = ConfigDict(frozen=True, extra="forbid", use_attribute_docstrings=True)

    model: Annotated[str, Field(min_length=1, max_length=200)] | Nothing = None
    """Which model, as `GET /v1/models` calls it; the first where left out."""
    explain: Explanation | Nothing = None
    """Draw where the networks see what they grade."""
    lesions: Flag = False
    """Segment lesions."""
    enhance: Flag = False
    """Super-resolve the photograph."""
    low_resolution: Flag = False
    """The photograph has a super-resolving model's low resolution already, and is not reduced to it first."""

    @property
    def options(self) -> GradeOptions:
        """What is wanted besides the grades."""
        return GradeOptions(
            explain=self.explain, lesions=self.lesions, enhance=self.enhance, low_resolution=self.low_resolution
        )


IdempotencyKey = Annotated[
    Annotated[str, Field(pattern=r"^[A-Za-z0-9._:-]{1,128}$")] | Nothing,
    Header(description="Chosen by the sender; a request that is repeated with the same one gets the same answer."),
]
Caller = Callable[..., Awaitable[None]]
"""A dependency that notes, as ``request.state.key_id``, with which key a request was sent."""


def _caller(keys: KnownKeys | None, scope: Scope) -> Caller:
    """Return what tells who sent a request, before its query is judged and its body is read."""
    if keys is None:

        async def anybody(request: Request) -> None:
            request.state.key_id = ANONYMOUS

        return anybody
    bearer = HTTPBearer(auto_error=False, scheme_name="key", description="An API key: `Authorization: Bearer KEY`.")

    async def holder(
        request: Request, presented: Annotated[HTTPAuthorizationCredentials | None, Depends(bearer)]
    ) -> None:
        if presented is None:
            detail = "the request has no API key; send it in the header Authorization: Bearer KEY"
            raise RefusedError("unauthenticated", detail)
        request.state.key_id = keys.check(presented.credentials, scope).id

    return holder


class _Endpoints:
    """What each address of the API does."""

    def __init__(self, service: Service, settings: HttpSettings) -> None:
        self._service = service
        self._max_batch = settings.max_batch
        self._batch_share = settings.batch_share
        self.limits = BodyLimits(settings.max_body_bytes, settings.body_seconds)

    async def grade(
        self, request: Request, query: Annotated[GradeQuery, Query()], idempotency_key: IdempotencyKey = None
    ) -> Response:
        key_id: str = request.state.key_id
        form = _is_form(request, raw=True)
        await self._service.admit(key_id, 1)
        photograph = await self._body(request)
        if form:
            [part] = await self._parts(request, photograph, 1)
            photograph = part.data
        asked = GradeRequest(
            photograph=photograph,
            request_id=request.state.request_id,
            key_id=key_id,
            model=query.model,
            options=query.options,
            idempotency_key=idempotency_key,
        )
        return _json(await self._answer(asked))

    async def grade_batch(
        self, request: Request, query: Annotated[GradeQuery, Query()], idempotency_key: IdempotencyKey = None
    ) -> Response:
        key_id: str = request.state.key_id
        _is_form(request, raw=False)
        parts = await self._parts(request, await self._body(request), self._max_batch)
        await self._service.admit(key_id, len(parts))
        asked = [
            GradeRequest(
                photograph=part.data,
                request_id=uuid.uuid4().hex,
                key_id=key_id,
                model=query.model,
                options=query.options,
                # A sender's own key holds no slash.
                idempotency_key=None if idempotency_key is None else f"{idempotency_key}/{index}",
            )
            for index, part in enumerate(parts)
        ]
        pairs = zip(parts, asked, strict=True)
        room = asyncio.Semaphore(self._batch_share)
        items = await asyncio.gather(*(self._item(part, one, room) for part, one in pairs))
        return _json(BatchResponse(photographs=items))

    async def models(self) -> Response:
        return _json(await self._service.models())

    async def metrics(self) -> Response:
        return Response(await self._service.metrics(), media_type=described.METRICS_TYPE)

    async def healthz(self) -> Response:
        return Response("ok\n", media_type="text/plain")

    async def readyz(self) -> Response:
        reason = await self._service.not_ready()
        if reason is not None:
            raise RefusedError("not-ready", reason, retry_after=1.0)
        return Response("ready\n", media_type="text/plain")

    async def _body(self, request: Request) -> bytes:
        return await read_body(request.receive, request.headers, self.limits)

    async def _parts(self, request: Request, body: bytes, most: int) -> list[Part]:
        # In a thread: the largest form takes the better part of a second, in which nobody else would be answered.
        return await asyncio.to_thread(parse_form, body, request.headers["content-type"], max_parts=most)

    async def _answer(self, asked: GradeRequest) -> GradeResponse:
        answer = await self._service.grade(asked)
        if not _finite(answer.model_dump().values()):
            detail = f"the model {answer.model.name} gave numbers that are not finite; ask another version of it"
            raise RefusedError("internal", detail)
        return answer

    async def _item(self, part: Part, asked: GradeRequest, room: asyncio.Semaphore) -> BatchItem:
        try:
            async with room:
                return BatchItem(name=part.name, answer=await self._answer(asked))
        except RefusedError as error:
            return BatchItem(name=part.name, problem=error.problem(asked.request_id))
        except Exception as error:  # one photograph fails alone, whatever it is
            log_failure(asked.request_id, error)
            return BatchItem(name=part.name, problem=failure(asked.request_id).problem(asked.request_id))


def _add_routes(app: FastAPI, endpoints: _Endpoints, keys: KnownKeys | None, settings: HttpSettings) -> None:
    of_graders = [Depends(_caller(keys, "grade"))]
    of_watchers = [Depends(_caller(keys, "metrics"))]
    post_grade = app.post("/v1/grade", response_model=GradeResponse, dependencies=of_graders, **described.grade())
    post_batch = app.post(
        "/v1/grade/batch",
        response_model=BatchResponse,
        dependencies=of_graders,
        **described.grade_batch(settings.max_batch),
    )
    get_models = app.get("/v1/models", response_model=ModelsResponse, dependencies=of_graders, **described.models())
    post_grade(endpoints.grade)
    post_batch(endpoints.grade_batch)
    get_models(endpoints.models)
    app.get("/healthz", **described.healthz())(endpoints.healthz)
    app.get("/readyz", **described.readyz())(endpoints.readyz)
    app.get("/metrics", dependencies=of_watchers, **described.metrics())(endpoints.metrics)


def _is_form(request: Request, *, raw: bool) -> bool:
    """Tell whether a body is a multipart form; raise for what is neither that nor, where allowed, a photograph."""
    given = request.headers.get("content-type", "")
    media_type = given.partition(";")[0].strip().lower()
    if media_type == described.FORM_TYPE:
        return True
    if raw and media_type in described.IMAGE_TYPES:
        return False
    wanted = [*described.IMAGE_TYPES, described.FORM_TYPE] if raw else [described.FORM_TYPE]
    what = f"the body's Content-Type is {media_type[:80]!r}"
    raise http_problems.unsupported_media_type(f"{what}; send one of: {', '.join(wanted)}")


def _json(answer: BaseModel) -> Response:
    return Response(answer.model_dump_json(), media_type="application/json")


def _finite(values: Iterable[Any]) -> bool:
    """Tell whether all numbers in an answer are finite; JSON has no others, and null would hide them."""
    for value in values:
        if isinstance(value, float) and not math.isfinite(value):
            return False
        nested = value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()
        if not _finite(nested):
            return False
    return True
