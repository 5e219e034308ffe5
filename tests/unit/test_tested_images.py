"""The fingerprint of a task's test images: another image or grade of theirs changes it, nothing else does."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from retina_ray.data.schema import Task
from retina_ray.data.selection import select
from retina_ray.data.shards import Row, ShardedDataset, ShardWriter
from retina_ray.data.tested_images import fingerprint_test

DR = Task(name="dr", grades=("none", "some", "much"))
AMD = Task(name="amd", grades=("none", "some"))
SIZE = 8


def row(number: int, split: str, dr: int | None, amd: int | None) -> Row:
    grades = {"dr": dr, "amd": amd}
    image = np.full((SIZE, SIZE, 3), number, np.uint8).tobytes()
    return Row(
        image_id=f"image-{number}",
        group_id=f"patient-{number}",
        source="tests",
        split=split,
        image=image,
        width=SIZE,
        height=SIZE,
        sha256=f"{number:064x}",
        grades={task: grade for task, grade in grades.items() if grade is not None},
    )


TRAINING = [row(0, "train", 0, 1), row(1, "validation", 1, 0)]
TESTED = [row(2, "test", 0, None), row(3, "test", 1, 0), row(4, "test", 2, 1), row(5, "test", None, 1)]


@pytest.fixture
def found(tmp_path: Path):
    """Returns the fingerprints of a data set with these rows, by task."""
    written = iter(range(100))

    def fingerprints(rows: Sequence[Row], tasks: tuple[Task, ...] = (DR, AMD), **choice: object) -> dict[str, str]:
        folder = str(tmp_path / str(next(written)))
        with ShardWriter(folder, tasks=tasks, image_size=SIZE, encoding="raw", source="tests") as writer:
            for each in rows:
                writer.add(each)
        dataset = ShardedDataset.open(folder)
        selection = select(dataset, tasks=[task.name for task in tasks], **choice)
        return {task.name: fingerprint_test(dataset, selection, task) for task in tasks}

    return fingerprints


def test_neither_order_nor_names_nor_training_images_matter(found) -> None:
    before = found([*TRAINING, *TESTED])
    assert len(set(before.values())) == 2
    assert found([*reversed(TESTED), *TRAINING]) == before
    assert found([*TRAINING, row(6, "train", 2, 0), row(7, "validation", 2, 1), *TESTED]) == before
    assert found([row(8, "train", 2, 0), row(9, "validation", 0, 1), *TESTED]) == before
    assert found([replace(TRAINING[0], grades={"dr": 1, "amd": 0}), TRAINING[1], *TESTED]) == before
    renamed = [replace(each, image_id=f"{each.image_id}.jpg", group_id="one") for each in TESTED]
    assert found([*TRAINING, *renamed]) == before
    more = [row(number, "train", number % 3, number % 2) for number in range(10, 20)]
    assert found([*TRAINING, *more, *TESTED], hide_grades="half", images_per_class=2) == before


def test_each_task_has_its_own(found) -> None:
    before = found([*TRAINING, *TESTED])
    regraded = [TESTED[0], replace(TESTED[1], grades={"dr": 2, "amd": 0}), *TESTED[2:]]
    after = found([*TRAINING, *regraded])
    assert after["dr"] != before["dr"]
    assert after["amd"] == before["amd"]


@pytest.mark.parametrize(
    "tested",
    [
        [replace(TESTED[0], sha256="f" * 64), *TESTED[1:]],
        TESTED[1:],
        [*TESTED, row(6, "test", 0, None)],
        [replace(TESTED[0], split="train"), *TESTED[1:]],
        [*TESTED, replace(TESTED[0], image_id="again")],
    ],
    ids=["another image", "one less", "one more", "moved away", "one twice"],
)
def test_other_test_images_are_another_fingerprint(found, tested: list[Row]) -> None:
    before, after = found([*TRAINING, *TESTED]), found([*TRAINING, *tested])
    assert after["dr"] != before["dr"]
    assert after["amd"] == before["amd"]


def test_grades_of_another_meaning_are_another_fingerprint(found) -> None:
    renamed = Task(name="dr", grades=("none", "much", "some"))
    rows = [*TRAINING, *TESTED]
    assert found(rows)["dr"] != found(rows, (renamed, AMD))["dr"]


def test_folds_are_the_test_images_of_the_run(found) -> None:
    rows = [row(number, "train", number % 3, number % 2) for number in range(30)]
    folds = [found(rows, folds=3, fold=fold)["dr"] for fold in range(3)]
    assert len(set(folds)) == 3
