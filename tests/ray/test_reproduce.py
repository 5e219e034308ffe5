"""A paper's table through Ray Tune: the same numbers as without it, each artifact trained once, whatever dies."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from retina_ray.config import RunConfig, override
from retina_ray.errors import RetinaRayError
from retina_ray.orchestration.reproduce_driver import Options, reproduce
from retina_ray.orchestration.reproduce_grid import GridOptions
from retina_ray.reproduce.budget import base_of, draw_data
from retina_ray.reproduce.catalogue import find
from retina_ray.reproduce.experiment import Method
from tests.helpers import descendants

pytestmark = [pytest.mark.timeout(600), pytest.mark.usefixtures("ray_cluster")]


def a_config(method: Method, drawn: Path, storage: Path, name: str) -> RunConfig:
    return override(
        base_of(method, "debug"),
        {
            **draw_data(name, method, str(drawn)),
            "name": name,
            "runtime.storage": str(storage),
        },
    )


@pytest.fixture(scope="module")
def drawn(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("drawn")


def table(name: str, config: RunConfig, *, tune: bool, seeds: int = 1) -> str:
    options = Options("debug", seeds=seeds, folds=0, grid=GridOptions(tune=tune, concurrent=2))
    done = reproduce(find(name), config, options)
    return Path(done.files["table.csv"]).read_text(encoding="utf-8")


@pytest.mark.parametrize(("method", "name"), [("sall", "sall-figure7"), ("deepmt", "deepmt-table4")])
def test_ray_tune_comes_to_the_same_table(method: Method, name: str, drawn: Path, tmp_path: Path) -> None:
    through = table(name, a_config(method, drawn, tmp_path / "tune", name), tune=True, seeds=2)
    plain = table(name, a_config(method, drawn, tmp_path / "here", name), tune=False, seeds=2)
    assert through == plain
    assert sum(bool(line.split(",")[3]) for line in through.splitlines()[1:]) >= 2


def test_teachers_are_trained_once_for_all_rows(drawn: Path, tmp_path: Path) -> None:
    table("sall-table5", a_config("sall", drawn, tmp_path, "labels"), tune=True)
    stages = sorted(path.name.partition("-")[0] for path in (tmp_path / "artifacts").iterdir())
    # Two teachers and their cross labels for both temperatures, and no student.
    assert stages == ["label", "train", "train"]


def is_trial(process: int) -> bool:
    with suppress(OSError):
        return Path(f"/proc/{process}/cmdline").read_bytes().startswith(b"ray::ImplicitFunc")
    return False


@contextmanager
def first_trial_killed() -> Iterator[list[int]]:
    """Kill the process of the first trial that trains, once."""
    killed: list[int] = []
    over = threading.Event()

    def look() -> None:
        while not killed and not over.wait(0.02):
            for process in filter(is_trial, descendants(os.getpid())):
                os.kill(process, signal.SIGKILL)
                killed.append(process)
                return

    thread = threading.Thread(target=look)
    thread.start()
    try:
        yield killed
    finally:
        over.set()
        thread.join()


def test_a_run_whose_process_is_killed_runs_again(drawn: Path, tmp_path: Path) -> None:
    with first_trial_killed() as killed:
        found = table("sall-figure7", a_config("sall", drawn, tmp_path, "killed"), tune=True)
    assert killed
    assert "SALL,DR acc" in found


def test_a_run_that_cannot_be_is_named_and_the_others_are_kept(drawn: Path, tmp_path: Path) -> None:
    config = a_config("sall", drawn, tmp_path, "broken")
    table("sall-figure7", config, tune=False)
    logits = next((tmp_path / "artifacts").glob("label-*/logits.safetensors"))
    logits.write_bytes(b"rotten")
    with pytest.raises(RetinaRayError, match=r"of 9 runs failed, first broken\..*damaged"):
        table("sall-table3", config, tune=True)
    finished = {path.parent.name for path in tmp_path.glob("broken.*/predictions.parquet")}
    assert "broken.T1-nosa-nomt.s0" in finished
