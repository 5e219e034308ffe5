"""Every table and figure of SALL at the debug budget, from its name to its files, and what the command refuses."""

import csv
import io
import shutil
from pathlib import Path

import pytest

from retina_ray.cli.main import run
from retina_ray.reproduce.catalogue import EXPERIMENTS
from tests.reproducing import expect_all_files, reproduce

pytestmark = pytest.mark.timeout(300)


@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if not name.startswith("deepmt")])
def test_an_experiment_runs_from_its_name_to_its_files(
    name: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expect_all_files(name, storage, capsys)


def test_what_is_finished_is_not_trained_again(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    def trained() -> dict[Path, int]:
        return {path: path.stat().st_mtime_ns for path in storage.glob("artifacts/*/artifact.json")}

    assert reproduce("sall-figure7", storage) == 0
    before, table = trained(), (storage / "sall-figure7-debug/table.csv").read_bytes()
    assert reproduce("sall-figure7", storage) == 0
    assert reproduce("sall-figure7", storage, "--name", "again") == 0
    assert trained() == before
    assert (
        (storage / "sall-figure7-debug/table.csv").read_bytes() == table == (storage / "again/table.csv").read_bytes()
    )
    assert "1 of 1 runs (rows x seeds x folds) are there" in capsys.readouterr().err


def test_seeds_and_folds_are_pooled(storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    more = ("--name", "folded", "--seeds", "2", "--folds", "3")
    assert reproduce("sall-figure7", storage, *more) == 0
    capsys.readouterr()
    rows = list(csv.DictReader(io.StringIO((storage / "folded/table.csv").read_text())))
    accuracy = [row for row in rows if row["figure"] == "DR acc"]
    assert {row["seeds"] for row in accuracy} == {"2"}
    assert {row["images"] for row in accuracy} == {"48"}, "every drawn DR image is tested once"
    assert all(float(row["low"]) <= float(row["mean"]) <= float(row["high"]) for row in accuracy)
    assert len(list(storage.glob("folded.T3-sa-mt.s*.f*/predictions.parquet"))) == 6


def test_sources_are_tested_on_what_they_grade(tmp_path: Path) -> None:
    parts = []
    for seed, (name, tasks) in enumerate({"first": "dr", "second": "dr", "third": "dr,amd"}.items()):
        parts.append(f"{name}={tmp_path / name}")
        draw = ["data", "synth", str(tmp_path / name), "--tasks", tasks, "--seed", str(seed)]
        assert run([*draw, "--images-per-task", "20", "--size", "32"]) == 0
    assert run(["data", "merge", *parts, str(tmp_path / "all")]) == 0
    more = ("--data", str(tmp_path / "all"), "--set", "method.tasks=[dr, amd]")
    assert reproduce("leave-one-source-out", tmp_path, *more) == 0
    text = (tmp_path / "leave-one-source-out-debug/table.csv").read_text()
    filled = {(row["Tested on"], row["figure"][:2]) for row in csv.DictReader(io.StringIO(text)) if row["mean"]}
    assert filled == {("first", "DR"), ("second", "DR")}
    assert "no other source grades amd" in (tmp_path / "leave-one-source-out-debug/table.md").read_text()


def test_runs_of_other_images_are_not_taken_for_these(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    data = tmp_path / "data"
    draw = ["data", "synth", str(data), "--tasks", "dr,amd", "--images-per-task", "20", "--size", "32"]
    assert run([*draw, "--seed", "1"]) == 0
    assert reproduce("sall-table5", tmp_path, "--data", str(data), "--set", "method.tasks=[dr, amd]") == 0
    shutil.rmtree(data)
    assert run([*draw, "--seed", "2"]) == 0
    assert reproduce("sall-table5", tmp_path, "--data", str(data), "--set", "method.tasks=[dr, amd]") == 2
    assert "has changed since this run" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["sall-tabel3"], "did you mean sall-table3"),
        (["sall-table3", "--external", "somewhere"], "takes no external data set"),
        (["sall-table8", "--set", "method.tasks=[dr, amd]", "--name", "two"], "takes 3 tasks, not 2"),
        (["deepmt-table2", "--folds", "3", "--name", "ext"], "leave it out"),
        (["sall-figure7", "--set", "train.epochs=2"], "other settings has this name: train.epochs: 1, now 2"),
        (["sall-table5", "--name", "sall-figure7-debug", "--storage", "/proc/nowhere"], "cannot be written to"),
        (["sall-figure7", "--name", "folded.T3-sa-mt.s0.f0"], "a run has this name"),
        (["sall-table3", "--budget", "large"], "large"),
    ],
)
def test_a_wrong_request_is_explained(
    arguments: list[str], message: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce(arguments[0], storage, *arguments[1:]) == 2
    assert message in capsys.readouterr().err


def test_a_data_set_is_asked_for(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reproduce", "sall-table3", "--storage", str(tmp_path)]) == 2
    assert "--data" in capsys.readouterr().err


def test_all_are_listed(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["reproduce", "list"]) == 0
    listed = capsys.readouterr().out
    assert all(name in listed for name in EXPERIMENTS)
    assert "Table III: with and without synergic labels" in listed
