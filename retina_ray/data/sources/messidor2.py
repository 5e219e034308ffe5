"""Messidor-2: examinations of two eyes, graded for diabetic retinopathy and referable macular oedema by adjudication.

Photographs and ``messidor-2.csv``, the pairs of eyes: https://www.adcis.net/en/third-party/messidor2/
Grades, ``messidor_data.csv``: https://www.kaggle.com/datasets/google-brain/messidor2-dr-grades

The photographs come without grades; Google's were made later and name the files with other suffixes and case than they
have (``.jpg`` for ``.JPG``). Macular oedema is judged referable or not, which is no grade of task dme: it says nothing
of exudates farther than one disc diameter from the fovea.
"""

import csv
from pathlib import Path

from retina_ray.data.sources.base import SourceRow
from retina_ray.data.sources.photographs import need_photographs, row_of, unlabelled
from retina_ray.data.sources.tables import ABSENT_PRESENT, ICDR, Labels, find_table, graded, need_table, read_table
from retina_ray.errors import DataError

SOURCE = "messidor2"

LABELS: Labels = {"adjudicated_dr_grade": ("dr", ICDR), "adjudicated_dme": ("dme_referable", ABSENT_PRESENT)}

GRADES = "messidor_data.csv"
PAIRS = "messidor-2.csv"


def read_messidor2(root: Path) -> list[SourceRow]:
    """List the photographs of Messidor-2.

    Args:
        root: the folder with ``IMAGES`` and ``messidor_data.csv``; with ``messidor-2.csv`` too, the two eyes of an
            examination are one group, else each photograph is a group of its own.

    Returns:
        A row per line of the grades, then one per photograph that none names. There are no publisher's splits.

    Raises:
        DataError: a table or folder is missing, or cannot be read.
    """
    table = need_table(root, (GRADES,))
    photographs = need_photographs(root / "IMAGES", table.parent / "IMAGES")
    pairs = find_table(root, (PAIRS,))
    eyes = _eyes(pairs) if pairs is not None else {}
    rows = []
    for line in read_table(table, columns=("image_id", *LABELS, "adjudicated_gradable")):
        name = line.cells["image_id"]
        grades, refused = graded(line.cells, LABELS)
        if line.cells["adjudicated_gradable"].removesuffix(".0") == "0":
            refused = "ungradable: adjudicated_gradable is 0"
        examination, laterality = eyes.get(_stem(name), (None, None))
        rows.append(
            row_of(
                photographs,
                name,
                source=SOURCE,
                image_id=name,
                group_id=examination,
                grades=grades,
                refused=refused,
                laterality=laterality,
                line=line.number,
            )
        )
    return rows + unlabelled(photographs, SOURCE, f"{GRADES} does not list it")


def _eyes(pairs: Path) -> dict[str, tuple[str, str]]:
    """Return the examination, named by its left eye, and the side of each photograph by its stem."""
    eyes: dict[str, tuple[str, str]] = {}
    try:
        with pairs.open(encoding="utf-8-sig", newline="") as file:
            for number, cells in enumerate(csv.reader(file, delimiter=";"), start=1):
                if len(cells) != 2:
                    raise DataError(f"{pairs}, line {number}: no pair of eyes", ";".join(cells), "write left;right")
                left, right = map(_stem, cells)
                eyes |= {left: (left, "left"), right: (left, "right")}
    except (OSError, UnicodeDecodeError) as error:
        raise DataError("the pairs of eyes cannot be read", f"{pairs} ({error})", "download it again") from error
    return eyes


def _stem(name: str) -> str:
    return Path(name.strip()).stem.lower()
