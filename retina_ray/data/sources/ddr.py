"""DDR: photographs of Chinese hospitals, graded for diabetic retinopathy, some with drawn lesions.

https://github.com/nkicsl/DDR-dataset

``DR_grading/train.txt`` has lines ``007-0004-000.jpg 0`` for the photographs in ``DR_grading/train``, and so have valid
and test. Class 5 is ungradable. ``lesion_segmentation/train/image`` has photographs and ``label/{EX,HE,MA,SE}`` a TIFF
per lesion, named like the photograph; valid calls that folder ``segmentation label``. The 757 photographs with lesions
were chosen among the graded ones and split anew. Patients are not told.
"""

from dataclasses import replace
from pathlib import Path

from retina_ray.data.sources.base import SourceRow
from retina_ray.data.sources.files import read_text
from retina_ray.data.sources.photographs import Photographs, lesion_rows, need_photographs, row_of, unlabelled
from retina_ray.data.sources.tables import ICDR
from retina_ray.errors import DataError

SOURCE = "ddr"

LABELS = {"class": ("dr", ICDR)}

UNGRADABLE = "5"

LESION_FOLDERS = {"MA": "MA", "HM": "HE", "HE": "EX", "SE": "SE"}
"""Our plane -> the publisher's folder: HE there are haemorrhages, EX hard exudates."""

SPLIT_OF_FOLDER = {"train": "train", "valid": "validation", "test": "test"}


def read_ddr(root: Path) -> list[SourceRow]:
    """List the photographs of DDR.

    Args:
        root: the folder with ``DR_grading``, ``lesion_segmentation`` or both.

    Returns:
        A row per photograph. One that both parts hold is one row: the grade of the first, the file, masks and split of
        the second, so that no photograph is in two splits. Then refused rows: photographs that no line names.

    Raises:
        DataError: neither part is there, or a list cannot be read.
    """
    grading, lesions = root / "DR_grading", root / "lesion_segmentation"
    if not (grading.is_dir() or lesions.is_dir()):
        raise DataError("this is no DDR data set", str(root), "name the folder with DR_grading or lesion_segmentation")
    rows: dict[str, SourceRow] = {}
    extra: list[SourceRow] = []
    for folder in SPLIT_OF_FOLDER:
        if (grading / f"{folder}.txt").is_file() or (grading / folder).is_dir():
            listed, unlisted = _graded(grading, folder)
            for row in listed:
                if rows.setdefault(row.image_id, row) is not row:
                    first = rows[row.image_id]
                    reason = f"repeated id: line {first.line} of {first.split} lists it too"
                    extra.append(row.refuse(reason))
            extra += unlisted
    for folder in SPLIT_OF_FOLDER:
        for row in _with_lesions(lesions / folder):
            known = rows.get(row.image_id)
            if row.refused is not None:
                extra.append(row)
            elif known is None:
                rows[row.image_id] = row
            else:
                rows[row.image_id] = replace(row, grades=known.grades, line=known.line)
    return list(rows.values()) + extra


def _graded(grading: Path, folder: str) -> tuple[list[SourceRow], list[SourceRow]]:
    """Return the rows of a list, and those of photographs that it leaves out."""
    table = grading / f"{folder}.txt"
    lines = read_text(table).splitlines()
    photographs = need_photographs(grading / folder)
    rows = []
    task, known = LABELS["class"]
    for number, line in enumerate(lines, start=1):
        if not line.strip():
            continue
        name, _, label = line.strip().rpartition(" ")
        refused = None
        if label == UNGRADABLE:
            refused = f"ungradable: class is {UNGRADABLE}"
        elif label not in known:
            refused = f"unknown label: class is {label}, known are {', '.join([*known, UNGRADABLE])}"
        rows.append(
            row_of(
                photographs,
                name.strip(),
                source=SOURCE,
                image_id=name.strip(),
                grades={task: known.get(label)},
                refused=refused,
                split=SPLIT_OF_FOLDER[folder],
                line=number,
            )
        )
    return rows, unlabelled(photographs, SOURCE, f"{table.name} does not list it")


def _with_lesions(folder: Path) -> list[SourceRow]:
    """Return the rows of the photographs with lesions, and refused ones for lesions without a photograph."""
    label = next(
        (path for path in (folder / "label", folder / "segmentation label") if path.is_dir()), folder / "label"
    )
    masks = {plane: (label / theirs, ".tif") for plane, theirs in LESION_FOLDERS.items()}
    photographs = Photographs(folder / "image")
    return lesion_rows(photographs, masks, source=SOURCE, split=SPLIT_OF_FOLDER[folder.name])
