"""A proxy before the S3 server that spoils chosen answers: error codes, cut connections, stalls, flipped bits.

The Host header passes through, so signatures stay valid.
"""

import http.client
import re
import socket
import struct
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import ClassVar, Literal
from urllib.parse import urlsplit

Kind = Literal["status", "drop", "drop_after", "truncate", "stall", "flip", "region"]
OTHER_REGION = "eu-far-1"
_ERRORS = {503: "SlowDown", 500: "InternalError"}


@dataclass
class Fault:
    """What happens to the first ``times`` requests of a method whose path matches.

    ``status`` answers with a code, ``drop`` resets before the server is asked, ``drop_after`` after it has answered,
    ``truncate`` and ``stall`` stop after half of the body, ``flip`` changes one of its bits; ``region`` names another
    region, as AWS does of every bucket.
    """

    kind: Kind
    method: str = "GET"
    path: str = "."
    times: int = 1
    code: int = 503
    hits: int = field(default=0, init=False)

    def strikes(self, method: str, path: str) -> bool:
        """Tell whether a request is spoilt, and count it."""
        if self.hits >= self.times or method != self.method or not re.search(self.path, path):
            return False
        self.hits += 1
        return True


class Proxy:
    """Where it listens, the faults that it makes, and what was asked of it."""

    def __init__(self, endpoint: str) -> None:
        self.endpoint = endpoint
        self.faults: list[Fault] = []
        self.requests: list[tuple[str, str]] = []
        self.signatures: list[str] = []


@contextmanager
def faulty(upstream: str) -> Iterator[Proxy]:
    """Run a proxy for the length of a block."""
    lock = threading.Lock()

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"
        faults: ClassVar[list[Fault]] = []

        def log_message(self, *_: object) -> None:
            pass

        def serve(self) -> None:
            body = self.rfile.read(int(self.headers.get("Content-Length") or 0))
            with lock:
                proxy.requests.append((self.command, self.path))
                proxy.signatures.append(self.headers.get("Authorization", ""))
                fault = next((each for each in proxy.faults if each.strikes(self.command, self.path)), None)
            kind = fault.kind if fault else None
            if kind == "drop":
                return self.reset()
            if fault and kind == "status":
                text = f"<Error><Code>{_ERRORS[fault.code]}</Code><Message>injected</Message></Error>".encode()
                return self.answer(fault.code, {"Content-Type": "application/xml"}, text)
            upstream_place = urlsplit(upstream)
            connection = http.client.HTTPConnection(upstream_place.hostname or "", upstream_place.port, timeout=60)
            connection.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
            for name, value in self.headers.items():
                if name.lower() not in ("connection", "expect"):
                    connection.putheader(name, value)
            connection.endheaders(body)
            response = connection.getresponse()
            data = response.read()
            headers = {
                name: value
                for name, value in response.getheaders()
                if name.lower() not in ("connection", "transfer-encoding", "content-length")
            }
            if kind == "region":
                headers["x-amz-bucket-region"] = OTHER_REGION
            length = response.getheader("Content-Length") if self.command == "HEAD" else str(len(data))
            connection.close()
            if kind == "drop_after":
                return self.reset()
            if kind == "flip":
                middle = len(data) // 2
                data = data[:middle] + bytes([data[middle] ^ 1]) + data[middle + 1 :]
            half = len(data) // 2 if kind in ("truncate", "stall") else len(data)
            self.answer(response.status, headers, data[:half], length)
            if kind == "stall":
                time.sleep(15)
            if kind in ("truncate", "stall"):
                self.reset()
            return None

        do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = serve  # noqa: N815

        def answer(self, code: int, headers: dict[str, str], data: bytes, length: str | None = None) -> None:
            self.send_response_only(code)
            for name, value in headers.items():
                self.send_header(name, value)
            self.send_header("Content-Length", length or str(len(data)))
            self.end_headers()
            if self.command != "HEAD":
                self.wfile.write(data)
            self.wfile.flush()

        def reset(self) -> None:
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.close_connection = True
            self.connection.close()

        def handle(self) -> None:
            try:
                super().handle()
            except OSError:  # the client has given up, or we have
                self.close_connection = True

        def finish(self) -> None:
            with suppress(OSError, ValueError):
                super().finish()

    class Server(ThreadingHTTPServer):
        daemon_threads = True

        def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
            assert isinstance(request, socket.socket)
            request.close()

    server = Server(("127.0.0.1", 0), Handler)
    proxy = Proxy(f"http://127.0.0.1:{server.server_port}")
    thread = threading.Thread(target=server.serve_forever, daemon=True)
    thread.start()
    try:
        yield proxy
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
