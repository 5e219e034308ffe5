"""Who may import whom, and the hygiene of every file. Reads sources, runs none of them but two bare imports.

RANKS is the one place that states the layers; imports inside functions count like any other.
"""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

# A unit may import units of its own rank and of lower ranks.
RANKS = {
    "retina_ray": 0,
    "retina_ray.errors": 0,
    "retina_ray.provenance": 0,
    "retina_ray.yaml_dialect": 0,
    "retina_ray.config": 1,
    "retina_ray.config_method": 1,
    "retina_ray.config_reference": 1,
    "retina_ray.config_runtime": 1,
    "retina_ray.config_section": 1,
    "retina_ray.recipes": 1,
    "retina_ray.recipes_deepmt": 1,
    "retina_ray.models": 2,
    "retina_ray.losses": 2,
    "retina_ray.metrics": 2,
    "retina_ray.explain": 2,
    "retina_ray.data": 2,
    "retina_ray.methods": 3,
    "retina_ray.search": 4,
    "retina_ray.training": 4,
    "retina_ray.serving": 4,
    "retina_ray.client": 4,
    "retina_ray.client_transport": 4,
    "retina_ray.report": 4,
    "retina_ray.reproduce": 4,
    "retina_ray.bundle": 4,
    "retina_ray.bundle_manifest": 4,
    "retina_ray.bundle_statistics": 4,
    "retina_ray.card": 4,
    "retina_ray.mlflow_access": 4,
    "retina_ray.model_versions": 4,
    "retina_ray.promotion": 4,
    "retina_ray.registry": 4,
    "tune_spaces": 4,
    "retina_ray.orchestration": 5,
    "retina_ray.cli": 6,
    "retina_ray.__main__": 6,
    "serve_apps": 6,
    "benchmarks": 6,
}
PURE = {"retina_ray.models", "retina_ray.losses", "retina_ray.metrics"}
PURE_MAY_NOT = PURE | {"retina_ray.config", "retina_ray.recipes", "retina_ray.data"}
RAY = {"retina_ray.orchestration", "serve_apps", "benchmarks", "tests"}
DALI = {"retina_ray.data.dali_loader"}
CLIENT = {"retina_ray.client", "retina_ray.client_transport"}
NETWORK_LIBRARIES = {"torch", "torchvision", "jaxtyping", "safetensors"}


@cache
def files() -> tuple[Path, ...]:
    """Every file that is tracked or would be, relative to the root."""
    command = ["git", "-c", "safe.directory=*", "ls-files", "-co", "--exclude-standard", "-z"]
    listing = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout
    return tuple(Path(name) for name in sorted(set(listing.split("\0"))) if name and (ROOT / name).is_file())


@cache
def text_of(file: Path) -> str | None:
    try:
        return (ROOT / file).read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return None


def module_of(file: Path) -> str:
    parts = file.with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def unit_of(module: str) -> str:
    """`retina_ray.data.order` -> `retina_ray.data`; `serve_apps.grade` -> `serve_apps`."""
    parts = module.split(".")
    return ".".join(parts[:2]) if parts[0] == "retina_ray" else parts[0]


def ours(module: str) -> bool:
    return module.split(".")[0] in {"retina_ray", "tune_spaces", "serve_apps", "benchmarks"}


def below(module: str, package: str) -> bool:
    return module == package or module.startswith(package + ".")


def imports_in(tree: ast.AST) -> Iterator[tuple[int, str]]:
    """Every imported module with its line; `from a import b` counts as `a.b`, which is right for both uses of it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            prefix = "." * node.level + (node.module or "")
            yield from ((node.lineno, f"{prefix}.{alias.name}") for alias in node.names)
        elif isinstance(node, ast.Call) and ast.unparse(node.func) in {
            "__import__",
            "import_module",
            "importlib.import_module",
            "pytest.importorskip",
        }:
            names = [arg.value for arg in node.args[:1] if isinstance(arg, ast.Constant)]
            yield from ((node.lineno, str(name)) for name in names)


def violations(importer: str, imported: str) -> Iterator[str]:
    """The rules that `importer` breaks by importing `imported` (both dotted module names)."""
    unit, other = unit_of(importer), unit_of(imported)
    if imported.startswith("."):
        yield "relative imports hide the layer"
    if below(imported, "ray") and not any(below(importer, place) for place in RAY):
        yield "ray belongs to orchestration, serve_apps and benchmarks"
    if below(imported, "nvidia") and importer not in DALI and unit != "benchmarks":
        yield "nvidia.dali belongs to data/dali_loader.py and benchmarks"
    if unit in {"retina_ray.client", "retina_ray.client_transport"} and imported.split(".")[0] in {
        "torch",
        "torchvision",
    }:
        yield "the client runs without torch"
    if unit in {"retina_ray.models", "retina_ray.losses"}:
        library = imported.split(".")[0]
        if library not in sys.stdlib_module_names and not ours(imported) and library not in NETWORK_LIBRARIES:
            yield "networks and losses are plain torch and torchvision"
    if not ours(imported) or unit == "tests" or other == unit:
        return
    if unit not in RANKS:
        yield f"{unit} has no layer"
    elif unit == "tune_spaces":
        yield "search spaces import nothing of ours"
    elif other not in RANKS:
        yield f"{other} has no layer"
    elif RANKS[other] > RANKS[unit]:
        yield f"{unit} lies below {other}"
    if unit in PURE and other in PURE_MAY_NOT:
        yield f"{unit} stands alone"


def python_files() -> list[Path]:
    return [file for file in files() if file.suffix == ".py"]


def test_imports_respect_the_layers() -> None:
    broken = []
    for file in python_files():
        tree = ast.parse(text_of(file) or "", filename=str(file))
        for line, imported in imports_in(tree):
            broken += [f"{file}:{line}: {imported}: {rule}" for rule in violations(module_of(file), imported)]
    assert not broken, "\n".join(broken)


def test_every_unit_has_a_layer() -> None:
    product = {unit_of(module_of(file)) for file in python_files() if ours(module_of(file))}
    assert product <= RANKS.keys(), f"give these a rank: {sorted(product - RANKS.keys())}"


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("retina_ray.training.loop", "def f():\n    import ray.train"),
        ("retina_ray.serving.predictor", "from ray import serve"),
        ("retina_ray.client", "import torch"),
        ("retina_ray.data.loader", "import nvidia.dali.fn as fn"),
        ("retina_ray.data.loader", "import importlib\nimportlib.import_module('nvidia.dali')"),
        ("retina_ray.models.sall", "from retina_ray.losses.sall import cross_entropy"),
        ("retina_ray.metrics.grading", "from retina_ray import config"),
        ("retina_ray.losses.sall", "from retina_ray.recipes import RECIPES"),
        ("retina_ray.models.sall", "import timm"),
        ("retina_ray.data.order", "from retina_ray.training.world import World"),
        ("retina_ray.config", "from retina_ray.data.schema import Task"),
        ("retina_ray.registry", "from retina_ray.orchestration import jobs"),
        ("retina_ray.orchestration.jobs", "from retina_ray.cli.main import main"),
        ("retina_ray.errors", "import retina_ray.config"),
        ("retina_ray.novelty", "import retina_ray.errors"),
        ("tune_spaces.sall", "from retina_ray.config import Config"),
        ("retina_ray.data.order", "from . import shards"),
    ],
)
def test_a_forbidden_import_is_found(importer: str, source: str) -> None:
    found = [rule for _, name in imports_in(ast.parse(source)) for rule in violations(importer, name)]
    assert len(found) == 1, found


@pytest.mark.parametrize(
    ("importer", "source"),
    [
        ("retina_ray.orchestration.jobs", "import ray"),
        ("serve_apps.grade", "from ray import serve\nfrom retina_ray.serving.predictor import Predictor"),
        ("retina_ray.data.dali_loader", "from nvidia.dali import fn"),
        ("retina_ray.models.sall", "from retina_ray.models.backbones import resnet50\nimport torchvision, math"),
        ("retina_ray.methods.sall", "from retina_ray.losses import sall\nfrom retina_ray.errors import ConfigError"),
        ("retina_ray.report.tables", "import arrayfire, rayleigh"),
        ("tests.ray.test_jobs", "import ray\nfrom retina_ray.orchestration import jobs"),
    ],
)
def test_a_rightful_import_passes(importer: str, source: str) -> None:
    assert not [rule for _, name in imports_in(ast.parse(source)) for rule in violations(importer, name)]


def loaded_by(module: str) -> tuple[float, set[str]]:
    """Seconds that the import of `module` takes in a fresh interpreter, and the top-level modules it loads."""
    program = (
        f"import sys, time; start = time.perf_counter(); import {module}; seconds = time.perf_counter() - start\n"
        "print(seconds, *{name.partition('.')[0] for name in sys.modules})"
    )
    command = [sys.executable, "-c", program]
    seconds, *names = subprocess.run(command, cwd=ROOT, check=True, capture_output=True, text=True).stdout.split()
    return float(seconds), set(names)


def test_the_package_itself_imports_nothing() -> None:
    seconds, loaded = loaded_by("retina_ray")
    assert not loaded & {"torch", "ray", "numpy", "pydantic"}
    assert seconds < 0.5


def test_the_client_loads_neither_torch_nor_ray() -> None:
    if Path("retina_ray/client.py") in files():
        assert not loaded_by("retina_ray.client")[1] & {"torch", "ray"}


# Brackets and backslashes keep these patterns from matching themselves.
FORBIDDEN_TEXT = {
    "a task for later without a link": re.compile(r"\b(?:TO[D]O|FIX[M]E)\b(?!.*https?://)"),
    "an index host": re.compile(r"\bpypi\.\w|\bpythonhosted\.|download\.pytorch\.org/whl"),
    "a path of one machine": re.compile(r"(?<![\w.{}])/wor[k](?![\w-])"),
}


def test_no_text_that_must_not_ship() -> None:
    broken = [
        f"{file}:{number}: {what}: {line.strip()[:100]}"
        for file in files()
        for number, line in enumerate((text_of(file) or "").splitlines(), start=1)
        for what, pattern in FORBIDDEN_TEXT.items()
        if pattern.search(line)
    ]
    assert not broken, "\n".join(broken)


@pytest.mark.parametrize(
    "line",
    ["# TO" + "DO: later", "--index-url https://pypi" + ".org/simple", "open('/wor" + "k/data')", "cd /wor" + "k"],
)
def test_text_that_must_not_ship_is_found(line: str) -> None:
    assert [what for what, pattern in FORBIDDEN_TEXT.items() if pattern.search(line)]


LINE_BUDGETS = {"retina_ray/training/step.py": 60, "retina_ray/training/loop.py": 150}
"""Files that a reader of the training reads whole."""


def test_no_file_is_two_ideas() -> None:
    lines = {str(file): (text_of(file) or "").count("\n") for file in python_files()}
    assert lines.keys() >= LINE_BUDGETS.keys()
    long = {file: count for file, count in lines.items() if count > LINE_BUDGETS.get(file, 400)}
    assert not long, f"more lines than a file of one idea has: {long}"
