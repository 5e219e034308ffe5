"""Asks a served model for grades: ``with Client(url, key) as client: client.grade("eye.jpg")``.

A request that may succeed when repeated (status 429, 500, 502, 503 or 504, a connection that is refused or breaks off)
is repeated for some seconds under one idempotency key; whatever else goes wrong is raised at once. Standard library and
pydantic alone: no torch, no Ray, no numpy. It connects directly, without a proxy, and follows no redirect.
"""

import http.client
import ipaddress
import math
import re
import ssl
import uuid
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import TypeVar
from urllib.parse import SplitResult, urlencode, urlsplit

from pydantic import BaseModel, ValidationError

from retina_ray.client_transport import REAL_CLOCK, REPEATED, Clock, Patience, Reply, Transport, may_pass
from retina_ray.errors import ConfigError, DataError, RetinaRayError
from retina_ray.serving.schema import BatchItem, BatchResponse, Explanation, GradeResponse, ModelsResponse, Problem

Photograph = Path | str | bytes
"""A file, by its path or by its content."""

_Answer = TypeVar("_Answer", bound=BaseModel)


class RequestError(RetinaRayError):
    """A request without a usable answer.

    Args:
        what: what is wrong.
        value: the service's words, or the address.
        fix: what to do; empty where the service's words say it.
        status: of HTTP; None where no answer came.
        problem: what the service sent, if it is one of its own problems.
    """

    def __init__(
        self, what: str, value: str, fix: str, status: int | None = None, problem: Problem | None = None
    ) -> None:
        super().__init__(what, value, fix)
        self.args = (what, value, fix, status, problem)
        self.status = status
        self.problem = problem

    def __str__(self) -> str:
        return "; ".join(part for part in (f"{self.what}: {self.value}", self.fix) if part)


class Client:
    """Asks one service; may be used by several threads, and keeps as many connections as were in use at one time.

    Certificates are checked against the system's authorities, or those that the variable SSL_CERT_FILE names.

    Args:
        url: of the service, such as ``https://grading.example.org``.
        key: API key; None where the service asks for none.
        timeout_s: how long one attempt may take to connect, and then to be answered; it is not repeated for that.
        retry_for_s: for how long after its first failure a request is repeated; 0: never.
        allow_plain_http: send the key unencrypted to another machine.
        clock: for tests.

    Raises:
        ConfigError: an argument cannot be used.
    """

    def __init__(
        self,
        url: str,
        key: str | None = None,
        *,
        timeout_s: float = 30.0,
        retry_for_s: float = 10.0,
        allow_plain_http: bool = False,
        clock: Clock = REAL_CLOCK,
    ) -> None:
        address = _address(url)
        if not 0 < timeout_s < math.inf:
            raise ConfigError("timeout_s is no time to wait", timeout_s, "give a number of seconds above 0")
        if not retry_for_s >= 0:
            raise ConfigError("retry_for_s is no time to wait", retry_for_s, "give a number of seconds, or 0")
        self._headers = {"Accept": "application/json, application/problem+json", "User-Agent": "retina-ray"}
        if key is not None:
            if not re.fullmatch(r"[!-~]+", key):
                raise ConfigError("the API key cannot be sent", "(not shown)", "give printable ASCII without blanks")
            if address.scheme == "http" and not allow_plain_http and not _is_loopback(address.hostname):
                what = "the API key would travel unencrypted"
                raise ConfigError(what, url, "use https://, or allow_plain_http=True in Python where nobody listens")
            self._headers["Authorization"] = f"Bearer {key}"
        self._url = url
        self._timeout_s = timeout_s
        self._retry_for_s = retry_for_s
        self._clock = clock
        self._transport = Transport(address, timeout_s=timeout_s, clock=clock)

    def grade(
        self,
        photograph: Photograph,
        *,
        model: str | None = None,
        explain: Explanation | None = None,
        lesions: bool = False,
        enhance: bool = False,
        low_resolution: bool = False,
    ) -> GradeResponse:
        """Grade one photograph.

        Args:
            photograph: JPEG, PNG, TIFF, BMP, WebP or DICOM; its name is not sent.
            model: what the model is served as; None: the service's first.
            explain: which map of what the grades go by.
            lesions: masks and areas of lesions.
            enhance: the super-resolved fundus square.
            low_resolution: the photograph is what a super-resolving model takes, and is not degraded first.

        Raises:
            DataError: the file cannot be read.
            RequestError: there is no usable answer.
        """
        query = _query(model, explain, lesions, enhance, low_resolution)
        data = _content(photograph)
        return self._ask("POST", f"/v1/grade{query}", GradeResponse, data, "application/octet-stream")

    def grade_batch(
        self,
        photographs: Sequence[Photograph],
        *,
        model: str | None = None,
        explain: Explanation | None = None,
        lesions: bool = False,
        enhance: bool = False,
        low_resolution: bool = False,
    ) -> BatchResponse:
        """Grade several photographs in one request; one that cannot be graded has its problem, the others an answer.

        Those for which repeating helps, such as where the service was overloaded, are sent again.

        The answers are called by the files' paths as given, or by their number from 1 where contents are given. The
        other arguments and the exceptions are those of `grade`.
        """
        query = _query(model, explain, lesions, enhance, low_resolution)
        contents = [_content(photograph) for photograph in photographs]
        items = self._ask_batch(contents, query)
        patience = Patience(self._retry_for_s, self._clock)
        while again := [i for i, item in enumerate(items) if item.problem and item.problem.status in REPEATED]:
            wait = patience.wait()
            if wait is None:
                break
            self._clock.sleep(wait)
            try:
                repeated = self._ask_batch([contents[i] for i in again], query)
            except RequestError:  # what was answered before is worth keeping
                break
            for i, item in zip(again, repeated, strict=True):
                items[i] = item
        named = []
        for number, (item, photograph) in enumerate(zip(items, photographs, strict=True), start=1):
            name = str(number) if isinstance(photograph, bytes) else str(photograph)
            named.append(item.model_copy(update={"name": name}))
        return BatchResponse(photographs=named)

    def models(self) -> ModelsResponse:
        """Return the models that can be asked.

        Raises:
            RequestError: there is no usable answer.
        """
        return self._ask("GET", "/v1/models", ModelsResponse)

    def ready(self) -> bool:
        """Return whether the service can be reached and is ready, as of now: nothing is repeated.

        Raises:
            RequestError: the address is wrong, or the service's certificate.
        """
        try:
            reply = self._transport.exchange("GET", "/readyz", None, self._headers)
        except (OSError, http.client.HTTPException) as error:
            if may_pass(error) or isinstance(error, TimeoutError):
                return False
            raise self._unanswered(error) from None
        if reply.status != 200 and reply.status not in REPEATED:
            raise self._refusal(reply)
        return reply.status == 200

    def close(self) -> None:
        """Close the connections; the client cannot be used any more."""
        self._transport.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *exception: object) -> None:
        self.close()

    def _ask_batch(self, contents: Sequence[bytes], query: str) -> list[BatchItem]:
        body, kind = _multipart(contents)
        items = self._ask("POST", f"/v1/grade/batch{query}", BatchResponse, body, kind).photographs
        if len(items) != len(contents):
            what = f"{len(contents)} photographs were sent, but the answer is to another number"
            raise RequestError(what, str(len(items)), "report it to who runs the service", 200)
        return list(items)

    def _ask(
        self, method: str, target: str, kind: type[_Answer], body: bytes | None = None, content_type: str | None = None
    ) -> _Answer:
        headers = dict(self._headers)
        if content_type is not None:
            headers |= {"Content-Type": content_type, "Idempotency-Key": str(uuid.uuid4())}
        patience = Patience(self._retry_for_s, self._clock)
        while True:
            try:
                reply = self._transport.exchange(method, target, body, headers)
            except (OSError, http.client.HTTPException) as error:
                wait = patience.wait() if may_pass(error) else None
                if wait is None:
                    raise self._unanswered(error) from None
            else:
                if reply.status == 200:
                    return self._read(reply, kind)
                wait = patience.wait(reply.wait_s) if reply.status in REPEATED else None
                if wait is None:
                    raise self._refusal(reply)
            self._clock.sleep(wait)

    def _read(self, reply: Reply, kind: type[_Answer]) -> _Answer:
        media_type = reply.headers.get_content_type()
        if media_type != "application/json":
            what = f"the answer from {self._url} is no JSON"
            raise RequestError(what, media_type, "check that the address is that of the service", reply.status)
        try:
            return kind.model_validate_json(reply.body, extra="ignore")  # what a newer service adds
        except ValidationError as error:
            first = error.errors(include_input=False, include_url=False)[0]
            place = ".".join(str(each) for each in first["loc"])
            value = f"{place}: {first['msg']}" if place else first["msg"]
            fix = "use the client of the service's release"
            raise RequestError(f"the answer from {self._url} is not understood", value, fix, reply.status) from None

    def _refusal(self, reply: Reply) -> RequestError:
        """Return what to raise for an answer that is none."""
        with suppress(ValidationError):
            problem = Problem.model_validate_json(reply.body, extra="ignore")
            what = problem.title[:1].lower() + problem.title[1:]
            ours = problem.request_id is not None and reply.status >= 500
            fix = f"name request {problem.request_id} to who runs the service" if ours else ""
            return RequestError(what, problem.detail, fix, reply.status, problem)
        fix = "check that the address is that of the service, and that it runs"
        return RequestError(f"the answer has status {reply.status}", self._url, fix, reply.status)

    def _unanswered(self, error: Exception) -> RequestError:
        """Return what to raise where no answer came."""
        reason = getattr(error, "strerror", None) or str(error)
        match error:
            case ssl.SSLCertVerificationError():
                what = f"the service's certificate is not trusted ({error.verify_message})"
                return RequestError(what, self._url, "name the authority that signed it in SSL_CERT_FILE")
            case ssl.SSLError():
                return RequestError(f"no TLS with the service ({reason})", self._url, "check https:// and the port")
            case TimeoutError():
                what = f"no answer within {self._timeout_s:g} s"
                return RequestError(what, self._url, "wait longer for it (timeout_s), or ask again later")
            case OSError():
                fix = "check the address, and that the service runs"
                return RequestError(f"the service cannot be reached ({reason})", self._url, fix)
        return RequestError(f"the answer breaks off or is no HTTP ({reason})", self._url, "check the address")


def _address(url: str) -> SplitResult:
    fix = "give it as https://host, https://host:port or https://host/path"
    wrong = ConfigError("this is no address of a service", re.sub(r"//.*@", "//...@", url), fix)
    try:
        address = urlsplit(url)
        port = address.port
    except ValueError:
        raise wrong from None
    if address.scheme not in ("http", "https") or not address.hostname or port == 0:
        raise wrong
    if not re.fullmatch(r"[!-~]+", url) or "@" in url or "?" in url or "#" in url:
        raise wrong
    return address


def _is_loopback(host: str | None) -> bool:
    try:
        return ipaddress.ip_address(host or "").is_loopback
    except ValueError:
        return host == "localhost"


def _content(photograph: Photograph) -> bytes:
    if isinstance(photograph, bytes):
        return photograph
    try:
        return Path(photograph).read_bytes()
    except OSError as error:
        raise DataError(f"cannot read the image ({error.strerror})", str(photograph), "check the path") from None


def _query(model: str | None, explain: Explanation | None, lesions: bool, enhance: bool, low_resolution: bool) -> str:
    named = {name: value for name, value in (("model", model), ("explain", explain)) if value is not None}
    switches = {"lesions": lesions, "enhance": enhance, "low_resolution": low_resolution}
    query = urlencode(named | {name: "true" for name, on in switches.items() if on})
    return f"?{query}" if query else ""


def _multipart(contents: Sequence[bytes]) -> tuple[bytes, str]:
    """Return a form of files and its media type; a file's name may name a patient, so the parts have numbers."""
    boundary = uuid.uuid4().hex
    parts = []
    for number, content in enumerate(contents, start=1):
        disposition = f'Content-Disposition: form-data; name="photographs"; filename="{number}"'
        head = f"--{boundary}\r\n{disposition}\r\nContent-Type: application/octet-stream\r\n\r\n"
        parts += [head.encode(), content, b"\r\n"]
    return b"".join([*parts, f"--{boundary}--\r\n".encode()]), f"multipart/form-data; boundary={boundary}"
