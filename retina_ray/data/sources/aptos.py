"""APTOS 2019 Blindness Detection: photographs of Aravind Eye Hospital, graded for diabetic retinopathy.

https://www.kaggle.com/c/aptos2019-blindness-detection/data

``train.csv`` names ``train_images/000c1434d8d7.png`` by ``000c1434d8d7``; ``test.csv`` lists ``test_images`` without a
grade, none was ever published. Ids are hashes: nothing tells which photographs belong to one patient, and several
photographs are there twice, some under two grades (ingest finds those).
"""

from pathlib import Path

from retina_ray.data.sources.base import SourceRow
from retina_ray.data.sources.photographs import Photographs, need_photographs, row_of, unlabelled
from retina_ray.data.sources.tables import ICDR, Labels, graded, need_table, read_table

SOURCE = "aptos"

LABELS: Labels = {"diagnosis": ("dr", ICDR)}


def read_aptos(root: Path) -> list[SourceRow]:
    """List the photographs of APTOS 2019.

    Args:
        root: the folder with ``train.csv`` and ``train_images``, and ``test_images`` where it is there.

    Returns:
        A row per line of ``train.csv``, then a refused one per photograph without a grade, the whole test set included.
        No row has a split: the publisher's test set has no grades.

    Raises:
        DataError: the table or folder is missing, or cannot be read.
    """
    table = need_table(root, ("train.csv",))
    photographs = need_photographs(table.parent / "train_images", root / "train_images")
    rows = []
    for line in read_table(table, columns=("id_code", "diagnosis")):
        name = line.cells["id_code"]
        grades, refused = graded(line.cells, LABELS)
        rows.append(
            row_of(photographs, name, source=SOURCE, image_id=name, grades=grades, refused=refused, line=line.number)
        )
    rows += unlabelled(photographs, SOURCE, "train.csv does not list it")
    test = Photographs(photographs.folder.parent / "test_images")
    return rows + unlabelled(test, SOURCE, "the grades of the test set were never published")
