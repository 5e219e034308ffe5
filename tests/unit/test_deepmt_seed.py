"""After training the configuration's seed alone decides about DeepMT-DR's random maps: SmoothGrad's noise."""

from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save as save_tensors

from retina_ray.config import RunConfig, override
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.store import Store
from retina_ray.data.synthetic import write_synthetic
from retina_ray.methods import catalogue
from retina_ray.methods.base import TEST, Stage
from retina_ray.orchestration import report_deepmt
from retina_ray.training.artifact import WEIGHTS, Artifact, read_artifact, write_artifact
from retina_ray.training.reporter import FolderReporter
from retina_ray.training.stage import StageJob, StageRun, select_rows
from retina_ray.training.world import World
from tests.deepmt import SIDE, tiny

ALONE = {"method.super_resolution.mode": "none", "method.segmentation.mode": "none"}


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("drawn")
    write_synthetic(str(folder), tasks=("dr",), images_per_task=20, image_size=SIDE, seed=0, encoding="raw")
    return folder


@pytest.fixture(scope="module")
def trained(data: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[RunConfig, dict[str, Stage], Store]:
    """A run of the joint stage alone whose weights are random, and where its artifact lies."""
    config = override(tiny({**ALONE, "method.evidence.map": "smooth_grad"}), {"data.path": str(data), "seed": 7})
    tasks = {task.name: task for task in ShardedDataset.open(str(data)).tasks}
    stages = {stage.name: stage for stage in catalogue.plan(config, tasks).stages}
    torch.manual_seed(0)
    network = catalogue.build(config.method.name, stages["joint"].settings).build_model(initial_weights=False)
    store = Store(str(tmp_path_factory.mktemp("joint")))
    write_artifact(store, stage=stages["joint"], facts={}, files={WEIGHTS: save_tensors(network.state_dict())})
    return config, stages, store


def finished(store: Store) -> Artifact:
    artifact = read_artifact(store)
    assert artifact is not None
    return artifact


def test_figures_of_the_test_stage_do_not_depend_on_the_process_or_the_batches(
    trained: tuple[RunConfig, dict[str, Stage], Store], tmp_path: Path
) -> None:
    config, stages, joint = trained

    def figures(name: str, *, process_seed: int, **changes: object) -> dict[str, float]:
        changed = override(config, {key.replace("__", "."): value for key, value in changes.items()})
        store = Store(str(tmp_path / name))
        job = StageJob(changed.model_dump(mode="json"), stages[TEST], store.uri, {"joint": joint.uri}, threads=1)
        torch.manual_seed(process_seed)
        StageRun(job, world=World(), reporter=FolderReporter(tmp_path / "checkpoints")).execute()
        found = finished(store).facts["figures"]["joint"]
        return {key: value for key, value in found.items() if key.startswith("evidence_auc")}

    first = figures("first", process_seed=1, train__global_batch_size=2)
    assert len(first) == 6
    assert figures("second", process_seed=2, train__global_batch_size=2) == first
    assert figures("larger", process_seed=1, train__global_batch_size=3) == pytest.approx(first, abs=1e-3)
    assert figures("other", process_seed=1, train__global_batch_size=2, seed=8) != pytest.approx(first, abs=1e-3)


def test_a_report_shows_the_same_maps_every_time(
    trained: tuple[RunConfig, dict[str, Stage], Store],
) -> None:
    config, _, joint = trained
    data, shown = ShardedDataset.open(config.data.path), []
    for process_seed in (1, 2):
        torch.manual_seed(process_seed)
        panels = report_deepmt.panels(config, data, select_rows(config, data), {"joint": finished(joint)})
        shown.append(np.stack([panel.evidence for panel in panels if panel.evidence is not None]))
    assert shown[0].any()
    np.testing.assert_array_equal(*shown)
