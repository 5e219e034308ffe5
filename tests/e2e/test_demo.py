"""`retina-ray demo` in a folder of its own, and what can be done with its result.

Training in one process; among the long tests on two Ray workers as well, as a newcomer runs it.
"""

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from retina_ray.cli.main import run

ROOT = Path(__file__).resolve().parents[2]
QUICK = (
    "train.epochs=1 train.batch_norm_momentum=0.9 data.image_size=32 evaluate.bootstrap=20 "
    "method.backbone=shufflenet_v2_x0_5"
)


def retina_ray(folder: Path, *arguments: str) -> str:
    """Run a command in a folder; return its standard output."""
    code = "from retina_ray.cli.main import main; main()"
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments],
        cwd=folder,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def desk(workers: int, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp(f"desk-{workers}")


@pytest.fixture(scope="module")
def settings(workers: int) -> list[str]:
    values = QUICK.split() if workers == 2 else [*QUICK.split(), f"runtime.workers={workers}"]
    return [part for value in values for part in ("--set", value)]


@pytest.fixture(scope="module")
def printed(desk: Path, settings: list[str]) -> str:
    """What the demo prints."""
    return retina_ray(desk, "demo", "--images-per-task", "40", "--trials", "2", *settings)


Read = Callable[..., Any]


@pytest.fixture
def read(
    workers: int, request: pytest.FixtureRequest, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> Read:
    """Run a command in a folder; return what it prints for programs.

    In this process and on the session's Ray, which is quicker, unless workers train: a search needs a dashboard then.
    """
    if workers:
        return lambda folder, *arguments: json.loads(retina_ray(folder, *arguments, "--json"))
    request.getfixturevalue("ray_cluster")

    def run_and_read(folder: Path, *arguments: str) -> Any:
        monkeypatch.chdir(folder)
        capsys.readouterr()
        assert run([*arguments, "--json"]) == 0
        return json.loads(capsys.readouterr().out)

    return run_and_read


@pytest.mark.timeout(900)
def test_the_demo_ends_with_a_table_a_report_a_bundle_and_a_graded_photograph(
    desk: Path, printed: str, workers: int
) -> None:
    for word in ("single task", "sall", "accuracy", "confidence", "error", "dr", "amd", "drawn as 4", "took"):
        assert word in printed, word
    folder = desk / "demo/runs/demo"
    assert str(folder / "report.html") in printed
    assert "<html" in (folder / "report.html").read_text(encoding="utf-8")
    assert (folder / "bundle/model.safetensors").is_file()
    described = json.loads((folder / "run.json").read_text())
    assert described["finished"]
    assert {stage["workers"] for stage in described["stages"].values()} == {max(1, workers)}
    stages = {json.loads(line)["stage"] for line in (folder / "history.jsonl").read_text().splitlines()}
    assert stages == {"teacher-dr", "teacher-amd", "student-dr-amd"}
    search = desk / "demo/runs/demo-search"
    assert str(search / "report.html") in printed
    assert "served    http://127.0.0.1:" in printed
    trials = [json.loads(file.read_text()) for file in sorted((search / "trials").iterdir())]
    assert [trial["state"] for trial in trials] == ["complete", "complete"]
    assert set(trials[0]["stages"].values()) == {"reused"}, "the first trial is the run itself"
    assert [name for name, how in trials[1]["stages"].items() if how == "trained"] == ["student-dr-amd"]


@pytest.mark.long  # it serves once more
@pytest.mark.timeout(900)
def test_a_demo_that_is_run_again_trains_nothing(desk: Path, printed: str, settings: list[str], read: Read) -> None:
    before = {file: file.stat().st_mtime_ns for file in desk.glob("demo/runs/artifacts/*/*.safetensors")}
    again = read(desk, "demo", "--images-per-task", "40", "--trials", "2", *settings)
    assert len(before) == 5, "two teachers, their labels, the student of the run, and that of the second trial"
    assert again["search"] == str(desk / "demo/runs/demo-search")
    assert {file: file.stat().st_mtime_ns for file in before} == before
    assert again["bundle"] == str(desk / "demo/runs/demo/bundle")
    assert {(row["model"], row["task"]) for row in again["metrics"]} == {
        (model, task) for model in ("single_task", "sall") for task in ("dr", "amd")
    }
    assert again["prediction"]["tasks"].keys() == {"dr", "amd"}


@pytest.mark.timeout(900)
def test_a_run_is_resumed_from_another_folder_and_read_by_programs(
    desk: Path, printed: str, tmp_path: Path, read: Read
) -> None:
    first = str(desk / "demo/runs/demo")
    resumed = read(tmp_path, "train", "--config", f"{first}/config.yaml", "--resume")
    evaluated = read(tmp_path, "evaluate", first)
    reached = {(row["model"], row["task"]): row["accuracy"] for row in resumed["metrics"]}
    assert reached == {(row["model"], row["task"]): row["accuracy"] for row in evaluated}
    registered = read(tmp_path, "models", "list", "--storage", str(desk / "demo/runs"))
    newest, model = (version for version in registered if str(desk) in version["source"])
    assert model["version"] == resumed["model_version"]
    assert "candidate" in newest["aliases"]
    answer = read(tmp_path, "predict", f"{first}/bundle", str(desk / "demo/photograph.jpg"))
    (graded,) = answer.values()
    assert graded["tasks"].keys() == {"dr", "amd"}
