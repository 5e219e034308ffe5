"""A pass over images, each counted once, and the validation means from it."""

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from retina_ray.data.batch import Batch
from retina_ray.data.shards import ShardedDataset
from retina_ray.training.evaluate import run_over, validate
from retina_ray.training.world import World
from tests.helpers import tiny_config, tiny_engine, tiny_grader, tiny_loader, tiny_selection, write_dataset


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    return write_dataset(tmp_path_factory.mktemp("data"), rows=(22, 11, 9))


def describe(batch: Batch) -> dict[str, Tensor]:
    return {"row": batch.rows, "sum": batch.images.sum(dim=(1, 2, 3)), "grid": batch.images[:, 0, :2, :2]}


@pytest.mark.parametrize("global_batch", [1, 4, 8, 11, 64])
def test_each_image_is_there_once_in_order_whatever_the_batch(dataset: ShardedDataset, global_batch: int) -> None:
    loader = tiny_loader(dataset, "validation", global_batch=global_batch)
    rows, values = run_over(loader, describe, world=World())
    loader.close()
    np.testing.assert_array_equal(rows, tiny_selection(dataset).rows["validation"])
    np.testing.assert_array_equal(values["row"], rows)
    assert values["grid"].shape == (11, 2, 2)
    reference = tiny_loader(dataset, "validation", global_batch=1)
    expected = np.array([float(batch.images.sum()) for (batch,) in reference.epoch(0)], dtype=np.float32)
    reference.close()
    np.testing.assert_allclose(values["sum"], expected, rtol=1e-5)


def test_rows_in_any_order_come_back_ascending_with_their_values(dataset: ShardedDataset) -> None:
    rows = np.array([30, 22, 28, 25, 23])
    loader = tiny_loader(dataset, "validation", rows=rows, global_batch=4)
    found, values = run_over(loader, describe, world=World())
    loader.close()
    np.testing.assert_array_equal(found, np.sort(rows))
    np.testing.assert_array_equal(values["row"], np.sort(rows))


def test_a_damaged_image_is_left_out(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, rows=(8, 11, 9))
    victim = int(tiny_selection(dataset).rows["validation"][4])
    image = bytes(dataset.image(victim))
    shard = tmp_path / "shards" / "00000.arrow"
    data = bytearray(shard.read_bytes())
    data[data.index(image) + 100] ^= 1
    shard.write_bytes(bytes(data))
    loader = tiny_loader(ShardedDataset.open(str(tmp_path)), "validation")
    rows, values = run_over(loader, describe, world=World())
    loader.close()
    assert victim not in rows
    assert len(rows) == len(values["row"]) == 10
    assert loader.damaged == [dataset.image_ids[victim]]


def test_validation_is_the_mean_over_the_graded_images(dataset: ShardedDataset) -> None:
    engine = tiny_engine(tiny_grader(dropout=0.5), tiny_config(Path("none"), Path("none")))
    loader = tiny_loader(dataset, "validation", global_batch=8)
    means = validate(engine, loader)
    assert engine.network.training
    engine.network.eval()
    losses: dict[str, list[float]] = {"dr": [], "amd": []}
    hits: dict[str, list[bool]] = {"dr": [], "amd": []}
    with torch.no_grad():
        for (batch,) in loader.epoch(0):
            for index in range(len(batch.rows)):
                for task, logits in engine.network(batch.images[index : index + 1]).items():
                    grade = int(batch.grades[task][index])
                    if grade < 0 or batch.weight[index] == 0:
                        continue
                    probabilities = torch.softmax(logits[0] / engine.method.temperature, dim=0)
                    losses[task].append(-float(probabilities[grade].log()))
                    hits[task].append(int(probabilities.argmax()) == grade)
    loader.close()
    assert len(losses["dr"]) + len(losses["amd"]) == 11
    for task in ("dr", "amd"):
        assert means[f"loss_{task}"] == pytest.approx(np.mean(losses[task]), rel=1e-5)
        assert means[f"accuracy_{task}"] == pytest.approx(np.mean(hits[task]))
    assert means["criterion"] == pytest.approx(means["loss_dr"] + 0.5 * means["loss_amd"])


def test_validating_changes_no_state_and_gives_the_same_again(dataset: ShardedDataset) -> None:
    engine = tiny_engine(tiny_grader(), tiny_config(Path("none"), Path("none")))
    before = {name: value.clone() for name, value in engine.network.state_dict().items()}
    loader = tiny_loader(dataset, "validation")
    first = validate(engine, loader)
    torch.manual_seed(99)
    assert validate(engine, loader) == first
    loader.close()
    assert all(torch.equal(before[name], value) for name, value in engine.network.state_dict().items())
