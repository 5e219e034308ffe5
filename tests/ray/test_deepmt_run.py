"""A whole DeepMT-DR run: its stages, its figures, its bundle, and what serving makes of that.

In this process; among the long tests on a real Ray as well.
"""

import json
import re
from collections.abc import Callable
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from safetensors.torch import load as load_tensors

from retina_ray.bundle import Bundle
from retina_ray.cli.main import run
from retina_ray.config import RunConfig, override
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.synthetic import draw, write_synthetic
from retina_ray.orchestration.bundle_evaluation import predict_dataset
from retina_ray.orchestration.publish import Published, train_and_publish
from retina_ray.orchestration.run_report import gather, report_run
from retina_ray.orchestration.snapshot import SNAPSHOT
from retina_ray.orchestration.train_driver import Record, train_driver
from retina_ray.recipes import load_recipe
from retina_ray.serving.predictor import Predictor
from retina_ray.training.artifact import HISTORY, WEIGHTS

pytestmark = pytest.mark.timeout(600)  # whichever comes first waits for the run

DOCS = Path(__file__).resolve().parents[2] / "docs/deepmt.md"
SIZE = 64
SCALE = 2
TRAINED = ("restoration", "grading", "joint")


def a_config(data: Path, storage: Path, **changes: object) -> RunConfig:
    return override(
        load_recipe("deepmt_debug"),
        {
            "data.path": str(data),
            "data.image_size": SIZE,
            "data.masks": 0.5,
            "method.scale": SCALE,
            "method.super_resolution.width": 4,
            "method.super_resolution.blocks": 1,
            "method.segmentation.width": 2,
            "method.segmentation.depth": 3,
            "method.segmentation.gamma": [0.5, 0.5, 1.0],
            "method.grading.hidden": 8,
            "method.stages.restoration.epochs": 1,
            "method.stages.grading.epochs": 1,
            "method.stages.joint.epochs": 1,
            "evaluate.bootstrap": 5,
            "runtime.storage": str(storage),
            "runtime.use_gpu": False,
            "runtime.cpus_per_worker": 1,
            "tracking.enabled": False,
            **{key.replace("__", "."): value for key, value in changes.items()},
        },
    )


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("deepmt-data")
    write_synthetic(
        str(folder), tasks=("dr",), images_per_task=32, image_size=SIZE, seed=0, encoding="raw", num_workers=2
    )
    return folder


@pytest.fixture(scope="module")
def published(
    workers: int, data: Path, tmp_path_factory: pytest.TempPathFactory, request: pytest.FixtureRequest
) -> Published:
    if workers:
        request.getfixturevalue("ray_cluster")
    return train_and_publish(a_config(data, tmp_path_factory.mktemp("deepmt-runs"), runtime__workers=workers))


def test_the_stages_build_on_each_other(published: Published, workers: int) -> None:
    artifacts = published.result.artifacts
    assert list(artifacts) == [*TRAINED, "test"]
    weights = {name: load_tensors(artifacts[name].read(WEIGHTS)) for name in TRAINED}
    segmentation = [key for key in weights["grading"] if key.startswith("nets.segmentation.")]
    assert segmentation
    assert all(torch.equal(weights["grading"][key], weights["restoration"][key]) for key in segmentation)
    for earlier in ("restoration", "grading"):
        shared = [key for key in weights[earlier] if key in weights["joint"]]
        parts = {".".join(key.split(".")[:2]) for key in shared}
        for part in parts:
            keys = [key for key in shared if key.startswith(part)]
            assert not all(torch.equal(weights["joint"][key], weights[earlier][key]) for key in keys), part
    assert all(artifact.facts["workers"] == max(1, workers) for artifact in artifacts.values())


def test_the_joint_stage_learns_from_maps(published: Published) -> None:
    joint = published.result.artifacts["joint"]
    [epoch] = joint.history()
    for term in ("segmentation_aware", "classification_aware", "dice", "semi_supervised", "grading"):
        assert epoch[f"train_{term}"] > 0, term
    thresholds = [value for key, value in load_tensors(joint.read(WEIGHTS)).items() if ".xi." in key]
    assert len(thresholds) == 4
    assert all((each != 0.5).any() for each in thresholds)  # where they start


def test_each_stage_reports_its_figures(published: Published) -> None:
    test = published.result.artifacts["test"].facts["figures"]
    assert test["restoration"].keys() >= {"psnr", "psnr_bicubic", "ssim", "ap_MA", "image_ap_SE", "image_auc_HE"}
    assert "psnr" not in test["grading"]
    assert test["joint"].keys() >= {"psnr", "accuracy_dr", "evidence_auc_lesions", "evidence_auc_background"}
    [summary] = published.result.summaries
    assert (summary.model, summary.task) == ("deepmt", "dr")


def test_every_json_file_of_the_run_is_one_for_any_program(published: Published) -> None:
    folder = published.result.folder.store.local_path
    ours = [*folder.rglob("*.json"), *folder.parent.glob("artifacts/*/*.json")]
    ours = [file for file in ours if file.name != SNAPSHOT]
    assert {file.name for file in ours} >= {"run.json", "metrics.json", "bundle.json", "artifact.json", "history.json"}
    for text in [*(file.read_text() for file in ours), *(folder / "history.jsonl").read_text().splitlines()]:
        json.loads(text, parse_constant=pytest.fail)


class Stopped(Exception):  # noqa: N818  # not an error of the product
    """Thrown into a training."""


def test_stopped_in_every_stage_and_resumed_it_ends_with_the_same_weights(data: Path, tmp_path: Path) -> None:
    # Resumed within the first of two epochs, the grading stage has kept fewer maps of its fixed net in the second.
    in_process = {"runtime__workers": 0, "method__stages__grading__epochs": 2, "runtime__log_every": 1}
    tracked = train_and_publish(a_config(data, tmp_path / "whole", tracking__enabled=True, **in_process))
    assert tracked.version is not None
    whole = tracked.result
    config = a_config(data, tmp_path / "stopped", runtime__checkpoint__every_steps=2, **in_process)

    def stop_in(stage: str) -> Callable[[Record], None]:
        def listen(record: Record) -> None:
            if record["stage"] == stage and record["kind"] == "step" and record["step"] == 3:
                raise Stopped

        return listen

    for stage in ("restoration", "grading", "joint"):
        with pytest.raises(Stopped):
            train_driver(config, resume=True, listener=stop_in(stage))
    resumed: list[Record] = []
    stopped = train_driver(config, resume=True, listener=resumed.append)
    assert [record["step"] for record in resumed if record["kind"] == "restored"] == [2]
    for name in TRAINED:
        for file in (HISTORY, WEIGHTS):  # the weights are the best epoch's, the history tells of every epoch
            assert whole.artifacts[name].read(file) == stopped.artifacts[name].read(file), (name, file)


def test_serving_predicts_what_was_evaluated(published: Published, data: Path) -> None:
    bundle = Bundle.load(published.bundle_uri)
    table = predict_dataset(bundle, str(data), split="test")
    stored = published.result.folder.predictions().to_pylist()
    before = {row["image_id"]: row["probabilities"] for row in stored if row["split"] == "test"}
    for row in table.to_pylist():
        np.testing.assert_allclose(row["probabilities"], before[row["image_id"]], atol=1e-4)


def test_low_resolution_photographs_are_taken_as_they_are(published: Published, data: Path, tmp_path: Path) -> None:
    dataset = ShardedDataset.open(str(data))
    picture = np.frombuffer(dataset.image(0), np.uint8).reshape(SIZE, SIZE, 3)
    path = tmp_path / "real-lr.png"
    cv2.imwrite(str(path), cv2.cvtColor(cv2.resize(picture, (470, 470)), cv2.COLOR_RGB2BGR))
    bundle = Bundle.load(published.bundle_uri)
    predictor = Predictor(bundle, low_resolution=True)
    assert predictor.preprocess(path.read_bytes()).shape == (1, 3, SIZE // SCALE, SIZE // SCALE)
    answer = predictor.grade(path.read_bytes())
    assert sum(answer.tasks["dr"].probabilities) == pytest.approx(1, abs=1e-5)
    assert run(["predict", published.bundle_uri, str(path), "--low-resolution"]) == 0


def test_the_documented_commands_screen_every_low_resolution_photograph(
    published: Published, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["image,positive"]
    for index in range(8):
        drawn = cv2.cvtColor(draw(size=96, task="dr", grade=index % 5, seed=1, index=index).image, cv2.COLOR_RGB2BGR)
        framed = cv2.copyMakeBorder(drawn, 0, 0, 11, 11, cv2.BORDER_CONSTANT)
        cv2.imwrite(str(tmp_path / f"{index}.jpg"), framed)
        lines.append(f"{index}.jpg,{int(index % 5 > 0)}")
    (tmp_path / "real-lr.csv").write_text("\n".join(lines) + "\n", encoding="utf-8")
    section = DOCS.read_text(encoding="utf-8").partition("## Photographs of low resolution")[2]
    [block] = re.findall(r"```bash\n(.*?)```", section, flags=re.DOTALL)
    here = {
        "real-lr.csv": str(tmp_path / "real-lr.csv"),
        "data/real-lr": str(tmp_path / "data"),
        "runs/ddr/bundle": published.bundle_uri,
        "photograph.jpg": str(tmp_path / "0.jpg"),
        "256": str(SIZE // SCALE),
    }
    commands = [[here.get(word, word) for word in line.split()[1:]] for line in block.splitlines()]
    assert [command[0] for command in commands] == ["data", "evaluate", "predict"]
    for command in commands:
        capsys.readouterr()
        assert run([*command, "--json"]) == 0
        if command[0] == "evaluate":
            [record] = json.loads(capsys.readouterr().out)
    assert record["n"] == 8
    assert len(record["confusion"]) == 2
    assert run(["evaluate", published.result.folder.store.uri, "--low-resolution"]) == 2
    assert "--low-resolution is about --data" in capsys.readouterr().err


def test_the_report_shows_the_run(published: Published) -> None:
    report = gather(published.result.folder)
    assert set(report.histories) == {"restoration", "grading", "joint"}
    assert report.soft_labels == []
    assert len(report.lesion_panels) == 4
    assert report.notes == []
    page = Path(report_run(published.result.folder)).read_text(encoding="utf-8")
    for words in (
        "Restoration on the test split",
        "Lesions on the test split",
        "AUC per image",
        "mean of the lesions",
        "background",
        "From low to high resolution",
    ):
        assert words in page
