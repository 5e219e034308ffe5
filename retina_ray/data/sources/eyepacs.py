"""EyePACS, as Kaggle shipped it in 2015: both eyes of each patient, graded for diabetic retinopathy.

https://www.kaggle.com/c/diabetic-retinopathy-detection/data

``train/10_left.jpeg`` is the left eye of patient 10; ``trainLabels.csv`` names it ``10_left``. The grades of ``test/``
came out after the competition, in a table with the same columns and ``Usage``: Public (the leaderboard shown during the
competition, commonly taken for validation) or Private.
"""

import re
from pathlib import Path

from retina_ray.data.sources.base import SourceRow
from retina_ray.data.sources.photographs import Photographs, need_photographs, row_of, unlabelled
from retina_ray.data.sources.tables import ICDR, Labels, find_table, graded, need_table, read_table
from retina_ray.errors import DataError

SOURCE = "eyepacs"

LABELS: Labels = {"level": ("dr", ICDR)}

SPLIT_OF_USAGE = {"Public": "validation", "Private": "test"}

TRAIN_TABLES = ("trainLabels.csv",)
TEST_TABLES = ("retinopathy_solution.csv", "testLabels.csv")
"""The table of the test grades under the name it came out with, and under the one copies carry."""

_EYE = re.compile(r"(\d+)_(left|right)")


def read_eyepacs(root: Path) -> list[SourceRow]:
    """List the photographs of EyePACS.

    Args:
        root: the folder with ``trainLabels.csv`` and ``train``, and with ``test`` and its table where they are there.

    Returns:
        A row per line, then one per photograph that no line names. Without test grades there is no publisher's split.

    Raises:
        DataError: a table or folder is missing or cannot be read, or a line names no eye of a patient.
    """
    train = need_table(root, TRAIN_TABLES)
    test = find_table(root, TEST_TABLES)
    photographs = need_photographs(train.parent / "train", root / "train")
    rows = _rows(train, photographs, has_test=test is not None)
    rows += unlabelled(photographs, SOURCE, f"{train.name} does not list it")
    test_photographs = Photographs(photographs.folder.parent / "test")
    if test is not None:
        rows += _rows(test, test_photographs, has_test=True)
    reason = f"{test.name} does not list it" if test else f"Kaggle ships none for test; {TEST_TABLES[0]} is missing"
    return rows + unlabelled(test_photographs, SOURCE, reason)


def _rows(table: Path, photographs: Photographs, *, has_test: bool) -> list[SourceRow]:
    is_test = table.name in TEST_TABLES
    rows = []
    for line in read_table(table, columns=("image", "level", *(["Usage"] if is_test else []))):
        name = line.cells["image"]
        eye = _EYE.fullmatch(name)
        if eye is None:
            raise DataError(f"{table}, line {line.number}: no eye of a patient", name, "names are like 10_left")
        grades, refused = graded(line.cells, LABELS)
        split = "train" if has_test else None
        if is_test:
            split = SPLIT_OF_USAGE.get(line.cells["Usage"])
            if split is None:
                refused = f"unknown label: Usage is {line.cells['Usage']}, known are {', '.join(SPLIT_OF_USAGE)}"
        rows.append(
            row_of(
                photographs,
                name,
                source=SOURCE,
                image_id=name,
                group_id=eye[1],
                grades=grades,
                refused=refused,
                split=split,
                laterality=eye[2],
                line=line.number,
            )
        )
    return rows
