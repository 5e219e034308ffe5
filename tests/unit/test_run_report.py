"""What a report gathers from a run: the run's own counts, and a true word on what it has to leave out."""

import dataclasses
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from safetensors.torch import save as save_tensors

from retina_ray.config import to_yaml
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.store import Store
from retina_ray.methods import catalogue
from retina_ray.methods.base import Stage
from retina_ray.metrics.table import make_table
from retina_ray.orchestration.run_folder import CONFIG, RunFolder
from retina_ray.orchestration.run_report import gather
from retina_ray.report.build import write_report
from retina_ray.training.artifact import HISTORY, WEIGHTS, write_artifact
from retina_ray.training.stage import select_rows
from tests.helpers import tiny_config, write_dataset

DR_TEACHER = Stage("teacher-dr", "train", {"grades": {"dr": 3}}, model="single_task")


def predictions() -> pa.Table:
    names = [f"image-{index}" for index in range(6)]
    return make_table(
        np.full((6, 3), 1 / 3),
        truth=np.arange(6) % 3,
        image_ids=names,
        group_ids=names,
        sources=["tests"] * 6,
        splits=["test"] * 6,
        model="single_task",
        task="dr",
    )


def finished_run(folder: Path, dataset: ShardedDataset, **changes: Any) -> RunFolder:
    """Return a run as its training leaves it, of one stage with random weights."""
    config = tiny_config(folder / "data", folder, **changes)
    settings = {
        "tasks": ["dr"],
        "synergic_labels": False,
        "temperature": 1.0,
        "ratio": {},
        "loss_weight": {},
        "backbone": config.method.backbone,
        "weights": "none",
        "dropout": 0.0,
    }
    teacher = dataclasses.replace(DR_TEACHER, settings={**DR_TEACHER.settings, **settings})
    artifact = Store(str(folder)).child("artifacts").child("train-0")
    network = catalogue.build(config.method.name, teacher.settings).build_model(initial_weights=False)
    files = {WEIGHTS: save_tensors(network.state_dict()), HISTORY: b"[]"}
    write_artifact(artifact, stage=teacher, facts={"timing": {"compute_s": 1.0}}, files=files)
    run = RunFolder(Store(str(folder)).child(config.name))
    run.store.write_bytes(CONFIG, to_yaml(config).encode())
    counts, fingerprint = dataset.manifest.counts, dataset.manifest.fingerprint
    run.update(artifacts={"teacher-dr": "train-0"}, fingerprint=fingerprint, counts=counts, environment={})
    run.write_predictions(predictions())
    return run


def test_counts_are_those_of_the_run_not_of_the_data_set(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data", both=True)
    run = finished_run(tmp_path, dataset, data__hide_grades="half", data__images_per_class=3)
    data = gather(run)
    assert data.notes == []
    assert len(data.cam_panels) == 2
    counts = data.data_counts
    selection = select_rows(run.config(), dataset)
    for split, tasks in counts.items():
        rows = selection.rows[split]
        for task, num_grades in (("dr", 3), ("amd", 2)):
            shown = selection.grades[task][rows]
            assert tasks[task] == np.bincount(shown[shown >= 0], minlength=num_grades).tolist(), (split, task)
    assert sum(map(sum, counts["train"].values())) <= 3 * (3 + 2)
    assert sum(counts["test"]["dr"]) == sum(counts["test"]["amd"]) == 11


def test_tasks_that_were_not_trained_are_not_counted(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data")
    one = {"method__tasks": ["dr"], "method__synergic_labels": False, "method__multi_task": False}
    data = gather(finished_run(tmp_path, dataset, **one))
    assert [list(tasks) for tasks in data.data_counts.values()] == [["dr"]] * 3
    assert data.notes == []


def test_thinned_training_images_are_noted(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path / "data")
    notes = gather(finished_run(tmp_path, dataset, method__ratio={"dr": 0.5})).notes
    assert any("counted before method.ratio" in note for note in notes)


def test_a_damaged_artifact_is_called_that(tmp_path: Path) -> None:
    run = finished_run(tmp_path, write_dataset(tmp_path / "data"))
    (tmp_path / "artifacts" / "train-0" / WEIGHTS).write_bytes(b"other bytes")
    data = gather(run)
    (note,) = data.notes
    assert note.startswith("Left out: the panels of test images (the artifact is damaged: ")
    assert "not at hand" not in note
    assert data.data_counts["train"]["dr"]


@pytest.mark.parametrize("gone", [True, False])
def test_without_its_data_set_a_report_has_no_counts(tmp_path: Path, gone: bool) -> None:
    run = finished_run(tmp_path, write_dataset(tmp_path / "data"))
    shutil.rmtree(tmp_path / "data")
    if not gone:
        write_dataset(tmp_path / "data", rows=(24, 9, 11))
    data = gather(run)
    (note,) = data.notes
    assert note.startswith("Left out: the numbers of graded images and the panels of test images (")
    assert gone or "not the one of the run any more" in note
    assert data.data_counts == {}
    page = write_report(data, tmp_path / "report.html").read_text(encoding="utf-8")
    assert note.partition(" (")[0] in page
    assert "Training images" not in page
    assert "Graded images" not in page
