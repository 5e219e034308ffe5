"""``retina-ray validate``: thresholds from validation images alone, pooled runs, bundles elsewhere, and its files."""

import csv
import io
import json
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pytest
from PIL import Image

from retina_ray.cli.main import run
from retina_ray.config import RunConfig, override, to_yaml
from retina_ray.data.shard_writer import Row, ShardWriter
from retina_ray.data.store import Store
from retina_ray.metrics.operating_points import decide_at_sensitivity, screening_figures
from retina_ray.metrics.referral import referral_curve
from retina_ray.metrics.subgroups import summarise_subgroups
from retina_ray.metrics.summary import summarise
from retina_ray.metrics.table import make_table, merge_shards, select
from retina_ray.orchestration.run_folder import BUNDLE, CONFIG, RunFolder
from tests.bundles import SIZE, TASKS, Made, make_everything, write_dataset

RESAMPLES = 8


def predictions(source: str, seed: int, *, images: int = 40, task: str = "dr", model: str = "sall") -> pa.Table:
    """Return a table whose first half validates and whose second half is the test, of patients with two images."""
    rng = np.random.default_rng(seed)
    truth = rng.integers(5, size=images)
    powers = np.exp(1.5 * rng.normal(size=(images, 5)) + np.eye(5)[truth])
    return make_table(
        powers / powers.sum(axis=1, keepdims=True),
        truth=truth,
        image_ids=[f"{source}/{index}" for index in range(images)],
        group_ids=[f"{source}/{index // 2}" for index in range(images)],
        sources=[source] * images,
        splits=["validation"] * (images // 2) + ["test"] * (images - images // 2),
        model=model,
        task=task,
    )


def write_run(folder: Path, table: pa.Table, *, data: str = "") -> str:
    store = RunFolder(Store(str(folder)))
    config = override(RunConfig(name=folder.name), {"evaluate.bootstrap": RESAMPLES, "data.path": data})
    store.store.write_bytes(CONFIG, to_yaml(config).encode())
    store.update(artifacts={})
    store.write_predictions(table)
    return str(folder)


@pytest.fixture
def runs(tmp_path: Path) -> list[str]:
    return [write_run(tmp_path / name, predictions(name, seed)) for seed, name in enumerate(("one", "two"))]


def validated(capsys: pytest.CaptureFixture[str], *arguments: str) -> dict[str, Any]:
    code = run(["validate", *arguments, "--json"])
    printed = capsys.readouterr()
    assert code == 0, printed.err
    return dict(json.loads(printed.out))


def refused(capsys: pytest.CaptureFixture[str], *arguments: str) -> str:
    code = run(["validate", *arguments])
    printed = capsys.readouterr()
    assert (code, printed.out) == (2, ""), printed.err
    (line,) = printed.err.strip().splitlines()
    return line


def test_runs_are_pooled_each_at_the_threshold_of_its_own_validation_images(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    found = validated(capsys, *runs, "--sensitivity", "0.8", "--sensitivity", "0.95", "--subgroup", "source")
    tables = [predictions(name, seed) for seed, name in enumerate(("one", "two"))]
    pairs = [
        tuple(select(table, model="sall", task="dr", split=split) for split in ("validation", "test"))
        for table in tables
    ]
    assert [(each["stated_sensitivity"], each["value"]) for each in found["operating_points"]] == [
        (sensitivity, value) for sensitivity in (0.8, 0.95) for value in ("", "one", "two")
    ]
    for sensitivity in (0.8, 0.95):
        decisions = decide_at_sensitivity(pairs, referable_from=2, sensitivity=sensitivity)
        own = [each for each in found["operating_points"] if each["stated_sensitivity"] == sensitivity]
        for each in own:
            rows = np.array([not each["value"] or name.startswith(each["value"]) for name in decisions.image_ids])
            figures = screening_figures(decisions, rows=rows, resamples=RESAMPLES, seed=0)
            assert each["thresholds"] == pytest.approx(decisions.thresholds)
            assert min(each["validation_sensitivity"]) >= sensitivity
            assert each["metrics"] == pytest.approx(figures.metrics)
            assert each["intervals"] == pytest.approx(
                {name: pytest.approx(interval) for name, interval in figures.intervals.items()}
            )
    pooled = merge_shards([table.filter(pc.field("split") == "test") for table in tables])
    rows = select(pooled, model="sall", task="dr", split="test")
    curve = referral_curve(rows.probabilities, rows.truth, rows.groups, resamples=RESAMPLES, seed=0)
    (referral,) = found["referral"]
    assert referral["n"] == 40
    assert referral["accuracy"] == pytest.approx(curve.values["accuracy"].tolist())
    value_of = dict(zip(pooled["image_id"].to_pylist(), pooled["source"].to_pylist(), strict=True))
    expected = summarise_subgroups(
        pooled, column="source", value_of=value_of, split="test", resamples=RESAMPLES, seed=0
    )
    assert [each["gaps"]["accuracy"] for each in found["subgroups"]] == pytest.approx(
        [each.gaps["accuracy"] for each in expected]
    )
    assert [(each["value"], each["patients"], each["small"]) for each in found["subgroups"]] == [
        ("one", 10, True),
        ("two", 10, True),
    ]


def test_the_share_referred_by_and_the_mildest_grade_are_asked_for(
    runs: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    plain = validated(capsys, runs[0])
    assert [each["referable_from"] for each in plain["operating_points"]] == [2]
    assert [each["stated_sensitivity"] for each in plain["operating_points"]] == [0.9]
    changed = validated(capsys, runs[0], "--uncertainty", "entropy", "--referable-from", "4", "--bootstrap", "0")
    assert [each["referable_from"] for each in changed["operating_points"]] == [4]
    assert changed["referral"][0]["accuracy"] != plain["referral"][0]["accuracy"]
    assert changed["referral"][0]["bands"] == {}
    assert "use --referable-from 1 to 4" in refused(capsys, runs[0], "--referable-from", "5")


def test_tasks_are_chosen_and_an_unknown_one_names_the_others(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    both = write_run(tmp_path / "both", pa.concat_tables([predictions("a", 0), predictions("a", 1, task="other")]))
    assert {each["task"] for each in validated(capsys, both)["referral"]} == {"dr", "other"}
    alone = validated(capsys, both, "--task", "other")
    assert [(each["task"], each["referable_from"]) for each in alone["operating_points"]] == [("other", 1)]
    assert {each["task"] for each in alone["referral"]} == {"other"}
    assert "choose of: dr, other" in refused(capsys, both, "--task", "dme")


def test_a_threshold_of_ones_own_takes_the_place_of_validation_images(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    tests = predictions("a", 0).filter(pc.field("split") == "test")
    alone = write_run(tmp_path / "alone", tests)
    error = refused(capsys, alone)
    assert "no validation image has a grade of dr from 2 on" in error
    assert alone in error
    (point,) = validated(capsys, alone, "--threshold", "0.4")["operating_points"]
    assert (point["stated_sensitivity"], point["thresholds"], point["validation_sensitivity"]) == (None, [0.4], [])
    for text in ("90", "0"):
        assert "--sensitivity is a share above 0" in refused(capsys, alone, "--sensitivity", text)


def test_a_column_of_ones_own_makes_subgroups(
    runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    table = tmp_path / "cameras.csv"
    lines = [f"{name}/{index},{'xy'[index % 2]},{index}" for name in ("one", "two") for index in range(25, 40)]
    table.write_text("\n".join(["image_id,camera,age", *lines, "elsewhere,z,1"]) + "\n", encoding="utf-8")
    found = validated(capsys, *runs, "--subgroup", f"{table}:camera")["subgroups"]
    assert [(each["value"], each["n"]) for each in found] == [("(unknown)", 10), ("x", 14), ("y", 16)]
    assert "lacks a column: lens; it has image_id, camera, age" in refused(capsys, *runs, "--subgroup", f"{table}:lens")
    assert "write source, laterality or FILE.csv:COLUMN" in refused(capsys, *runs, "--subgroup", "camera")
    strangers = tmp_path / "strangers.csv"
    strangers.write_text("image_id,camera\n7,x\n", encoding="utf-8")
    assert "such as one/0" in refused(capsys, *runs, "--subgroup", f"{strangers}:camera")
    twice = tmp_path / "twice.csv"
    twice.write_text("image_id,camera\none/30,x\none/30,y\n", encoding="utf-8")
    assert "line 3: an image with two values: one/30" in refused(capsys, *runs, "--subgroup", f"{twice}:camera")


def write_eyes(folder: Path, *, known: bool) -> str:
    """Write the data set of run `one`, each patient's first image of the left eye."""
    with ShardWriter(str(folder), tasks=TASKS, image_size=SIZE, encoding="raw", source="eyes") as writer:
        for index in range(40):
            writer.add(
                Row(
                    image_id=f"one/{index}",
                    group_id=f"one/{index // 2}",
                    source="one",
                    split="test",
                    image=bytes(SIZE * SIZE * 3),
                    width=SIZE,
                    height=SIZE,
                    sha256=f"{index:064x}",
                    grades={"dr": 0},
                    laterality=("left", "right")[index % 2] if known else None,
                )
            )
    return str(folder)


def test_eyes_are_told_apart_by_the_data_set(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    eyes = write_run(tmp_path / "eyes", predictions("one", 0), data=write_eyes(tmp_path / "data", known=True))
    found = validated(capsys, eyes, "--subgroup", "laterality")["subgroups"]
    assert [(each["value"], each["n"], each["patients"]) for each in found] == [("left", 10, 10), ("right", 10, 10)]
    nameless = write_run(tmp_path / "none", predictions("one", 0), data=write_eyes(tmp_path / "other", known=False))
    assert "of no image which eye it shows" in refused(capsys, nameless, "--subgroup", "laterality")


def test_the_files_hold_what_was_measured(runs: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "out"
    found = validated(capsys, *runs, "--subgroup", "source", "--output", str(out))
    names = ["operating_points.csv", "referral.csv", "referral.png", "referral.svg", "subgroups.csv", "validation.md"]
    assert sorted(path.name for path in out.iterdir()) == names
    with Image.open(out / "referral.png") as figure:
        assert figure.width == 1600
    assert (out / "referral.svg").read_text(encoding="utf-8").startswith("<?xml")

    def lines_of(name: str) -> list[dict[str, str]]:
        return list(csv.DictReader(io.StringIO((out / name).read_text(encoding="utf-8"))))

    points = lines_of("operating_points.csv")
    for line, point in zip(points, found["operating_points"], strict=True):
        assert float(line["sensitivity"]) == pytest.approx(point["metrics"]["sensitivity"])
        assert float(line["ppv_low"]) == pytest.approx(point["intervals"]["ppv"][0])
        assert [float(each) for each in line["thresholds"].split()] == point["thresholds"]
    curve = lines_of("referral.csv")
    assert [float(line["accuracy"]) for line in curve] == pytest.approx(found["referral"][0]["accuracy"])
    gaps = [line for line in lines_of("subgroups.csv") if line["metric"] == "auroc"]
    assert [float(line["gap"]) for line in gaps] == pytest.approx(
        [each["gaps"]["auroc"] for each in found["subgroups"]]
    )
    text = (out / "validation.md").read_text(encoding="utf-8")
    accuracy = found["referral"][0]["accuracy"]
    shown = " | ".join(f"{accuracy[share] * 100:.1f}" for share in (0, 10, 20, 30, 50))
    assert f"| DR | SALL | Accuracy (%) | {shown} |" in text
    assert "source: one\\*" in text
    before = {path.name: path.read_bytes() for path in out.iterdir()}
    assert run(["validate", *runs, "--subgroup", "source", "--output", str(out)]) == 0
    printed = capsys.readouterr().out
    for words in ("operating points", "Sens. (%)", "source: one*", "0% referred"):
        assert words in " ".join(printed.split())
    assert {path.name: path.read_bytes() for path in out.iterdir()} == before


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_everything(tmp_path_factory.mktemp("dataset"), **{"evaluate.bootstrap": RESAMPLES})


def test_a_bundle_elsewhere_takes_its_thresholds_from_its_run(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    RunFolder(Store(str(tmp_path / "run"))).write_predictions(made.predictions)
    made.build(tmp_path / "run" / BUNDLE, summaries=summarise(made.predictions, split="test", resamples=0, seed=0))
    write_dataset(tmp_path / "elsewhere", size=SIZE)
    bundle = str(tmp_path / "run" / BUNDLE)
    found = validated(capsys, bundle, "--data", str(tmp_path / "elsewhere"))
    validation = select(made.predictions, model="sall", task="dr", split="validation")
    (chosen,) = decide_at_sensitivity([(validation, validation)], referable_from=2, sensitivity=0.9).thresholds
    by_task = {each["task"]: each for each in found["operating_points"]}
    assert by_task["dr"]["thresholds"] == pytest.approx([chosen])
    assert by_task["dr"]["model"] == "tiny"


def test_a_bundle_alone_needs_to_be_told_where_thresholds_come_from(
    made: Made, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    made.build(tmp_path / "bundle")
    bundle, data = str(tmp_path / "bundle"), str(tmp_path / "elsewhere")
    write_dataset(tmp_path / "elsewhere", size=SIZE)
    assert "add --threshold-data" in refused(capsys, bundle, "--data", data)
    assert validated(capsys, bundle, "--data", data, "--threshold", "0.3")["operating_points"][0]["thresholds"] == [0.3]
    amd = ("--data", data, "--threshold-data", data, "--task", "amd")
    (point,) = validated(capsys, bundle, *amd, "--referable-from", "1")["operating_points"]
    assert point["validation_sensitivity"] == [1.0]  # of the one validation image, of grade 1
    assert "no validation image has a grade of amd from 2 on" in refused(capsys, bundle, *amd)
    assert "--threshold-data is about --data" in refused(capsys, bundle, "--threshold-data", data)
