"""What every test shares: the environment, markers by folder, seeds, shared data, one Ray cluster.

Runtime shape checks are switched on here and nowhere else: the hook below must stand before the first import of
retina_ray. Skips are allowed in tests/gpu alone; with RETINA_RAY_FORBID_SKIPS=1 any other skip fails the run.
"""

import atexit
import logging
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import hypothesis
import numpy as np
import pytest
from jaxtyping import install_import_hook

install_import_hook(["retina_ray.losses", "retina_ray.models", "retina_ray.explain"], "beartype.beartype")

TESTS = Path(__file__).parent
ROOT = TESTS.parent

# Short, since Ray puts unix sockets below it (107 bytes); private, since two clusters on one host disturb each other.
SESSION_DIR = tempfile.mkdtemp(prefix="rr", dir="/tmp")
atexit.register(shutil.rmtree, SESSION_DIR, ignore_errors=True)

for ambient in ("AWS_PROFILE", "RAY_ADDRESS", "RAY_API_SERVER_ADDRESS"):
    os.environ.pop(ambient, None)
os.environ.update(
    AWS_EC2_METADATA_DISABLED="true",
    MLFLOW_TRACKING_URI=f"sqlite:///{SESSION_DIR}/mlflow.db",
    MPLBACKEND="Agg",
    OMP_NUM_THREADS="1",  # here and in every process that a test starts: the nets are too small to share
    RAY_AUTH_MODE="disabled",
    RAY_TMPDIR=SESSION_DIR,
    RAY_USAGE_STATS_ENABLED="0",
)

hypothesis.settings.register_profile("deterministic", derandomize=True, deadline=None, database=None)
hypothesis.settings.load_profile("deterministic")


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """Mark each test with the name of its folder (strict markers refuse a folder without one)."""
    for item in items:
        folder = item.path.relative_to(TESTS).parts[0]
        item.add_marker(folder)
        if folder == "gpu" and not _cuda():
            item.add_marker(pytest.mark.skip(reason="no CUDA device"))


@cache
def _cuda() -> bool:
    import torch  # seconds, which a run without these tests need not spend

    return torch.cuda.is_available()


def _forbidden_skips(config: pytest.Config) -> list[pytest.TestReport | pytest.CollectReport]:
    """Return the skipped reports outside tests/gpu where skips are forbidden (an xfail is no skip)."""
    reporter = config.pluginmanager.get_plugin("terminalreporter")
    if os.environ.get("RETINA_RAY_FORBID_SKIPS") != "1" or reporter is None:
        return []
    return [report for report in reporter.stats.get("skipped", []) if not report.nodeid.startswith("tests/gpu/")]


def pytest_sessionfinish(session: pytest.Session) -> None:
    if session.exitstatus in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED) and _forbidden_skips(
        session.config
    ):
        session.exitstatus = pytest.ExitCode.TESTS_FAILED


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    if reports := _forbidden_skips(config):
        terminalreporter.section("skipped outside tests/gpu, which RETINA_RAY_FORBID_SKIPS=1 forbids", red=True)
        for report in reports:
            reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
            terminalreporter.line(f"{report.nodeid}: {reason}")


@pytest.fixture(autouse=True)
def _seeded() -> None:
    random.seed(0)
    np.random.seed(0)
    if "torch" in sys.modules:
        sys.modules["torch"].manual_seed(0)


@pytest.fixture(scope="session")
def shared_dir() -> Path:
    """The folder of data and papers that lies beside the repository."""
    folder = ROOT.parent / "shared"
    if not folder.is_dir():
        pytest.skip(f"needs the folder {folder} beside the repository")
    return folder


@pytest.fixture(scope="session")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A data set of two diseases, as small as they come, which tests read and leave as it is."""
    from tests.helpers import write_dataset

    folder = tmp_path_factory.mktemp("data")
    write_dataset(folder)
    return folder


@pytest.fixture(scope="module")
def storage(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    """A folder for the runs of a file's tests, which may build on each other; networks fill disks, so it goes away."""
    folder = tmp_path_factory.mktemp("storage")
    yield folder
    shutil.rmtree(folder, ignore_errors=True)


@pytest.fixture(scope="module", params=[0, pytest.param(2, marks=pytest.mark.long)], ids=["here", "on Ray"])
def workers(request: pytest.FixtureRequest) -> int:
    """Number of Ray workers: 0, which is one process, and in the long tests 2."""
    return int(request.param)


@pytest.fixture(scope="session")
def ray_cluster() -> Iterator[None]:
    """One local Ray with four pretended CPUs for the whole session."""
    import ray

    def start() -> None:
        ray.init(
            address="local",
            num_cpus=4,
            include_dashboard=False,
            log_to_driver=False,
            logging_level=logging.ERROR,
            object_store_memory=200 * 2**20,
        )

    try:
        start()
    except Exception:
        # A raylet gives its agent a fixed 15 s to start, too little on a busy machine with cold disks; the second
        # start finds the files cached. https://github.com/ray-project/ray/issues/65983
        ray.shutdown()
        start()
    yield
    ray.shutdown()
