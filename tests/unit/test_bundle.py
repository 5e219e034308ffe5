"""A bundle is written whole, verified before it is read, and states what validation and training data say."""

import json
from pathlib import Path

import numpy as np
import pyarrow as pa
import pytest
import torch

from retina_ray.bundle import CARD, MANIFEST, WEIGHTS, Bundle
from retina_ray.data.fundus import PREPROCESSING_VERSION
from retina_ray.data.quality import measure
from retina_ray.data.store import Store
from retina_ray.errors import BundleError, DataError
from retina_ray.metrics.calibration import apply_temperature, prediction_set
from retina_ray.metrics.summary import TaskSummary
from retina_ray.metrics.table import select
from tests.bundles import SIZE, TASKS, Made, make_config, make_everything, train_nothing


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_everything(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def folder(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("bundle")
    made.build(folder)
    return folder


@pytest.fixture
def copy(folder: Path, tmp_path: Path) -> Path:
    """A bundle that the test may damage."""
    Bundle.load(folder).copy_to(Store(str(tmp_path / "copy")))
    return tmp_path / "copy"


def test_networks_come_back_as_they_were_trained(made: Made, folder: Path) -> None:
    [(method, network)] = Bundle.load(folder).network_modules("cpu")
    assert not network.training
    for name, tensor in made.networks[0].weights.items():
        assert torch.equal(network.state_dict()[name], tensor), name
    probabilities = method.probabilities(network, torch.zeros(2, 3, SIZE, SIZE))
    assert {task: values.shape for task, values in probabilities.items()} == {"dr": (2, 5), "amd": (2, 4)}


def test_several_networks_keep_their_own_weights(made: Made, tmp_path: Path) -> None:
    config = make_config(**{"method.multi_task": False})
    networks = train_nothing(config)
    modules = made.build(tmp_path, networks=networks, config=config).network_modules("cpu")
    assert len(modules) == 2
    for trained, (_, network) in zip(networks, modules, strict=True):
        assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in trained.weights.items())


def test_the_temperature_of_the_method_is_apart_from_that_of_calibration(folder: Path) -> None:
    manifest = Bundle.load(folder).manifest
    assert manifest.networks[0].settings["temperature"] == 3.0
    assert manifest.calibration["dr"].temperature > 1.5  # the predictions are over-confident


def test_calibration_is_fitted_on_validation_and_checked_on_test(made: Made, folder: Path) -> None:
    manifest = Bundle.load(folder).manifest
    for task in TASKS:
        fitted = manifest.calibration[task.name]
        coverage = {}
        for split in ("validation", "test"):
            rows = select(made.predictions, model="sall", task=task.name, split=split)
            sets = prediction_set(apply_temperature(rows.probabilities, fitted.temperature), fitted.quantile)
            coverage[split] = sets[np.arange(len(rows.truth)), rows.truth].mean()
        assert coverage["validation"] >= fitted.coverage == made.config.evaluate.coverage
        assert manifest.metrics[task.name].set_coverage == pytest.approx(coverage["test"])


def test_nothing_that_serving_decides_by_depends_on_the_test_split(made: Made, folder: Path, tmp_path: Path) -> None:
    manifest = Bundle.load(folder).manifest
    is_test = np.array(made.predictions["split"].to_pylist()) == "test"
    reversed_rows = made.predictions["probabilities"].to_pylist()
    changed = [row[::-1] if test else row for row, test in zip(reversed_rows, is_test, strict=True)]
    column = pa.array(changed, made.predictions["probabilities"].type)
    other = made.build(tmp_path, predictions=made.predictions.set_column(7, "probabilities", column)).manifest
    assert other.metrics != manifest.metrics
    for field in ("calibration", "quality", "reference"):
        assert getattr(other, field) == getattr(manifest, field)


def test_referable_grades(folder: Path) -> None:
    calibration = Bundle.load(folder).manifest.calibration
    assert {task: fitted.referable_from for task, fitted in calibration.items()} == {"dr": 2, "amd": 2}


def test_reference_statistics_are_those_of_the_training_images(made: Made, folder: Path) -> None:
    manifest, dataset = Bundle.load(folder).manifest, made.dataset
    rows = np.flatnonzero(dataset.splits == "train")
    measures = [measure(np.frombuffer(dataset.image(int(row)), np.uint8).reshape(SIZE, SIZE, 3)) for row in rows]
    assert manifest.reference.images == len(rows)
    assert manifest.reference.channel_mean == pytest.approx(np.mean([each.means for each in measures], axis=0))
    assert manifest.reference.channel_std == pytest.approx(np.std([each.means for each in measures], axis=0))
    assert min(each.sharpness for each in measures) <= manifest.quality.min_sharpness
    assert manifest.quality.min_brightness < manifest.quality.max_brightness
    assert {task: sum(counts) for task, counts in manifest.reference.confidence.items()} == {"dr": 60, "amd": 60}


def test_provenance(made: Made, folder: Path) -> None:
    manifest = Bundle.load(folder).manifest
    assert manifest.data.fingerprint == made.dataset.manifest.fingerprint
    assert manifest.data.counts == made.dataset.manifest.counts
    assert manifest.preprocessing.model_dump() == {"version": 1, "stored_size": SIZE, "image_size": SIZE}
    assert made.dataset.manifest.preprocessing == PREPROCESSING_VERSION
    assert manifest.config["method"]["backbone"] == "mobilenet_v3_small"


def test_a_bundle_of_the_first_version_is_read(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["version"] = 1
    for found in manifest["metrics"].values():
        del found["test_fingerprint"]
    (copy / MANIFEST).write_text(json.dumps(manifest))
    assert {found.test_fingerprint for found in Bundle.load(copy).manifest.metrics.values()} == {None}


def test_no_password_leaves_the_machine(folder: Path) -> None:
    assert not [path.name for path in folder.iterdir() if b"secret" in path.read_bytes()]


def test_undefined_metrics_are_null(made: Made, tmp_path: Path) -> None:
    blind = [TaskSummary(s.model, s.task, s.n, {**s.metrics, "auroc": float("nan")}, {}) for s in made.summaries]
    manifest = made.build(tmp_path, summaries=blind).manifest
    assert manifest.metrics["dr"].metrics["auroc"] is None
    assert "NaN" not in (tmp_path / MANIFEST).read_text()
    assert "undefined" in (tmp_path / CARD).read_text()


def test_the_card_says_what_a_reader_must_know(made: Made, folder: Path) -> None:
    card = (folder / CARD).read_text()
    summary = next(each for each in made.summaries if (each.model, each.task) == ("sall", "dr"))
    low, high = summary.intervals["accuracy"]
    assert f"{summary.metrics['accuracy']:.3f} [{low:.3f}, {high:.3f}]" in card
    tested = Bundle.load(folder).manifest.metrics["dr"].test_fingerprint
    assert tested is not None
    fingerprints = (made.dataset.manifest.fingerprint, f"dr `{tested}`")
    for phrase in ("not a medical device", *fingerprints, "method.temperature | `3.0`", "NPDR II"):
        assert phrase in card
    assert card.isascii()


def test_the_same_bundle_made_again_keeps_its_hash(made: Made, folder: Path, tmp_path: Path) -> None:
    Bundle.load(folder).copy_to(Store(str(tmp_path)))
    manifest = json.loads((tmp_path / MANIFEST).read_text())
    manifest["created"] = "2001-02-03T04:05:06Z"
    (tmp_path / MANIFEST).write_text(json.dumps(manifest))
    again = made.build(tmp_path)
    assert again.manifest.created.year == 2001
    assert made.build(tmp_path).hash == again.hash
    assert made.build(tmp_path, name="other").manifest.created.year > 2001


def test_a_copy_is_the_same_bundle(folder: Path, copy: Path) -> None:
    assert Bundle.load(copy).hash == Bundle.load(folder).hash


@pytest.mark.parametrize("name", [WEIGHTS, CARD])
def test_a_flipped_bit_is_found(copy: Path, name: str) -> None:
    data = bytearray((copy / name).read_bytes())
    data[len(data) // 2] ^= 1
    (copy / name).write_bytes(data)
    with pytest.raises(BundleError, match=f"{name} is damaged"):
        Bundle.load(copy)


@pytest.mark.parametrize("name", [WEIGHTS, CARD])
def test_a_missing_file_is_named(copy: Path, name: str) -> None:
    (copy / name).unlink()
    with pytest.raises(BundleError, match=f"lacks {name}"):
        Bundle.load(copy)


def test_a_folder_without_a_manifest_is_no_bundle(copy: Path) -> None:
    (copy / MANIFEST).unlink()
    with pytest.raises(BundleError, match="not a model bundle"):
        Bundle.load(copy)
    with pytest.raises(BundleError, match="not a model bundle"):
        Bundle.load(copy / "nowhere")


@pytest.mark.parametrize(
    ("field", "value", "message"),
    [
        ("version", 3, "another version: 3; this release reads versions 1 and 2"),
        ("surprise", 1, "Extra inputs"),
        ("tasks", [], "damaged"),
        ("calibration", {}, "calibration covers"),
        ("files", {"../card.md": "0"}, "damaged"),
        ("files", {}, "names no weights"),
    ],
)
def test_a_manifest_that_will_not_do(copy: Path, field: str, value: object, message: str) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    (copy / MANIFEST).write_text(json.dumps({**manifest, field: value}))
    with pytest.raises(BundleError, match=message):
        Bundle.load(copy)


def test_a_truncated_manifest(copy: Path) -> None:
    text = (copy / MANIFEST).read_text()
    (copy / MANIFEST).write_text(text[: len(text) // 2])
    with pytest.raises(BundleError, match=r"bundle\.json is damaged"):
        Bundle.load(copy)


def test_weights_of_another_network(copy: Path) -> None:
    manifest = json.loads((copy / MANIFEST).read_text())
    manifest["networks"][0]["settings"]["backbone"] = "resnet18"
    (copy / MANIFEST).write_text(json.dumps(manifest))
    with pytest.raises(BundleError, match="do not fit"):
        Bundle.load(copy).network_modules("cpu")


def test_a_model_without_predictions_or_metrics(made: Made, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="no graded predictions"):
        made.build(tmp_path, model="unknown")
    with pytest.raises(DataError, match="no test metrics"):
        made.build(tmp_path, summaries=[each for each in made.summaries if each.task != "amd"])
    assert not (tmp_path / MANIFEST).exists()
