"""IDRiD in miniature, as IEEE DataPort lays it out.

https://ieee-dataport.org/open-access/indian-diabetic-retinopathy-image-dataset-idrid
"""

from pathlib import Path

import pytest

from retina_ray.data.sources.idrid import read_idrid
from retina_ray.errors import DataError

TRAIN, TEST = "a. Training Set", "b. Testing Set"
HEADER = "Image name,Retinopathy grade,Risk of macular edema ,,,,,,,,,\n"


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(str(path).encode())


def fill(root: Path) -> None:
    grading = root / "B. Disease Grading"
    for name in (f"{TRAIN}/IDRiD_001", f"{TRAIN}/IDRiD_002", f"{TEST}/IDRiD_001"):
        touch(grading / "1. Original Images" / f"{name}.jpg")
    truths = grading / "2. Groundtruths"
    truths.mkdir()
    (truths / "a. IDRiD_Disease Grading_Training Labels.csv").write_text(
        f"{HEADER}IDRiD_001,3,2,,,,,,,,,\nIDRiD_002,2,1,,,,,,,,,\n,,,,,,,,,,,\n"
    )
    (truths / "b. IDRiD_Disease Grading_Testing Labels.csv").write_text(
        "Image name,Retinopathy grade,Risk of macular edema \nIDRiD_001,4,0\n"
    )
    part = root / "A. Segmentation"
    touch(part / "1. Original Images" / TRAIN / "IDRiD_01.jpg")
    touch(part / "1. Original Images" / TEST / "IDRiD_55.jpg")
    masks = part / "2. All Segmentation Groundtruths"
    for name in (
        "1. Microaneurysms/IDRiD_01_MA",
        "2. Haemorrhages/IDRiD_01_HE",
        "3. Hard Exudates/IDRiD_01_EX",
        "5. Optic Disc/IDRiD_01_OD",
    ):
        touch(masks / TRAIN / f"{name}.tif")
    touch(masks / TEST / "4. Soft Exudates" / "IDRiD_55_SE.tif")


@pytest.fixture
def root(tmp_path: Path) -> Path:
    fill(tmp_path)
    return tmp_path


def test_the_header_ends_in_unnamed_columns_and_in_a_space_and_empty_lines_follow(root: Path):
    rows = [row for row in read_idrid(root) if row.image_id.startswith("idrid/grading/train")]
    assert [row.grades for row in rows] == [{"dr": 3, "dme": 2}, {"dr": 2, "dme": 1}]
    assert [row.refused for row in rows] == [None, None]


def test_training_and_testing_both_begin_with_idrid_001(root: Path):
    train, _, test = read_idrid(root)[:3]
    assert train.image.name == test.image.name == "IDRiD_001.jpg"
    assert (train.image_id, test.image_id) == ("idrid/grading/train/IDRiD_001", "idrid/grading/test/IDRiD_001")
    assert train.group_id != test.group_id
    assert (train.split, test.split) == ("train", "test")


def test_he_are_haemorrhages_and_ex_hard_exudates_and_the_optic_disc_is_no_lesion(root: Path):
    row = next(row for row in read_idrid(root) if row.image.name == "IDRiD_01.jpg")
    assert {plane: path.name for plane, path in row.masks.items()} == {
        "MA": "IDRiD_01_MA.tif",
        "HM": "IDRiD_01_HE.tif",
        "HE": "IDRiD_01_EX.tif",
    }
    assert (row.grades, row.refused, row.split) == ({}, None, "train")


def test_a_lesion_that_is_not_there_has_no_file(root: Path):
    row = next(row for row in read_idrid(root) if row.image.name == "IDRiD_55.jpg")
    assert (set(row.masks), row.split) == ({"SE"}, "test")


def test_the_parts_are_unpacked_into_folders_of_their_own_names(tmp_path: Path):
    fill(tmp_path / "unpacked")
    for part in ("A. Segmentation", "B. Disease Grading"):
        (tmp_path / part).mkdir()
        (tmp_path / "unpacked" / part).rename(tmp_path / part / part)
    assert len(read_idrid(tmp_path)) == 5


def test_what_does_not_fit_together_is_listed(root: Path):
    (root / "B. Disease Grading/1. Original Images" / TRAIN / "IDRiD_002.jpg").rename(
        root / "B. Disease Grading/1. Original Images" / TRAIN / "IDRiD_003.jpg"
    )
    (root / "A. Segmentation/1. Original Images" / TEST / "IDRiD_55.jpg").unlink()
    assert [row.refused for row in read_idrid(root) if row.refused] == [
        "label without image: a. Training Set has no IDRiD_002",
        "image without label: a. IDRiD_Disease Grading_Training Labels.csv does not list it",
        "label without image: b. Testing Set has no IDRiD_55",
    ]


def test_a_folder_without_either_part_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="this is no IDRiD data set"):
        read_idrid(tmp_path)
