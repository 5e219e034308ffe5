"""The rules that tests/conftest.py sets for all tests, proved on a small tree of its own."""

import os
import shutil
import subprocess
import sys
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]
FOLDERS = {"unit", "s3", "papers", "distributed", "ray", "serving", "cluster", "gpu", "e2e"}


ONE_TEST = """
def test_carries_its_folder_as_marker(request):
    assert request.node.get_closest_marker(request.path.parent.name)
"""
TORCH_WITHOUT_GPU = """
class cuda:
    is_available = staticmethod(lambda: False)

def manual_seed(seed):
    pass
"""


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    """A repository with our configuration and conftest, one test per folder, and a torch that sees no GPU."""
    for file in ("pyproject.toml", "tests/conftest.py"):
        (tmp_path / file).parent.mkdir(exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    for folder in FOLDERS:
        (tmp_path / "tests" / folder).mkdir()
        (tmp_path / "tests" / folder / "test_one.py").write_text(ONE_TEST)
    (tmp_path / "torch.py").write_text(TORCH_WITHOUT_GPU)
    return tmp_path


def run_without_skips(tree: Path) -> tuple[int, str]:
    """Run all tests of the tree as continuous integration does; return the exit status and the output."""
    command = [sys.executable, "-m", "pytest", "-p", "no:cacheprovider"]
    environment = {**os.environ, "RETINA_RAY_FORBID_SKIPS": "1"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    return done.returncode, done.stdout


def test_every_folder_of_tests_has_a_marker(pytestconfig: pytest.Config) -> None:
    folders = {file.relative_to(ROOT / "tests").parts[0] for file in (ROOT / "tests").rglob("test_*.py")}
    assert folders <= FOLDERS
    assert {line.partition(":")[0] for line in pytestconfig.getini("markers")} >= FOLDERS | {"long"}


def test_a_warning_is_an_error() -> None:
    with pytest.raises(UserWarning, match="beware"):
        warnings.warn("beware", stacklevel=1)


def test_folders_are_markers_and_gpu_tests_may_skip(tree: Path) -> None:
    status, output = run_without_skips(tree)
    assert status == 0, output
    assert f"{len(FOLDERS) - 1} passed, 1 skipped" in output
    assert "no CUDA device" in output


SKIPS = """
import pytest

@pytest.fixture
def unavailable():
    pytest.skip("no such thing here")

def test_by_a_fixture(unavailable):
    pass

@pytest.mark.xfail(reason="known")
def test_known_to_fail():
    raise AssertionError
"""
SKIPPED_MODULE = "import pytest\npytest.importorskip('a_module_nobody_has')\n"


def test_a_skip_elsewhere_fails_the_run(tree: Path) -> None:
    (tree / "tests" / "unit" / "test_skips.py").write_text(SKIPS)
    (tree / "tests" / "e2e" / "test_module.py").write_text(SKIPPED_MODULE)
    status, output = run_without_skips(tree)
    assert status == 1, output
    listed = output.partition("which RETINA_RAY_FORBID_SKIPS=1 forbids")[2].partition("short test summary")[0]
    assert "tests/unit/test_skips.py::test_by_a_fixture: Skipped: no such thing here" in listed
    assert "tests/e2e/test_module.py: Skipped: could not import 'a_module_nobody_has'" in listed
    assert "test_known_to_fail" not in listed
    assert "tests/gpu" not in listed
