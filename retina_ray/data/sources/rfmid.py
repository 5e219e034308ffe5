"""RFMiD: photographs of an Indian eye hospital with 46 findings, each there or not.

https://ieee-dataport.org/open-access/retinal-fundus-multi-disease-image-dataset-rfmid, licence CC BY 4.0; the same as
three archives of the RIADD challenge: https://riadd.grand-challenge.org/download-all-classes/

Each part numbers its photographs from 1. DR and ARMD are said to be there or not, which is no grade of task dr or amd,
so they have tasks of their own; ``Disease_Risk`` and the other findings are not tasks of ours and are not read.
"""

from pathlib import Path

from retina_ray.data.sources.base import SourceRow
from retina_ray.data.sources.photographs import need_photographs, row_of, unlabelled
from retina_ray.data.sources.tables import ABSENT_PRESENT, Labels, find_table, graded, read_table
from retina_ray.errors import DataError

SOURCE = "rfmid"

LABELS: Labels = {"DR": ("dr_present", ABSENT_PRESENT), "ARMD": ("amd_present", ABSENT_PRESENT)}

PARTS = {
    "train": ("RFMiD_Training_Labels.csv", "a. ", "Training", "1. Original Images/a. Training Set"),
    "validation": ("RFMiD_Validation_Labels.csv", "b. ", "Validation", "1. Original Images/b. Validation Set"),
    "test": ("RFMiD_Testing_Labels.csv", "c. ", "Test", "1. Original Images/c. Testing Set"),
}
"""Split -> the table in the challenge's archives, what IEEE DataPort puts before its name, and the folder of images in
both: beside the table, and beside the table's folder."""


def read_rfmid(root: Path) -> list[SourceRow]:
    """List the photographs of RFMiD.

    Args:
        root: the folder with ``Training_Set``, ``Evaluation_Set`` and ``Test_Set``, as the challenge has it, or with
            "1. Original Images" and "2. Groundtruths", as IEEE DataPort has it; some of the parts, at any depth.

    Returns:
        A row per line, and a refused one per photograph that no line names. Patients are not told.

    Raises:
        DataError: there is no part, or a table or folder is missing or cannot be read.
    """
    rows = []
    for split, (name, prefix, beside, above) in PARTS.items():
        table = find_table(root, (name, prefix + name))
        if table is None:
            continue
        photographs = need_photographs(table.parent / beside, table.parent.parent / above)
        for line in read_table(table, columns=("ID", *LABELS)):
            number = line.cells["ID"]
            grades, refused = graded(line.cells, LABELS)
            rows.append(
                row_of(
                    photographs,
                    f"{number}.png",
                    source=SOURCE,
                    image_id=f"{split}/{number}",
                    grades=grades,
                    refused=refused,
                    split=split,
                    line=line.number,
                )
            )
        rows += unlabelled(photographs, SOURCE, f"{table.name} does not list it")
    if not rows:
        raise DataError("this is no RFMiD data set", str(root), f"name the folder with {PARTS['train'][0]}")
    return rows
