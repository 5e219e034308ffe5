"""A trial of a search, inside this process: what it trains, what it reports, and what it never looks at."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from retina_ray.config import RunConfig
from retina_ray.data.shards import ShardedDataset
from retina_ray.errors import ConfigError, ResourceError
from retina_ray.methods.base import Plan
from retina_ray.metrics.json_text import json_text
from retina_ray.orchestration.preparation import plan_run
from retina_ray.orchestration.publish import train_and_publish
from retina_ray.orchestration.shared_stages import draw, shared_stages, train_shared
from retina_ray.orchestration.tune_driver import SearchOptions, run_search
from retina_ray.orchestration.tune_trial import _Follower, fold_config, train_trial
from retina_ray.search.space import load_space
from retina_ray.training.stage import select_rows
from tests.helpers import ONE_STAGE, tiny_config


class Reports:
    """What a trial reported."""

    def __init__(self) -> None:
        self.epochs: list[float] = []
        self.figures: list[dict[str, float]] = []
        self.stages: dict[str, str] = {}

    def __call__(self, epoch: float, figures: Mapping[str, float], stages: Mapping[str, str]) -> None:
        self.epochs.append(epoch)
        self.figures.append(dict(figures))
        self.stages = dict(stages)

    def text(self) -> str:
        """Return epochs and figures such that NaN equals NaN."""
        return json_text([self.epochs, self.figures])


def a_trial(config: RunConfig, *, folds: int | None = None) -> Reports:
    reports = Reports()
    train_trial(config, folds=folds, report=reports)
    return reports


@pytest.fixture(scope="module")
def first(data: Path, storage: Path) -> Reports:
    return a_trial(tiny_config(data, storage))


TEACHING = ("teacher-dr", "teacher-amd", "cross-labels")


def test_a_trial_reports_every_epoch_of_the_student(first: Reports) -> None:
    assert first.epochs == [1.0, 2.0]
    assert first.stages == dict.fromkeys((*TEACHING, "student-dr-amd"), "trained")
    for found in first.figures:
        for name in ("accuracy", "kappa", "ece"):
            assert found[name] == pytest.approx((found[f"{name}_dr"] + found[f"{name}_amd"]) / 2, nan_ok=True)
    # the figures are those of the epoch whose weights are kept, so the criterion never rises
    assert first.figures[1]["criterion"] <= first.figures[0]["criterion"]


@pytest.mark.parametrize(
    "changes",
    [
        {"method__temperature": 9.0},
        {"method__ratio": {"dr": 0.5}, "method__loss_weight": {"amd": 2.0}},
        {"method__student__lr": 1e-4, "method__student__dropout": 0.4},
    ],
    ids=["temperature", "ratio and weight", "rate and dropout"],
)
def test_what_the_space_varies_trains_the_student_alone(
    first: Reports, data: Path, storage: Path, changes: dict[str, Any]
) -> None:
    other = a_trial(tiny_config(data, storage, **changes))
    assert other.stages == {**dict.fromkeys(TEACHING, "reused"), "student-dr-amd": "trained"}
    assert other.figures != first.figures


def test_the_same_configuration_is_one_result_and_tells_all_its_epochs(
    first: Reports, data: Path, storage: Path
) -> None:
    again = a_trial(tiny_config(data, storage, name="other", runtime__log_every=1))
    assert set(again.stages.values()) == {"reused"}
    assert again.text() == first.text()


class Stopped(BaseException):
    """Ends a trial as Ray Tune does."""


def test_a_trial_that_was_stopped_tells_its_epochs_again(data: Path, tmp_path: Path) -> None:
    settings = {**ONE_STAGE, "train__epochs": 3, "runtime__checkpoint__every_steps": 1, "runtime__log_every": 1}
    whole = a_trial(tiny_config(data, tmp_path / "whole", **settings))
    config = tiny_config(data, tmp_path / "stopped", **settings)
    seen: list[float] = []

    def stop_at_two(epoch: float, figures: Mapping[str, float], stages: Mapping[str, str]) -> None:
        seen.append(epoch)
        if epoch == 2.0:
            raise Stopped

    with pytest.raises(Stopped):
        train_trial(config, folds=None, report=stop_at_two)
    resumed = a_trial(config)
    assert seen == [1.0, 2.0]
    assert resumed.text() == whole.text()


def test_epochs_that_workers_lost_and_repeat_count_once() -> None:
    reports = Reports()
    follower = _Follower(Plan((), (), ("student",)), ["dr"], reports)
    for epoch, criterion in ((1, 3.0), (2, 1.0), (1, 3.0), (2, 2.0)):  # new workers without a checkpoint to restore
        position = {"stage": "student", "kind": "epoch", "epoch": float(epoch)}
        follower({**position, "validation_criterion": criterion, "validation_accuracy_dr": 1 / criterion})
    assert reports.epochs == [1.0, 2.0, 1.0, 2.0]
    assert [found["criterion"] for found in reports.figures] == [3.0, 1.0, 3.0, 2.0]
    assert reports.figures[-1]["accuracy"] == 0.5


def test_several_final_networks_report_together(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, method__multi_task=False, method__synergic_labels=False)
    reports = a_trial(config)
    assert reports.epochs == [1.5, 2.0]  # one student is done before the other begins
    assert {"accuracy", "accuracy_dr", "accuracy_amd", "criterion"} <= reports.figures[0].keys()


def test_no_trial_looks_at_a_test_image_and_the_winner_does(
    data: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Every loader takes its pixels from `ShardedDataset.image`."""
    read: list[int] = []
    image = ShardedDataset.image
    monkeypatch.setattr(ShardedDataset, "image", lambda self, row: read.append(int(row)) or image(self, row))
    splits = ShardedDataset.open(str(data)).splits
    config = tiny_config(data, tmp_path, **ONE_STAGE)
    a_trial(config)
    a_trial(config, folds=3)
    assert set(splits[read]) == {"train", "validation"}
    read.clear()
    train_and_publish(config)
    assert {row for row in read if splits[row] == "test"} == set(np.flatnonzero(splits == "test"))


def test_folds_are_dealt_without_the_test_split(data: Path) -> None:
    config = tiny_config(data, Path("unused"))
    dataset = ShardedDataset.open(str(data))
    stored = select_rows(config, dataset).rows
    validated: list[int] = []
    for fold in range(3):
        rows = select_rows(fold_config(config, 3, fold), dataset).rows
        np.testing.assert_array_equal(rows["test"], stored["test"])
        assert not set(dataset.group_ids[rows["train"]]) & set(dataset.group_ids[rows["validation"]])
        validated += list(rows["validation"])
    assert sorted(validated) == sorted([*stored["train"], *stored["validation"]])


def test_cross_validation_reports_the_mean_after_each_fold(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, **ONE_STAGE)
    reports = a_trial(config, folds=3)
    assert reports.epochs == [1.0, 2.0, 3.0]
    single = [a_trial(fold_config(config, 3, fold)).figures[-1]["criterion"] for fold in range(3)]
    assert reports.figures[-1]["criterion"] == pytest.approx(np.mean(single))
    assert reports.stages == {f"student-dr/{fold}": "trained" for fold in range(3)}


def test_only_what_no_suggestion_changes_is_shared(data: Path, storage: Path) -> None:
    run = plan_run(tiny_config(data, storage))
    drawn = draw(load_space("sall"), run.config, [])
    assert [stage.name for stage in shared_stages(run, drawn, use_gpu=False)] == list(TEACHING)
    drawn[3]["method.backbone"] = "resnet18"
    assert shared_stages(run, drawn, use_gpu=False) == []


def test_shared_stages_are_not_put_on_a_gpu_of_another_machine(
    data: Path, storage: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 0)
    run = plan_run(tiny_config(data, storage, runtime__use_gpu="auto"))
    with pytest.raises(ResourceError, match="no GPU on the machine that runs the search"):
        train_shared(run, [], lambda record: None, nodes=[{"CPU": 4.0, "GPU": 1.0}])


def test_folds_of_a_search_and_folds_of_its_configuration_are_not_mixed(data: Path, storage: Path) -> None:
    config = tiny_config(data, storage, data__folds=5, data__fold=0, name="mixed")
    with pytest.raises(ConfigError, match=r"test images of data\.fold: data\.folds=5"):
        run_search(config, SearchOptions("sall", trials=2, cv=3))
    assert not (storage / "mixed").exists()
