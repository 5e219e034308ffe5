"""The predictor shows the network the pixels of the evaluation, and turns probabilities into decisions."""

import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
import torch

from retina_ray.bundle import Bundle
from retina_ray.bundle_manifest import QualityLimits, TaskCalibration
from retina_ray.data.conversion import Target, convert
from retina_ray.data.decode import CorruptImageError
from retina_ray.data.fundus import NoFundusError
from retina_ray.data.loader import Loader, Samples
from retina_ray.data.manifest import Encoding
from retina_ray.data.order import Share
from retina_ray.data.quality import measure
from retina_ray.data.schema import KNOWN_TASKS
from retina_ray.data.shards import Row, ShardedDataset, ShardWriter
from retina_ray.data.synthetic import draw
from retina_ray.errors import BundleError
from retina_ray.metrics.calibration import apply_temperature
from retina_ray.serving.predictor import Predictor, _grades
from retina_ray.serving.quality import judge
from retina_ray.serving.schema import GradeResponse
from tests.bundles import TASKS, make_everything

STORED_SIZE = 96
"""Larger than the network's input, so that both ways resample."""


def photograph(index: int = 0) -> bytes:
    """Return a JPEG file wider than high, whose disc is not in the middle."""
    fundus = draw(size=150, task="dr", grade=index % 5, seed=1, index=index).image
    frame = np.zeros((180, 260, 3), dtype=np.uint8)
    frame[11:161, 40:190] = fundus
    return bytes(simplejpeg.encode_jpeg(frame, quality=95))


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    made = make_everything(tmp_path_factory.mktemp("dataset"), size=STORED_SIZE)
    return made.build(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def predictor(bundle: Bundle) -> Predictor:
    return Predictor(bundle)


def evaluation_batch(folder: Path, data: bytes, encoding: Encoding, image_size: int) -> torch.Tensor:
    """Ingest a photograph and return what evaluation shows the network, (1, 3, H, W)."""
    stored = convert(data, None, name="a", target=Target(STORED_SIZE, encoding))
    row = Row("a", "a", "a", "test", stored.image, STORED_SIZE, STORED_SIZE, stored.sha256, {"dr": 0})
    with ShardWriter(str(folder), tasks=TASKS, image_size=STORED_SIZE, encoding=encoding, source="test") as writer:
        writer.add(row)
    dataset = ShardedDataset.open(str(folder))
    loader = Loader(
        Samples(dataset, np.zeros(1, np.int64), dataset.grades),
        share=Share(rank=0, world=1, global_batch=1, accumulate=1),
        augmentation=None,
        image_size=image_size,
        backend="torch",
        device=torch.device("cpu"),
        seed=0,
        num_threads=1,
        shuffle=False,
    )
    [[batch]] = loader.epoch(0)
    loader.close()
    return batch.images


def test_serving_sees_the_pixels_of_the_evaluation(predictor: Predictor, bundle: Bundle, tmp_path: Path) -> None:
    size = bundle.manifest.preprocessing.image_size
    assert size != STORED_SIZE
    evaluated = evaluation_batch(tmp_path, photograph(), "raw", size)
    served = predictor.preprocess(photograph())
    assert torch.equal(served, evaluated)
    assert served.shape == (1, 3, size, size)
    assert float(served.std()) > 0.5  # not a black square


def test_storing_as_jpeg_changes_little(predictor: Predictor, bundle: Bundle, tmp_path: Path) -> None:
    evaluated = evaluation_batch(tmp_path, photograph(), "jpeg", bundle.manifest.preprocessing.image_size)
    difference = (predictor.preprocess(photograph()) - evaluated).abs()
    assert 0 < float(difference.mean()) < 0.05  # about 3 grey levels


def test_grades_follow_from_the_probabilities_of_the_evaluation(
    predictor: Predictor, bundle: Bundle, tmp_path: Path
) -> None:
    images = evaluation_batch(tmp_path, photograph(), "raw", bundle.manifest.preprocessing.image_size)
    [(method, network)] = bundle.network_modules("cpu")
    with torch.inference_mode():
        evaluated = {task: values.numpy() for task, values in method.probabilities(network, images).items()}
    answer = predictor.grade(photograph())
    for task in TASKS:
        fitted = bundle.manifest.calibration[task.name]
        calibrated = apply_temperature(evaluated[task.name], fitted.temperature)[0]
        graded = answer.tasks[task.name]
        np.testing.assert_allclose(graded.probabilities, calibrated, rtol=1e-6)
        assert graded.grade == calibrated.argmax()
        assert graded.grade_name == task.grades[graded.grade]
        assert graded.confidence == max(graded.probabilities)
        assert graded.grade in graded.prediction_set
        assert graded.coverage == 0.9
    assert answer.model.hash == bundle.hash
    assert answer.timing.prepare_ms > 0


def test_an_answer_survives_json(predictor: Predictor) -> None:
    answer = predictor.grade(photograph())
    assert GradeResponse.model_validate_json(answer.model_dump_json()) == answer


def test_a_batch_gives_what_each_photograph_gives_alone(predictor: Predictor) -> None:
    files = [photograph(index) for index in range(3)]
    together = predictor.grade_batch([predictor.prepare(data) for data in files])
    for data, answer in zip(files, together, strict=True):
        alone = predictor.grade(data)
        assert answer.image == alone.image
        np.testing.assert_allclose(answer.tasks["dr"].probabilities, alone.tasks["dr"].probabilities, atol=1e-3)
    spread = np.ptp([answer.tasks["dr"].probabilities for answer in together], axis=0)
    assert spread.max() > 1e-2  # the network does tell them apart


def test_one_network_for_each_task(tmp_path: Path) -> None:
    made = make_everything(tmp_path / "dataset", **{"method.multi_task": False})
    answer = Predictor(made.build(tmp_path / "bundle")).grade(photograph())
    assert {task: len(graded.probabilities) for task, graded in answer.tasks.items()} == {"dr": 5, "amd": 4}


CALIBRATION = TaskCalibration(images=100, temperature=1.0, coverage=0.9, quantile=0.75, referable_from=2)


@pytest.mark.parametrize(
    ("probabilities", "kept", "referable", "abstain"),
    [
        ((0.9, 0.1, 0.0, 0.0, 0.0), [0], False, False),
        ((0.5, 0.5, 0.0, 0.0, 0.0), [0, 1], False, False),  # unsure of the grade, sure that no referral is needed
        ((0.1, 0.5, 0.4, 0.0, 0.0), [1, 2], False, True),
        ((0.0, 0.1, 0.4, 0.5, 0.0), [2, 3], True, False),
        ((0.4, 0.0, 0.2, 0.2, 0.2), [0], True, False),  # none of the severe grades alone, all of them together
        ((0.2, 0.2, 0.2, 0.2, 0.2), [0], True, False),
    ],
)
def test_referral_and_abstention(
    probabilities: tuple[float, ...], kept: list[int], referable: bool, abstain: bool
) -> None:
    [graded] = _grades(np.array([probabilities], np.float32), KNOWN_TASKS["dr"], CALIBRATION)
    assert (graded.prediction_set, graded.referable, graded.abstain) == (kept, referable, abstain)
    assert graded.referable_probability == pytest.approx(sum(probabilities[2:]))


def test_a_temperature_above_one_lowers_the_confidence() -> None:
    softer = CALIBRATION.model_copy(update={"temperature": 2.0})
    probabilities = np.array([[0.7, 0.1, 0.1, 0.05, 0.05]], np.float32)
    [sure], [unsure] = (_grades(probabilities, KNOWN_TASKS["dr"], each) for each in (CALIBRATION, softer))
    assert sure.confidence == pytest.approx(0.7)
    assert unsure.confidence < 0.6
    assert unsure.grade == sure.grade


def test_what_is_no_fundus_photograph_is_refused_by_name(predictor: Predictor) -> None:
    with pytest.raises(CorruptImageError, match=r"eye\.jpg"):
        predictor.grade(photograph()[:500], name="eye.jpg")
    with pytest.raises(CorruptImageError, match="empty"):
        predictor.grade(b"")
    grey = bytes(simplejpeg.encode_jpeg(np.full((200, 200, 3), 90, np.uint8)))
    with pytest.raises(NoFundusError, match=r"wall\.jpg"):
        predictor.prepare(grey, name="wall.jpg")


def test_another_preprocessing_is_refused(bundle: Bundle) -> None:
    preprocessing = bundle.manifest.preprocessing.model_copy(update={"version": 99})
    other = Bundle(bundle.store, bundle.manifest.model_copy(update={"preprocessing": preprocessing}), b"", b"")
    with pytest.raises(BundleError, match="another preprocessing: 99"):
        Predictor(other)


def test_quality_measures_tell_what_they_are_named_after() -> None:
    image = draw(size=128, task="dr", grade=2, seed=0, index=0).image
    plain = measure(image)
    blurred = measure(np.asarray(cv2.GaussianBlur(image, (0, 0), 2), np.uint8))
    dim = measure((image * 0.5).astype(np.uint8))
    assert blurred.sharpness < 0.5 * plain.sharpness
    assert dim.brightness == pytest.approx(0.5 * plain.brightness, rel=0.05)
    assert dim.contrast < plain.contrast
    assert plain.means[0] > plain.means[2]  # a retina is redder than blue
    assert measure(np.zeros_like(image)).brightness == 0.0


def test_quality_measures_ignore_the_surround() -> None:
    """A disc that the frame cuts leaves black bands, whose edges are no sharpness."""
    image = draw(size=128, task="dr", grade=0, seed=0, index=0).image
    cut = image.copy()
    cut[:20] = cut[-20:] = 0
    whole, banded = measure(image), measure(cut)
    assert banded.sharpness == pytest.approx(whole.sharpness, rel=0.25)
    assert banded.brightness == pytest.approx(whole.brightness, rel=0.1)


@pytest.mark.parametrize(
    ("limit", "value", "reason"),
    [
        ("min_sharpness", 1e9, "out of focus"),
        ("min_brightness", 200.0, "too dark"),
        ("max_brightness", 5.0, "too bright"),
        ("min_contrast", 200.0, "too little contrast"),
    ],
)
def test_the_limit_that_fails_is_named(limit: str, value: float, reason: str) -> None:
    measures = measure(draw(size=128, task="dr", grade=2, seed=0, index=0).image)
    wide = QualityLimits(min_sharpness=0.0, min_brightness=0.0, max_brightness=255.0, min_contrast=0.0)
    assert judge(measures, wide).reason is None
    verdict = judge(measures, wide.model_copy(update={limit: value}))
    assert not verdict.ok
    assert str(verdict.reason).startswith(f"retake: {reason} (")


@pytest.mark.timeout(300)
def test_serving_needs_neither_ray_nor_mlflow_nor_dali() -> None:
    code = (
        "import sys, retina_ray.serving.predictor, retina_ray.registry; "
        "print(sorted({name.partition('.')[0] for name in sys.modules} & {'ray', 'mlflow', 'nvidia', 'optuna'}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert done.stdout.strip() == "[]", done.stderr
