"""IDRiD: photographs of an Indian eye clinic, graded for retinopathy and macular oedema, some with drawn lesions.

https://ieee-dataport.org/open-access/indian-diabetic-retinopathy-image-dataset-idrid, licence CC BY 4.0

Part B has a CSV file each for training and testing, whose header ends in unnamed columns and in a space ("Risk of
macular edema "); both number their photographs from IDRiD_001. Part A numbers its own from IDRiD_01 and draws lesions
in TIFF files, one per lesion that is there: HE are haemorrhages, EX hard exudates. Part C (localisation) is not read.
"""

from pathlib import Path

from retina_ray.data.sources.base import SourceRow
from retina_ray.data.sources.photographs import Photographs, lesion_rows, need_photographs, row_of, unlabelled
from retina_ray.data.sources.tables import ICDR, Labels, find_table, graded, read_table
from retina_ray.errors import DataError

SOURCE = "idrid"

LABELS: Labels = {
    "Retinopathy grade": ("dr", ICDR),
    "Risk of macular edema": ("dme", {"0": 0, "1": 1, "2": 2}),
}

PARTS = {
    "train": ("a. Training Set", "a. IDRiD_Disease Grading_Training Labels.csv"),
    "test": ("b. Testing Set", "b. IDRiD_Disease Grading_Testing Labels.csv"),
}
"""Split -> the publisher's folder, in part A and in part B, and the table of part B."""

LESION_FOLDERS = {
    "MA": ("1. Microaneurysms", "_MA.tif"),
    "HM": ("2. Haemorrhages", "_HE.tif"),
    "HE": ("3. Hard Exudates", "_EX.tif"),
    "SE": ("4. Soft Exudates", "_SE.tif"),
}
"""Our plane -> the publisher's folder and the ending of its files. "5. Optic Disc" is no lesion and not read."""

IMAGES = "1. Original Images"
MASKS = "2. All Segmentation Groundtruths"


def read_idrid(root: Path) -> list[SourceRow]:
    """List the photographs of IDRiD.

    Args:
        root: the folder with "A. Segmentation", "B. Disease Grading" or both; each may lie in a folder of its own name.

    Returns:
        A row per line of part B, refused ones for its photographs without a line, and a row per photograph of part A,
        with masks and no grades. A photograph in both parts is two rows of equal files, which ingest joins.

    Raises:
        DataError: neither part is there, or a table or folder of part B is missing or cannot be read.
    """
    rows = []
    for split, (folder, name) in PARTS.items():
        table = find_table(root, (name,))
        if table is not None:
            rows += _graded(table, folder, split)
    segmentation = next(root.rglob(MASKS), None)
    if segmentation is not None:
        for split, (folder, _) in PARTS.items():
            rows += _with_lesions(segmentation.parent, folder, split)
    if not rows:
        raise DataError("this is no IDRiD data set", str(root), f"name the folder with {PARTS['train'][1]} or {MASKS}")
    return rows


def _graded(table: Path, folder: str, split: str) -> list[SourceRow]:
    photographs = need_photographs(table.parent.parent / IMAGES / folder)
    rows = []
    for line in read_table(table, columns=("Image name", *LABELS)):
        grades, refused = graded(line.cells, LABELS)
        rows.append(
            row_of(
                photographs,
                line.cells["Image name"],
                source=SOURCE,
                image_id=f"grading/{split}/{line.cells['Image name']}",
                grades=grades,
                refused=refused,
                split=split,
                line=line.number,
            )
        )
    return rows + unlabelled(photographs, SOURCE, f"{table.name} does not list it")


def _with_lesions(part: Path, folder: str, split: str) -> list[SourceRow]:
    masks = {plane: (part / MASKS / folder / name, ending) for plane, (name, ending) in LESION_FOLDERS.items()}
    photographs = Photographs(part / IMAGES / folder)
    return lesion_rows(photographs, masks, source=SOURCE, prefix="segmentation/", split=split)
