"""The image: made of what is there, locked, without root, with what `ray up` and the settings of an endpoint need."""

import fnmatch
import re
import shutil
import subprocess
import sys
import threading
import tomllib
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from importlib.metadata import distribution
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from ray._private import ray_constants
from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS

from serve_apps.local import serve_environment
from tests.manifests import dockerfile
from tests.manifests.documents import CLUSTER, ROOT
from tests.manifests.variables import is_read

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
IGNORED = [line for line in (CLUSTER / "Dockerfile.dockerignore").read_text().splitlines() if line[:1] not in ("", "#")]
LOGIN_PATH = {"/usr/local/bin", "/usr/bin", "/bin"}
"""What Debian's /etc/profile sets PATH to for users."""


def copied() -> list[str]:
    """Return what the image takes from the repository."""
    return [source for each in dockerfile.those("COPY") for source in each.words[:-1]]


def is_sent(path: str) -> bool:
    """Tell whether a file of the repository gets to the builder; the last line that fits decides."""
    sent = True
    for line in IGNORED:
        pattern = line.removeprefix("!").removeprefix("**/")
        parts = path.split("/")
        whole = (path, parts[0]) if "/" in pattern else parts[:1]
        if any(fnmatch.fnmatch(each, pattern) for each in (parts if "**/" in line else whole)):
            sent = line.startswith("!")
    return sent


def test_is_made_of_what_is_there_and_gets_nothing_else() -> None:
    assert all((ROOT / source).exists() for source in copied())
    assert all(is_sent(source) for source in copied())
    assert {line.removeprefix("!") for line in IGNORED if line.startswith("!")} == set(copied())
    assert is_sent("retina_ray/cli/main.py")
    for other in (
        "data/eyes/dataset.json",
        "runs/first/run.json",
        ".git/config",
        "keys.yaml",
        "serve_apps/__pycache__",
        "cluster/aws.yaml",
    ):
        assert not is_sent(other)


def test_holds_every_package_and_what_its_build_needs() -> None:
    packages = {pattern.rstrip("*") for pattern in PROJECT["tool"]["setuptools"]["packages"]["find"]["include"]}
    needed = {*packages, "pyproject.toml", "requirements.lock", "cluster/locked.py", PROJECT["project"]["readme"]}
    assert needed | set(PROJECT["project"]["license-files"]) == set(copied())


def test_python_is_one_that_the_package_supports() -> None:
    [argument] = [each for each in dockerfile.those("ARG") if each.text.startswith("PYTHON=")]
    version = re.fullmatch(r"PYTHON=python:(\d+\.\d+)-slim-bookworm", argument.text)
    assert version is not None
    assert f"{version[1]}.0" in SpecifierSet(PROJECT["project"]["requires-python"])
    assert dockerfile.those("FROM")[0].text == "${PYTHON}"


def installs() -> list[list[str]]:
    """Return the words of every `pip install`."""
    lines = [line.split() for each in dockerfile.those("RUN") for line in each.text.split("&&")]
    return [words for words in lines if words[:2] == ["pip", "install"]]


def test_packages_come_from_the_lock_with_their_hashes_and_this_one_brings_no_other() -> None:
    locked, own = installs()
    given = dict(zip(locked, [*locked[1:], ""], strict=True))
    # Without --no-deps pip would look for versions, which pip 25 does not reconcile with hashes of a --constraint.
    assert {"--require-hashes", "--no-deps"} <= set(locked)
    assert given["--requirement"] == "/tmp/wanted.txt"
    assert {"--no-deps", "--no-build-isolation", "."} <= set(own)
    assert dockerfile.those("RUN")[-1].text.endswith("&& pip check")
    # What builds the package is among what it needs, since nothing else is there.
    [builds] = [Requirement(each) for each in PROJECT["build-system"]["requires"]]
    lock = (ROOT / "requirements.lock").read_text()
    assert re.search(rf"^{builds.name}==.*\n(?:    --hash.*\n)+    # via(?:\n    #)* .*torch", lock, re.MULTILINE)


def wanted(folder: Path) -> str:
    """Run what the image makes its list of packages with, beside the files that it copies there."""
    [command] = [each.text.partition("&&")[0] for each in dockerfile.those("RUN") if "locked.py" in each.text]
    for name in ("pyproject.toml", "requirements.lock", "cluster/locked.py"):
        shutil.copy(ROOT / name, folder)
    line = command.replace("/tmp/wanted.txt", "wanted.txt").replace("python", sys.executable, 1)
    subprocess.run(["sh", "-c", line], cwd=folder, check=True, timeout=30)
    return (folder / "wanted.txt").read_text()


def test_the_image_has_all_that_the_product_leads_to_and_no_tools_of_development(tmp_path: Path) -> None:
    text = wanted(tmp_path)
    entries = [Requirement(each.rstrip(" \\")) for each in text.splitlines() if each[:1].isalnum()]
    pins = {
        canonicalize_name(each.name): str(each.specifier)
        for each in entries
        if not each.marker or each.marker.evaluate()
    }
    assert len(re.findall("--hash=sha256:[0-9a-f]{64}", text)) >= len(entries)
    found: dict[str, str] = {}
    left = [Requirement(each) for each in PROJECT["project"]["dependencies"]]
    while left:
        asked = left.pop()
        if asked.marker and not any(asked.marker.evaluate({"extra": each}) for each in ("", *asked.extras)):
            continue
        key = f"{canonicalize_name(asked.name)} {sorted(asked.extras)}"
        if key in found:
            continue
        there = distribution(asked.name)
        found[key] = f"=={there.version}"
        extras = {"", *asked.extras}
        for each in map(Requirement, there.requires or []):
            if not each.marker or any(each.marker.evaluate({"extra": extra}) for extra in extras):
                each.marker = None
                left.append(each)
    needed = {key.partition(" ")[0]: version for key, version in found.items()}
    assert needed.items() <= pins.items()
    assert not {"pytest", "mypy", "ruff", "moto", "playwright", "promql-parser"} & pins.keys()


def test_a_dependency_that_the_lock_lacks_stops_the_build(tmp_path: Path) -> None:
    wanted(tmp_path)
    project = tmp_path / "pyproject.toml"
    project.write_text(project.read_text().replace("dependencies = [", 'dependencies = ["nosuch",', 1))
    done = subprocess.run([sys.executable, "locked.py"], cwd=tmp_path, capture_output=True, text=True, timeout=30)
    assert done.returncode != 0
    assert "nosuch" in done.stderr


def test_commands_are_found_by_login_shells() -> None:
    # `ray up` runs everything in one, which forgets the PATH of the image. Debian's pip writes to /usr/local/bin.
    assert "PATH" not in dockerfile.environment()
    assert not [each for each in dockerfile.those("RUN") if "venv" in each.text or "--prefix" in each.text]
    assert "/usr/local/bin" in LOGIN_PATH


def test_runs_without_root() -> None:
    *_, user = dockerfile.those("USER")
    assert user.text == "1000:1000"
    [made] = [each.text for each in dockerfile.those("RUN") if "useradd" in each.text]
    assert "groupadd --gid 1000 ray" in made
    assert "useradd --uid 1000 --gid 1000 --create-home --shell /bin/bash ray" in made
    # Nothing that needs root comes after it.
    order = [each.name for each in dockerfile.instructions()]
    assert "RUN" not in order[order.index("USER") :]
    assert dockerfile.environment()["HOME"] == "/home/ray"


def test_has_the_programs_that_ray_up_calls_in_it() -> None:
    [installed] = [each.words for each in dockerfile.those("RUN") if "apt-get" in each.text]
    assert {"openssh-client", "rsync"} <= set(installed)


@pytest.mark.parametrize("name", dockerfile.environment())
def test_somebody_reads_each_variable(name: str) -> None:
    assert is_read(name)


@pytest.mark.parametrize("name", ["RAY_SERVE_ENABLE_HAPROXY", "RAY_health_check_periods_ms", "RETINA_RAY_COMIT"])
def test_a_variable_that_nobody_reads_is_found(name: str) -> None:
    assert not is_read(name)


def test_a_cluster_serves_with_the_settings_of_one_machine() -> None:
    there, ours = serve_environment("/folder"), dockerfile.environment()
    # Where HAProxy's files and ports are is the cluster's own business, and so is how long load balancers take to hear.
    elsewhere = {name for name, value in there.items() if "/folder" in value or name.endswith("_PORT")}
    elsewhere |= {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S"}
    assert {name: value for name, value in there.items() if name not in elsewhere}.items() <= ours.items()
    assert elsewhere.isdisjoint(ours)
    assert ours["RAY_AUTH_MODE"] == "token"


def test_its_command_is_ours() -> None:
    [command] = dockerfile.those("CMD")
    assert command.words == [*PROJECT["project"]["scripts"], "--help"]


@contextmanager
def answering(status: int) -> Iterator[int]:
    """Run a server that answers everything with a status, and yield its port."""

    class Answer(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status if self.path in PUBLIC_EXACT_PATHS else 401)
            self.end_headers()

        def log_message(self, *_: object) -> None: ...

    with HTTPServer(("127.0.0.1", 0), Answer) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield server.server_port
        finally:
            server.shutdown()
            thread.join()


def health(port: int) -> int:
    """Run the image's health check, of a node whose agent is at another port."""
    [check] = dockerfile.those("HEALTHCHECK")
    words = check.text.partition("CMD ")[2]
    usual = str(ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT)
    assert usual in words
    program = dockerfile.Instruction("CMD", words.replace(usual, str(port))).words
    assert program[0] == "python"
    return subprocess.run([sys.executable, *program[1:]], capture_output=True, timeout=30).returncode


def test_the_health_check_tells_a_node_that_lives_from_others() -> None:
    with answering(200) as port:
        assert health(port) == 0
    assert health(port) != 0, "nobody listens any more"
    with answering(503) as port:
        assert health(port) != 0
