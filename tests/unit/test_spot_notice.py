"""The notice before a spot machine goes, from a stand-in for AWS's metadata to the command that Ray is told with."""

import json
import os
import shlex
import subprocess
import sys
import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from retina_ray.orchestration import spot_notice
from tests.manifests.commands import parse


class Metadata:
    """Answers as AWS does from within a machine: to who has fetched a token, 404 until there is a notice."""

    def __init__(self) -> None:
        self.notice: str | None = None
        self.fails = 0
        outer = self

        class Handler(BaseHTTPRequestHandler):
            def do_PUT(self) -> None:
                has_ttl = self.headers["X-aws-ec2-metadata-token-ttl-seconds"] is not None
                self._say(200, "secret") if has_ttl and self.path == "/latest/api/token" else self._say(400)

            def do_GET(self) -> None:
                if outer.fails:
                    outer.fails -= 1
                    self._say(503)
                elif self.headers["X-aws-ec2-metadata-token"] != "secret":
                    self._say(401)
                elif self.path != "/latest/meta-data/spot/instance-action" or outer.notice is None:
                    self._say(404)
                else:
                    self._say(200, outer.notice)

            def _say(self, status: int, text: str = "") -> None:
                self.send_response(status)
                self.end_headers()
                self.wfile.write(text.encode())

            def log_message(self, *_: object) -> None: ...

        self.server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.address = f"http://127.0.0.1:{self.server.server_port}"

    def tell(self, seconds: float) -> datetime:
        """Give notice of so many seconds."""
        when = datetime.now(UTC).replace(microsecond=0) + timedelta(seconds=seconds)
        self.notice = json.dumps({"action": "terminate", "time": when.strftime("%Y-%m-%dT%H:%M:%SZ")})
        return when


@pytest.fixture
def metadata() -> Iterator[Metadata]:
    found = Metadata()
    with found.server:
        thread = threading.Thread(target=found.server.serve_forever)
        thread.start()
        yield found
        found.server.shutdown()
        thread.join()


def test_there_is_no_notice_until_there_is_one(metadata: Metadata) -> None:
    assert spot_notice.interruption(metadata.address) is None
    when = metadata.tell(120)
    assert spot_notice.interruption(metadata.address) == when


def test_ray_is_told_once_in_words_that_it_knows(metadata: Metadata, tmp_path: Path) -> None:
    told = tmp_path / "told"
    (tmp_path / "ray").write_text(
        f"#!{sys.executable}\nimport pathlib, shlex, sys\n"
        f"file = pathlib.Path({str(told)!r})\n"
        "is_first = not file.exists()\n"
        "file.open('a').write(shlex.join(['ray', *sys.argv[1:]]) + '\\n')\n"
        "sys.exit(is_first)\n"
    )
    (tmp_path / "ray").chmod(0o755)
    metadata.fails = 2
    metadata.tell(100)
    words = [sys.executable, "-m", spot_notice.__name__, "--metadata", metadata.address, "--every", "0.1"]
    environment = {**os.environ, "PATH": f"{tmp_path}:{os.environ['PATH']}"}
    done = subprocess.run(words, env=environment, capture_output=True, text=True, timeout=30, check=True)
    assert done.stderr.count("503") == 2, "what fails is tried again"
    first, second = told.read_text().splitlines()
    assert shlex.split(first)[:-1] == shlex.split(second)[:-1], "and so is Ray, which failed the first time"
    verbs, given = parse(second)
    assert verbs == ["ray", "drain-node"]
    assert given["reason"] == "DRAIN_NODE_REASON_PREEMPTION", "as of pods, so that trainings save"
    assert 60 < given["deadline_remaining_seconds"] <= 100
