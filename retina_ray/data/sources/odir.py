"""ODIR-5K: both eyes of each patient, with diagnoses in words.

https://odir2019.grand-challenge.org/dataset/ (the challenge), https://github.com/nkicsl/OIA-ODIR (all of its parts),
https://www.kaggle.com/datasets/andrewmvd/ocular-disease-recognition-odir5k (the training part, as ``full_df.csv``)

A line is a patient; in ``full_df.csv`` it is repeated for each eye. The columns N, D, G, C, A, H, M, O are of both eyes
together, so grades come from each eye's own keywords, of which a cell holds several, between commas of full or of usual
width. Tables in ``.xlsx`` must be exported as CSV in UTF-8 beside themselves.
"""

import re
from pathlib import Path

from retina_ray.data.sources.base import SourceRow
from retina_ray.data.sources.photographs import Photographs, need_photographs, row_of, unlabelled
from retina_ray.data.sources.tables import find_table, read_table
from retina_ray.errors import DataError

SOURCE = "odir"

KEYWORDS = {
    "normal fundus": {"dr": 0, "dr_present": 0, "amd": 0, "amd_present": 0},
    "mild nonproliferative retinopathy": {"dr": 1, "dr_present": 1},
    "moderate non proliferative retinopathy": {"dr": 2, "dr_present": 1},
    "severe nonproliferative retinopathy": {"dr": 3, "dr_present": 1},
    "proliferative diabetic retinopathy": {"dr": 4, "dr_present": 1},
    "severe proliferative diabetic retinopathy": {"dr": 4, "dr_present": 1},
    "diabetic retinopathy": {"dr_present": 1},
    "wet age-related macular degeneration": {"amd": 3, "amd_present": 1},
    "dry age-related macular degeneration": {"amd_present": 1},
    "age-related macular degeneration": {"amd_present": 1},
}
"""Keyword -> the grade it states, per task. Dry AMD does not tell the size of drusen, so it has no grade of task amd;
the tasks ``_present`` have the grades 0 no and 1 yes. Of several keywords the highest grade holds."""

UNSURE = {
    "suspected diabetic retinopathy": ("dr", "dr_present"),
    "suspicious diabetic retinopathy": ("dr", "dr_present"),
    "suspected moderate non proliferative retinopathy": ("dr", "dr_present"),
    "drusen": ("amd", "amd_present"),
}
"""Keyword -> tasks that it leaves without a grade, even in a fundus that is called normal otherwise."""

UNGRADABLE = ("no fundus image", "anterior segment image", "low image quality")
"""Keywords of photographs that cannot be used, whatever else is said of them."""

SPLIT_OF_FOLDER = {"Training Set": "train", "Off-site Test Set": "test", "On-site Test Set": "test"}
"""Parts of OIA-ODIR."""

KAGGLE_TABLE = "full_df.csv"
_KAGGLE_FOLDERS = ("ODIR-5K/ODIR-5K", "ODIR-5K", ".")
_SIDES = {"left": ("Left-Fundus", "Left-Diagnostic Keywords"), "right": ("Right-Fundus", "Right-Diagnostic Keywords")}
_COMMAS = re.compile(r"[,\N{FULLWIDTH COMMA}]")


def read_odir(root: Path) -> list[SourceRow]:
    """List the photographs of ODIR-5K.

    Args:
        root: the folder with ``full_df.csv`` and ``ODIR-5K``, as on Kaggle; or with "Training Set", "Off-site Test Set"
            and "On-site Test Set" or some of them, as in OIA-ODIR.

    Returns:
        A row per eye, then one per photograph that no line names. Kaggle's copy has no publisher's split.

    Raises:
        DataError: a table or folder is missing or cannot be read.
    """
    table = find_table(root, (KAGGLE_TABLE,))
    if table is not None:
        parts = [table.parent / folder for folder in _KAGGLE_FOLDERS]
        photographs = need_photographs(*(part / "Training Images" for part in parts))
        test = Photographs(photographs.folder.parent / "Testing Images")
        rows = _rows(table, photographs, split=None)
        return rows + unlabelled(test, SOURCE, "the challenge does not publish the labels of its testing images")
    rows = []
    for folder, split in SPLIT_OF_FOLDER.items():
        if (root / folder).is_dir():
            rows += _rows(_annotation(root / folder), need_photographs(root / folder / "Images"), split=split)
    if not rows:
        raise DataError(
            "this is no ODIR-5K data set", str(root), f"name the folder with {KAGGLE_TABLE} or Training Set"
        )
    return rows


def _annotation(part: Path) -> Path:
    tables = sorted((part / "Annotation").glob("*.csv"))
    if len(tables) != 1:
        fix = "export the English .xlsx there as one CSV file in UTF-8"
        raise DataError(f"the labels of {part.name} are {len(tables)} CSV files", str(part / "Annotation"), fix)
    return tables[0]


def _rows(table: Path, photographs: Photographs, *, split: str | None) -> list[SourceRow]:
    rows = {}
    for line in read_table(table, columns=("ID", *(column for columns in _SIDES.values() for column in columns))):
        for side, (image, keywords) in _SIDES.items():
            name, text = line.cells[image], line.cells[keywords]
            if (name, text) in rows:  # full_df.csv repeats the patient for the other eye
                continue
            grades, refused = _graded(text)
            rows[name, text] = row_of(
                photographs,
                name,
                source=SOURCE,
                image_id=name,
                group_id=line.cells["ID"],
                grades=grades,
                refused=refused,
                split=split,
                laterality=side,
                line=line.number,
            )
    return [*rows.values(), *unlabelled(photographs, SOURCE, f"{table.name} does not list it")]


def _graded(text: str) -> tuple[dict[str, int | None], str | None]:
    """Return the grades that an eye's keywords state, and why the eye cannot be used, else None."""
    keywords = [keyword.strip().lower() for keyword in _COMMAS.split(text) if keyword.strip()]
    bad = [keyword for keyword in keywords if keyword in UNGRADABLE]
    if bad:
        return {}, f"ungradable: {', '.join(bad)}"
    grades: dict[str, int] = {}
    for keyword in keywords:
        for task, grade in KEYWORDS.get(keyword, {}).items():
            grades[task] = max(grade, grades.get(task, grade))
    unsure = {task for keyword in keywords for task in UNSURE.get(keyword, ())}
    sure: dict[str, int | None] = {task: grade for task, grade in grades.items() if task not in unsure}
    return sure, None if sure else f"no label of ours: {', '.join(keywords) or 'no keywords'}"
