"""RFMiD in miniature, as the challenge and IEEE DataPort lay it out.

https://riadd.grand-challenge.org/download-all-classes/ and
https://ieee-dataport.org/open-access/retinal-fundus-multi-disease-image-dataset-rfmid
"""

from pathlib import Path

import pytest

from retina_ray.data.sources.rfmid import read_rfmid
from retina_ray.errors import DataError

HEADER = "ID,Disease_Risk,DR,ARMD,MH,DN\n"
CHALLENGE = {
    "train": ("Training_Set/RFMiD_Training_Labels.csv", "Training_Set/Training"),
    "validation": ("Evaluation_Set/RFMiD_Validation_Labels.csv", "Evaluation_Set/Validation"),
    "test": ("Test_Set/RFMiD_Testing_Labels.csv", "Test_Set/Test"),
}
DATAPORT = {
    "train": ("2. Groundtruths/a. RFMiD_Training_Labels.csv", "1. Original Images/a. Training Set"),
    "validation": ("2. Groundtruths/b. RFMiD_Validation_Labels.csv", "1. Original Images/b. Validation Set"),
    "test": ("2. Groundtruths/c. RFMiD_Testing_Labels.csv", "1. Original Images/c. Testing Set"),
}


def fill(root: Path, layout: dict[str, tuple[str, str]]) -> Path:
    for table, images in layout.values():
        (root / table).parent.mkdir(parents=True, exist_ok=True)
        (root / table).write_text(f"{HEADER}1,1,1,0,0,0\n2,1,0,1,0,0\n3,0,0,0,0,0\n")
        (root / images).mkdir(parents=True)
        for number in (1, 2, 3):
            (root / images / f"{number}.png").write_bytes(f"{images}{number}".encode())
    return root


@pytest.mark.parametrize("layout", [CHALLENGE, DATAPORT], ids=["challenge", "dataport"])
def test_each_part_numbers_its_photographs_from_1_and_evaluation_is_validation(tmp_path: Path, layout):
    rows = read_rfmid(fill(tmp_path, layout))
    assert [row.split for row in rows] == ["train"] * 3 + ["validation"] * 3 + ["test"] * 3
    assert len({row.image_id for row in rows}) == len({row.group_id for row in rows}) == 9
    assert [row.image for row in rows[:4:3]] == [
        tmp_path / layout["train"][1] / "1.png",
        tmp_path / layout["validation"][1] / "1.png",
    ]


def test_there_or_not_is_no_grade_of_task_dr_or_amd(tmp_path: Path):
    rows = read_rfmid(fill(tmp_path, CHALLENGE))[:3]
    assert [row.grades for row in rows] == [
        {"dr_present": 1, "amd_present": 0},
        {"dr_present": 0, "amd_present": 1},
        {"dr_present": 0, "amd_present": 0},
    ]


def test_kaggles_copy_nests_each_folder_in_one_of_its_name(tmp_path: Path):
    fill(tmp_path / "unpacked", CHALLENGE)
    for name in ("Training_Set", "Evaluation_Set", "Test_Set"):
        (tmp_path / name).mkdir()
        (tmp_path / "unpacked" / name).rename(tmp_path / name / name)
    assert len(read_rfmid(tmp_path)) == 9


def test_the_training_archive_alone_is_read(tmp_path: Path):
    fill(tmp_path, {"train": CHALLENGE["train"]})
    assert {row.split for row in read_rfmid(tmp_path)} == {"train"}


def test_what_does_not_fit_together_is_listed(tmp_path: Path):
    fill(tmp_path, {"train": CHALLENGE["train"]})
    (tmp_path / CHALLENGE["train"][0]).write_text(f"{HEADER}1,1,2,0,0,0\n2,,,,,\n4,0,0,0,0,0\n")
    assert [row.refused for row in read_rfmid(tmp_path)] == [
        "unknown label: DR is 2, known are 0, 1",
        "no label: nothing in DR, ARMD",
        "label without image: Training has no 4.png",
        "image without label: RFMiD_Training_Labels.csv does not list it",
    ]


def test_a_copy_that_is_unpacked_twice_is_an_error(tmp_path: Path):
    fill(tmp_path / "one", CHALLENGE)
    fill(tmp_path / "two", CHALLENGE)
    with pytest.raises(DataError, match=r"RFMiD_Training_Labels\.csv is there 2 times"):
        read_rfmid(tmp_path)


def test_a_folder_that_is_no_rfmid_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="this is no RFMiD data set"):
        read_rfmid(tmp_path)
