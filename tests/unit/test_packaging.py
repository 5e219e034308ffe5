"""What an installer sees: metadata, licence, lock, and the Makefile's first contact."""

import ast
import hashlib
import importlib.util
import os
import re
import shutil
import subprocess
import sys
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from setuptools import find_packages

ROOT = Path(__file__).resolve().parents[2]
PYPROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
PROJECT = PYPROJECT["project"]
LOCK = (ROOT / "requirements.lock").read_text()
# One entry: `name==version [; marker] \`, then indented lines with its hashes.
ENTRY = re.compile(r"^(?P<name>[a-z0-9-]+)(?:\[[^]]*\])?==(?P<version>\S+)(?P<rest>.*\n(?:[ \t]+.*\n)*)", re.MULTILINE)


def canonical(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def requirements() -> list[Requirement]:
    wanted = [
        *PROJECT["dependencies"],
        *PROJECT["optional-dependencies"]["dev"],
        *PYPROJECT["build-system"]["requires"],
    ]
    return [Requirement(text) for text in wanted]


def test_supports_exactly_python_3_11_and_3_12() -> None:
    supported = SpecifierSet(PROJECT["requires-python"])
    accepted = [minor for minor in range(9, 16) if f"3.{minor}.1" in supported]
    assert accepted == [11, 12]
    named = [line.rpartition(" ")[2] for line in PROJECT["classifiers"] if "Python :: 3." in line]
    assert named == ["3.11", "3.12"]


@pytest.mark.parametrize("target", PROJECT["scripts"].values())
def test_each_script_has_its_function(target: str) -> None:
    module, _, function = target.partition(":")
    spec = importlib.util.find_spec(module)
    assert spec is not None
    assert spec.origin is not None
    body = ast.parse(Path(spec.origin).read_text()).body
    assert function in {node.name for node in body if isinstance(node, ast.FunctionDef)}


def test_every_package_is_installed() -> None:
    include = PYPROJECT["tool"]["setuptools"]["packages"]["find"]["include"]
    roots = ("retina_ray", "tune_spaces", "serve_apps")
    folders = {file.parent.relative_to(ROOT) for root in roots for file in (ROOT / root).rglob("*.py")}
    assert set(find_packages(str(ROOT), include=include)) == {".".join(folder.parts) for folder in folders}


def test_development_tools_are_no_runtime_dependency() -> None:
    runtime = {canonical(Requirement(text).name) for text in PROJECT["dependencies"]}
    tools = {canonical(Requirement(text).name) for text in PROJECT["optional-dependencies"]["dev"]}
    assert not runtime & tools


def test_license_is_the_text_of_apache_2() -> None:
    text = (ROOT / "LICENSE").read_bytes()
    assert PROJECT["license"] == "Apache-2.0"
    assert PROJECT["license-files"] == ["LICENSE"]
    assert text.split(b"\n")[1].strip() == b"Apache License"
    # Of the text as the Apache Software Foundation publishes it.
    assert hashlib.sha256(text).hexdigest() == "cfc7749b96f63bd31c3c42b5c471bf756814053e847c10f3eb003417bc523d30"


@pytest.mark.parametrize("requirement", requirements(), ids=str)
def test_lock_satisfies(requirement: Requirement) -> None:
    entries = [entry for entry in ENTRY.finditer(LOCK) if entry["name"] == canonical(requirement.name)]
    assert entries, "run `make lock`"
    for entry in entries:
        assert entry["version"] in requirement.specifier, "run `make lock`"


def test_every_locked_package_has_a_hash() -> None:
    entries = list(ENTRY.finditer(LOCK))
    assert len(entries) == len(re.findall(r"^[a-z0-9]", LOCK, re.MULTILINE))
    assert not [entry["name"] for entry in entries if "--hash=sha256:" not in entry["rest"]]


def test_lock_names_no_index() -> None:
    assert not re.findall(r"--(?:extra-)?index-url|--find-links|https?://|^-i\b|^-f\b", LOCK, re.MULTILINE)


def make(*arguments: str, **environment: str) -> subprocess.CompletedProcess[str]:
    command = [str(shutil.which("make")), "-s", *arguments]
    return subprocess.run(
        command, cwd=ROOT, env={**os.environ, **environment}, capture_output=True, text=True, timeout=30
    )


@pytest.mark.parametrize("arguments", [[], ["help"]], ids=["default", "help"])
def test_makefile_lists_its_targets(arguments: list[str]) -> None:
    phony = re.search(r"^\.PHONY: (.*)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert phony is not None
    done = make(*arguments)
    assert done.returncode == 0, done.stderr
    assert {line.split()[0] for line in done.stdout.splitlines()} == set(phony[1].split())


PRETENDED_VERSION = """#!/bin/sh
exec {python} -c "import collections, sys
sys.version_info = collections.namedtuple('Version', 'major minor')(3, {minor})
$2"
"""
WITHOUT_ENSUREPIP = """#!/bin/sh
case "$2" in *ensurepip*) exit 1 ;; esac
"""


@pytest.mark.parametrize(
    ("python", "says"),
    [
        (None, "no snake on PATH"),
        (PRETENDED_VERSION.format(python=sys.executable, minor=10), "but snake is 3.10"),
        (PRETENDED_VERSION.format(python=sys.executable, minor=13), "but snake is 3.13"),
        (WITHOUT_ENSUREPIP, "apt-get install python3-venv"),
    ],
    ids=["no python", "too old", "too new", "no ensurepip"],
)
def test_make_venv_names_what_is_missing(tmp_path: Path, python: str | None, says: str) -> None:
    if python is not None:
        (tmp_path / "snake").write_text(python)
        (tmp_path / "snake").chmod(0o755)
    venv = tmp_path / "venv"
    # Nothing else is on PATH, so neither is uv.
    done = make("venv", "PYTHON=snake", f"VENV={venv}", PATH=str(tmp_path))
    assert done.returncode != 0
    assert says in done.stderr
    assert not venv.exists()
