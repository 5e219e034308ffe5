"""Training from and to a real S3 server: data, artifacts, checkpoints, bundle and report, with and without Ray."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

from retina_ray.config import to_yaml
from retina_ray.data.store import Store
from retina_ray.orchestration.train_driver import RunResult, train_driver
from retina_ray.training.artifact import WEIGHTS
from tests.clinic import photograph
from tests.helpers import ONE_STAGE, tiny_config


def weights(result: RunResult) -> dict[str, bytes]:
    trained = {name: artifact for name, artifact in result.artifacts.items() if WEIGHTS in artifact.files}
    return {name: artifact.store.read_bytes(WEIGHTS) for name, artifact in trained.items()}


def test_in_this_process_the_result_is_that_of_a_disk(bucket: str, data: str, tmp_path: Path) -> None:
    settings = {"runtime__cache": str(tmp_path / "cache"), **ONE_STAGE}
    here = train_driver(tiny_config(tmp_path / "data", tmp_path / "runs", **settings))
    there = train_driver(
        tiny_config(Path(), Path(), **settings, data__path=data, runtime__storage=f"s3://{bucket}/runs")
    )
    assert weights(here) == weights(there)
    again = train_driver(
        tiny_config(Path(), Path(), **settings, data__path=data, runtime__storage=f"s3://{bucket}/runs"), resume=True
    )
    assert {name: artifact.store.uri for name, artifact in again.artifacts.items()} == {
        name: artifact.store.uri for name, artifact in there.artifacts.items()
    }


@pytest.mark.long
@pytest.mark.timeout(400)
def test_the_command_line_on_ray(bucket: str, data: str, tmp_path: Path) -> None:
    config = tiny_config(
        Path(),
        Path(),
        **ONE_STAGE,
        runtime__workers=2,
        runtime__cpus_per_worker=1,
        runtime__cache=str(tmp_path / "cache"),
    )
    (tmp_path / "tiny.yaml").write_text(to_yaml(config), encoding="utf-8")
    (tmp_path / "eye.jpg").write_bytes(photograph(1))
    runs = f"s3://{bucket}/runs"

    def command(*arguments: str) -> str:
        code = "from retina_ray.cli.main import main; main()"
        environment = {**os.environ, "HOME": str(tmp_path), "RAY_AUTH_MODE": "disabled"}
        done = subprocess.run(
            [sys.executable, "-c", code, *arguments], cwd=tmp_path, env=environment, capture_output=True, text=True
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    command("train", "--config", "tiny.yaml", "--data", data, "--storage", runs, "--name", "first")
    assert {"bundle", "config.yaml", "metrics.json", "predictions.parquet"} <= set(Store(f"{runs}/first").list())
    assert json.loads(command("evaluate", f"{runs}/first", "--json"))
    command("report", f"{runs}/first")
    assert b"<html" in Store(f"{runs}/first").read_bytes("report.html")[:500]
    graded = json.loads(command("predict", f"{runs}/first/bundle", "eye.jpg", "--json"))
    assert "dr" in json.dumps(graded["eye.jpg"])
