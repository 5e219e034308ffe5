"""The drawn data set: reproducible, graded by its lesions and by nothing simpler, written without a leak."""

from collections import defaultdict
from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from retina_ray.data.masks import decode_mask
from retina_ray.data.schema import KNOWN_TASKS, LESIONS
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.synthetic import SYNTHETIC_TASKS, SyntheticSample, draw, write_synthetic
from retina_ray.errors import DataError

MA, HM, HE, SE = range(len(LESIONS))


def drawn(task: str, grade: int, index: int = 0, *, size: int = 64, seed: int = 3) -> SyntheticSample:
    return draw(size=size, task=task, grade=grade, seed=seed, index=index)


def lesion_mask(grade: int, index: int, *, size: int = 64) -> np.ndarray:
    mask = drawn("dr", grade, index, size=size).mask
    assert mask is not None
    return mask


def contrast(image: np.ndarray, lesion: np.ndarray) -> float:
    """Mean green of a lesion over that of the retina around it."""
    around = cv2.dilate(lesion.astype(np.uint8), np.ones((9, 9), np.uint8)).astype(bool)
    ring = around & ~cv2.dilate(lesion.astype(np.uint8), np.ones((3, 3), np.uint8)).astype(bool)
    return float(image[..., 1][lesion].mean() / image[..., 1][ring].mean())


@pytest.mark.parametrize("task", SYNTHETIC_TASKS)
@pytest.mark.parametrize("size", [32, 100, 224])
def test_a_sample_is_a_round_photograph_of_the_asked_size(task: str, size: int) -> None:
    sample = drawn(task, 1, index=5, size=size)
    assert sample.image.shape == (size, size, 3)
    assert sample.image.dtype == np.uint8
    assert sample.grades == {task: 1}
    assert sample.laterality == "left"
    assert (sample.mask is None) == (task != "dr")
    if sample.mask is not None:
        assert sample.mask.shape == (4, size, size)
        assert sample.mask.dtype == np.bool_
    corner = max(1, size // 16)
    assert sample.image[:corner, :corner].max() < 20
    red, green, blue = sample.image[size // 3 : -size // 3, size // 3 : -size // 3].mean((0, 1))
    assert red > 60
    assert red > green > blue


def test_the_same_arguments_give_the_same_pixels_and_any_other_do_not() -> None:
    first, again = drawn("dr", 3), drawn("dr", 3)
    np.testing.assert_array_equal(first.image, again.image)
    np.testing.assert_array_equal(first.mask, again.mask)
    for other in (drawn("dr", 2), drawn("dr", 3, index=1), drawn("dr", 3, seed=4), drawn("amd", 3)):
        assert (first.image != other.image).any()


def test_another_grade_of_the_same_index_is_the_same_eye_with_other_lesions() -> None:
    healthy, sick = drawn("dr", 0, size=128), drawn("dr", 1, size=128)
    assert sick.mask is not None
    far = ~cv2.dilate(sick.mask.any(0).astype(np.uint8), np.ones((15, 15), np.uint8)).astype(bool)
    difference = np.abs(healthy.image.astype(int) - sick.image.astype(int)).mean(-1)
    assert difference[far].mean() < 4
    assert difference[sick.mask[MA]].mean() > 3 * difference[far].mean()


def test_the_optic_disc_is_on_the_nasal_side() -> None:
    for index in range(8):
        sample = drawn("dr", 0, index, size=96)
        sides = cv2.GaussianBlur(sample.image[..., 1], (0, 0), 3)
        brightest = np.unravel_index(sides.argmax(), sides.shape)[1]
        assert (brightest > 48) == (sample.laterality == "right"), index


def test_dr_grades_follow_the_international_scale() -> None:
    quadrants = [np.s_[:32, :32], np.s_[:32, 32:], np.s_[32:, :32], np.s_[32:, 32:]]
    for index in range(12):
        masks = [lesion_mask(grade, index) for grade in range(4)]
        assert not masks[0].any()
        assert masks[1][MA].any()
        assert not masks[1][[HM, HE, SE]].any()
        assert masks[2][HM].any()
        assert masks[3][HM].sum() > masks[2][HM].sum()
        assert masks[3][SE].any()
        assert sum(bool(masks[3][HM][quadrant].any()) for quadrant in quadrants) >= 3


@pytest.mark.parametrize("size", [64, 128])
def test_lesions_are_seen_after_jpeg(size: int) -> None:
    seen = defaultdict(list)
    for index in range(12):
        sample = drawn("dr", 3, index, size=size)
        assert sample.mask is not None
        jpeg = simplejpeg.encode_jpeg(np.ascontiguousarray(sample.image), quality=92, colorsubsampling="420")
        image = simplejpeg.decode_jpeg(jpeg)
        for plane, lesion in enumerate(LESIONS):
            if sample.mask[plane].any():
                seen[lesion].append(contrast(image, sample.mask[plane]))
    assert np.mean(seen["MA"]) < 0.9
    assert np.mean(seen["HM"]) < 0.8
    assert np.mean(seen["HE"]) > 1.2
    assert np.mean(seen["SE"]) > 1.1


@pytest.mark.parametrize("task", SYNTHETIC_TASKS)
def test_mean_colour_says_nothing_about_the_grade(task: str) -> None:
    num_grades = KNOWN_TASKS[task].num_grades
    grades = np.arange(300) % num_grades
    means = np.stack([drawn(task, int(grade), i, size=48).image.mean((0, 1)) for i, grade in enumerate(grades)])
    model = make_pipeline(StandardScaler(), LogisticRegression())
    accuracy = cross_val_score(model, means, grades, cv=5).mean()
    assert accuracy < 1 / num_grades + 0.05


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        ({"task": "dme"}, "no drawing for this task: dme; use one of dr, amd, arteriosclerosis"),
        ({"grade": 5}, "dr has no such grade: 5; use 0..4"),
        ({"grade": -1}, "dr has no such grade: -1"),
        ({"size": 16}, "use at least 32"),
    ],
)
def test_what_cannot_be_drawn_is_refused(wrong: dict[str, int | str], message: str) -> None:
    arguments = {"size": 64, "task": "dr", "grade": 0, "seed": 0, "index": 0} | wrong
    with pytest.raises(DataError) as error:
        draw(**arguments)  # type: ignore[arg-type]
    assert message in str(error.value)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    out = str(tmp_path_factory.mktemp("synthetic") / "set")
    calls: list[tuple[int, int]] = []
    write_synthetic(
        out, tasks=("dr", "amd"), images_per_task=60, image_size=48, seed=1, progress=lambda *call: calls.append(call)
    )
    assert calls == [(done, 120) for done in range(1, 121)]
    return out


def test_each_image_has_the_grade_of_one_task_and_normal_is_most_frequent(folder: str) -> None:
    dataset = ShardedDataset.open(folder)
    has_grade = np.stack([dataset.grades["dr"] >= 0, dataset.grades["amd"] >= 0])
    assert (has_grade.sum(0) == 1).all()
    np.testing.assert_array_equal(dataset.has_mask, has_grade[0])
    for task in ("dr", "amd"):
        counts = np.bincount(dataset.grades[task][dataset.grades[task] >= 0])
        assert counts.sum() == 60
        assert counts[0] == counts.max()
        assert counts[0] > counts[1:].max()
        assert np.ptp(counts[1:]) <= 1


def test_patients_have_one_or_two_eyes_in_one_split(folder: str) -> None:
    dataset = ShardedDataset.open(folder)
    splits, sizes = defaultdict(set), defaultdict(int)
    for group, split in zip(dataset.group_ids, dataset.splits, strict=True):
        splits[group].add(split)
        sizes[group] += 1
    assert all(len(found) == 1 for found in splits.values())
    assert set(sizes.values()) == {1, 2}
    counts = dataset.manifest.counts
    for task in ("dr", "amd"):
        totals = [sum(counts[split][task]) for split in ("train", "validation", "test")]
        np.testing.assert_allclose(totals, [30, 15, 15], atol=3)
        assert min(min(counts[split][task]) for split in counts) > 0


def test_stored_images_and_masks_are_those_that_were_drawn(folder: str) -> None:
    dataset = ShardedDataset.open(folder)
    for row in range(0, len(dataset), 7):
        _, task, index = dataset.image_ids[row].split("-")
        sample = draw(size=48, task=task, grade=int(dataset.grades[task][row]), seed=1, index=int(index))
        image = simplejpeg.decode_jpeg(bytes(dataset.image(row)))
        assert np.abs(image.astype(int) - sample.image.astype(int)).mean() < 6
        stored = dataset.mask(row)
        if sample.mask is None:
            assert stored is None
        else:
            assert stored is not None
            np.testing.assert_array_equal(decode_mask(stored, 48, 48), sample.mask)


def test_the_fingerprint_depends_on_the_seed_and_not_on_the_workers(tmp_path: Path) -> None:
    def fingerprint(name: str, seed: int, num_workers: int) -> str:
        return write_synthetic(
            str(tmp_path / name),
            tasks=["arteriosclerosis"],
            images_per_task=20,
            image_size=32,
            seed=seed,
            encoding="raw",
            num_workers=num_workers,
        ).fingerprint

    alone = fingerprint("alone", 1, 1)
    assert fingerprint("pooled", 1, 2) == alone
    assert fingerprint("other", 2, 1) != alone


@pytest.mark.parametrize(
    ("wrong", "message"),
    [({"tasks": ["glaucoma"]}, "no drawing for this task"), ({"images_per_task": 19}, "use at least 20")],
)
def test_a_data_set_that_cannot_be_drawn_leaves_nothing_behind(
    wrong: dict[str, object], message: str, tmp_path: Path
) -> None:
    arguments: dict[str, object] = {"tasks": ["dr"], "images_per_task": 40, "image_size": 32, "seed": 0} | wrong
    with pytest.raises(DataError, match=message):
        write_synthetic(str(tmp_path / "set"), **arguments)  # type: ignore[arg-type]
    assert not (tmp_path / "set").exists()
