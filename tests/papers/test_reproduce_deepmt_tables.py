"""Every table of DeepMT-DR at the debug budget, from its name to its files."""

import csv
import json
from pathlib import Path

import pytest

from retina_ray.cli.main import run
from retina_ray.reproduce.catalogue import EXPERIMENTS
from tests.reproducing import expect_all_files, reproduce


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("deepmt-table")])
def test_an_experiment_runs_from_its_name_to_its_files(
    name: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expect_all_files(name, storage, capsys)


def test_another_external_set_is_graded_by_the_same_networks(
    tmp_path: Path, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert reproduce("deepmt-table2", storage) == 0
    trained = {path: path.stat().st_mtime_ns for path in storage.glob("artifacts/*/artifact.json")}
    other = str(tmp_path / "other")
    assert run(["data", "synth", other, "--tasks", "dr", "--images-per-task", "26", "--size", "32", "--seed", "5"]) == 0
    assert reproduce("deepmt-table2", storage, "--external", other) == 0
    assert "0 of 4 runs (rows x seeds x folds) are there" in capsys.readouterr().err
    assert {path: path.stat().st_mtime_ns for path in storage.glob("artifacts/*/artifact.json")} == trained
    with (storage / "deepmt-table2-debug" / "table.csv").open() as file:
        assert {row["images"] for row in csv.DictReader(file) if row["mean"]} == {"26"}
    assert other in json.loads((storage / "deepmt-table2-debug" / "results.json").read_text())["data"]
