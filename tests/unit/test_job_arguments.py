"""Command lines that are to run on a cluster: what they become there, what goes along, what is refused here."""

import os
import shlex
from pathlib import Path
from typing import Any

import pytest
import yaml

from retina_ray.cli.job_arguments import CONFIG, POINTS, SPLIT, Prepared, environment, prepare
from retina_ray.cli.main import run
from retina_ray.config import RunConfig, from_mapping, to_yaml
from retina_ray.errors import ConfigError
from retina_ray.recipes import load_recipe

S3 = ["--data", "s3://fundus/set", "--storage", "s3://fundus/runs"]


def prepared(line: str | list[str], *, workers: int | None = None, gpus: int | None = None) -> Prepared:
    return prepare(shlex.split(line) if isinstance(line, str) else line, workers=workers, gpus=gpus)


def shipped(found: Prepared) -> RunConfig:
    return from_mapping(yaml.safe_load(found.files[CONFIG]))


def test_a_training_becomes_one_file_that_says_everything(tmp_path: Path) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("optim: {lr: 0.002}\n")
    line = ["train", "-r", "deepmt_dr", "-c", str(mine), "-s", "train.epochs=7", *S3, "--name", "far", "--resume"]
    found = prepared(line)
    assert found.arguments == ("train", "--recipe", "deepmt_dr", "--config", CONFIG, "--resume")
    assert found.command == f"python -m retina_ray train --recipe deepmt_dr --config {CONFIG} --resume"
    config = shipped(found)
    assert config.method == load_recipe("deepmt_dr").method
    assert (config.optim.lr, config.train.epochs, config.name) == (0.002, 7, "far")
    assert (config.data.path, config.runtime.storage) == ("s3://fundus/set", "s3://fundus/runs")
    assert config.runtime.address == "auto"
    assert found.name == "far"


def as_read_there(found: Prepared, folder: Path, monkeypatch: pytest.MonkeyPatch) -> RunConfig:
    """Return the configuration that the job's command would come to, in its own folder."""
    for name, content in found.files.items():
        (folder / name).write_bytes(content)
    monkeypatch.chdir(folder)
    return shipped(prepared(list(found.arguments)))


@pytest.mark.parametrize(
    "line",
    [
        ["train", "--hide-grades", "half", *S3],
        ["train", "-r", "deepmt_debug", "-s", "runtime.workers=[2,4]", *S3],
        ["tune", "sall", "--trials", "5", "--cv", "3", *S3],
        ["tune", "deepmt_dr", "--name", "mine", *S3],
    ],
)
def test_there_the_line_means_what_it_meant_here(
    line: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = prepared(line)
    assert as_read_there(found, tmp_path, monkeypatch) == shipped(found)


@pytest.mark.parametrize(
    ("workers", "gpus", "expected"),
    [
        (None, None, (1, "auto", 1.0)),
        (4, None, (4, "auto", 1.0)),
        (None, 8, (8, True, 1.0)),
        (8, 4, (8, True, 0.5)),
    ],
)
def test_workers_and_gpus_are_those_asked_for(workers: int | None, gpus: int | None, expected: tuple[Any, ...]) -> None:
    runtime = shipped(prepared(["train", *S3], workers=workers, gpus=gpus)).runtime
    assert (runtime.workers, runtime.use_gpu, runtime.gpus_per_worker) == expected


def test_needs_are_what_the_run_reads_and_writes() -> None:
    needs = prepared(["train", *S3, "-s", "method.weights=s3://fundus/resnet.safetensors"]).needs
    assert needs.datasets == ("s3://fundus/set",)
    assert needs.storage == ("s3://fundus/runs",)
    assert needs.folders == ("s3://fundus/resnet.safetensors",)
    assert needs.runtime is not None
    assert needs.runtime["workers"] == 1
    assert needs.registry
    assert not prepared(["train", *S3, "-s", "tracking.enabled=false"]).needs.registry
    assert not prepared(["train", "--data", "/mnt/set", "--storage", "/mnt/runs"]).needs.registry


def test_a_search_takes_its_space_and_points_along(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own.py").write_text("one = 1")
    (tmp_path / "pack" / "deep").mkdir(parents=True)
    (tmp_path / "pack" / "deep" / "space.py").write_text("two = 2")
    (tmp_path / "first.yaml").write_text("[{lr: 0.1}]")
    found = prepared(["tune", "own:suggest", "--points", "first.yaml", "-n", "9", *S3])
    options = ("--trials", "9", "--config", CONFIG, "--name", "own-suggest-search", "--points", POINTS)
    assert found.arguments == ("tune", *options, "own:suggest")
    assert set(found.files) == {CONFIG, POINTS, "own.py"}
    assert set(prepared(["tune", "pack.deep.space:draw", *S3]).files) == {CONFIG, "pack/deep/space.py"}
    assert set(prepared(["tune", "sall", *S3]).files) == {CONFIG}


def test_an_ingest_uses_the_whole_cluster_and_takes_its_split_along(tmp_path: Path) -> None:
    split = tmp_path / "mine.csv"
    split.write_text("name,split\n")
    line = ["data", "ingest", "s3://raw/idrid", "s3://fundus/set", "--adapter", "idrid", "--split", str(split)]
    found = prepared([*line, "--strict"])
    words = list(found.arguments)
    assert words[:2] == ["data", "ingest"]
    assert words[-2:] == ["s3://raw/idrid", "s3://fundus/set"]
    expected = {"--address": "auto", "--split": SPLIT, "--adapter": "idrid"}
    for option, value in expected.items():
        assert words[words.index(option) + 1] == value
    assert "--strict" in words
    assert found.files == {SPLIT: b"name,split\n"}
    assert (found.needs.folders, found.needs.storage) == (("s3://raw/idrid",), ("s3://fundus/set",))
    assert "--address" not in prepared([*line, "--workers", "3"]).arguments


def test_an_evaluation_has_the_gpu_to_itself() -> None:
    found = prepared("evaluate s3://fundus/runs/a s3://fundus/runs/b --bootstrap 50", gpus=1)
    assert found.arguments == ("evaluate", "--bootstrap", "50", "s3://fundus/runs/a", "s3://fundus/runs/b")
    assert found.gpus == 1.0
    assert found.needs.folders == ("s3://fundus/runs/a", "s3://fundus/runs/b")


@pytest.mark.parametrize(
    ("line", "gpus", "workers", "part"),
    [
        ("serve up", None, None, "no command for a job: serve up; give one of train, tune, evaluate, data ingest"),
        ("", None, None, "no command for a job: nothing"),
        ("train --storage s3://fundus/runs", None, None, "no data set given"),
        ("train --data set --storage s3://fundus/runs", None, None, "relative to: set; give s3://"),
        ("train --data s3://fundus/set", None, None, "runtime.storage (--storage) is relative to: runs;"),
        ("train --data /mnt/set --storage /mnt/runs -s optim.rate=1", None, None, "did you mean"),
        ("train --data /mnt/set --storage /mnt/runs -s method.weights=mine.safetensors", None, None, "a weight file"),
        ("evaluate runs/a", None, None, "a run or bundle is relative to"),
        ("evaluate s3://fundus/runs/a", None, 2, "evaluate has no workers"),
        ("data ingest /raw /set", 1, None, "data ingest uses no GPU"),
        ("data ingest raw /set", None, None, "the source is relative to"),
    ],
)
def test_what_means_nothing_on_a_cluster_is_refused(
    line: str, gpus: int | None, workers: int | None, part: str
) -> None:
    with pytest.raises(ConfigError) as caught:
        prepared(line, workers=workers, gpus=gpus)
    assert part in str(caught.value)


def test_wrong_usage_is_found_here(capsys: pytest.CaptureFixture[str]) -> None:
    assert run(["jobs", "submit", "--dry-run", "--", "train", "--no-such-option"]) == 2
    assert "--no-such-option" in capsys.readouterr().err


def test_variables_are_named_or_given(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MINE", "of this process")
    assert environment(["MINE", "OTHER=a=b", "EMPTY="]) == {"MINE": "of this process", "OTHER": "a=b", "EMPTY": ""}
    monkeypatch.delenv("MINE")
    with pytest.raises(ConfigError, match="the variable is not set here: MINE"):
        environment(["MINE"])


def test_a_dry_run_prints_what_would_be_sent_and_no_secret(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "hush")
    words = ["jobs", "submit", "--dry-run", "--name", "mine", "--env", "AWS_SECRET_ACCESS_KEY", "--num-gpus", "2"]
    assert run([*words, "--", "train", *S3]) == 0
    said = capsys.readouterr().out
    assert "hush" not in said
    found = yaml.safe_load(said)
    assert found["job"] == "mine"
    assert found["command"] == f"python -m retina_ray train --config {CONFIG}"
    assert "AWS_SECRET_ACCESS_KEY" in found["variables"]
    assert [Path(package).name for package in found["code"]] == ["retina_ray", "tune_spaces", "serve_apps"]
    assert all(os.path.isdir(package) for package in found["code"])
    config = from_mapping(yaml.safe_load(found["files"][CONFIG]))
    assert to_yaml(config) == found["files"][CONFIG]
    assert config.runtime.workers == 2
    assert run([*words, "--image-code", "train", *S3]) == 0, "the -- may be left out"
    assert yaml.safe_load(capsys.readouterr().out)["code"] == "the image's"
