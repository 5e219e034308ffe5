"""ADAM (iChallenge-AMD): photographs with and without age-related macular degeneration.

https://amd.grand-challenge.org

The folder is the label: ``Training400/AMD/A0001.jpg`` and ``Training400/Non-AMD/N0001.jpg``, 400 photographs; the
challenge's validation and test photographs come without one. AMD or not is no grade of task amd, so it has a task of
its own. Lesions are drawn too (drusen, exudate, haemorrhage, scar, others), but those of AMD: no microaneurysms and no
soft exudates were looked for, so they cannot stand for the four planes of a mask and are not read.
"""

from pathlib import Path

from retina_ray.data.sources.base import SourceRow
from retina_ray.data.sources.photographs import Photographs, need_photographs, row_of, unlabelled
from retina_ray.errors import DataError

SOURCE = "adam"

LABELS = {"AMD": ("amd_present", 1), "Non-AMD": ("amd_present", 0)}
"""Folder -> task and grade."""

UNLABELLED_FOLDERS = ("Validation400", "AMD-Validation400", "Test400", "AMD-Test400", "Testing400/Images")
"""Where the challenge's photographs without labels lie, in the copies that have them."""


def read_adam(root: Path) -> list[SourceRow]:
    """List the photographs of ADAM.

    Args:
        root: the folder with ``Training400``, which may lie in another of its name.

    Returns:
        A row per photograph of the training set, which has no publisher's split, and a refused one per photograph
        without a label. Nothing tells which belong to one patient.

    Raises:
        DataError: there is no ``Training400`` with photographs in both folders.
    """
    training = next((path for path in sorted(root.rglob("Training400")) if len(Photographs(path / "AMD"))), None)
    if training is None:
        raise DataError("this is no ADAM data set", str(root), "name the folder with Training400/AMD and Non-AMD")
    rows = []
    for folder, (task, grade) in LABELS.items():
        photographs = need_photographs(training / folder)
        rows += [
            row_of(photographs, path.name, source=SOURCE, image_id=path.stem, grades={task: grade})
            for path in photographs.not_taken()
        ]
    for folder in UNLABELLED_FOLDERS:
        rows += unlabelled(Photographs(root / folder), SOURCE, "the challenge keeps the labels of this part")
    return rows
