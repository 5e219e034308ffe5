"""ADAM in miniature, as the challenge lays it out: https://amd.grand-challenge.org."""

from pathlib import Path

import pytest

from retina_ray.data.sources.adam import read_adam
from retina_ray.errors import DataError


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(str(path).encode())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("AMD/A0001.jpg", "AMD/A0002.jpg", "Non-AMD/N0001.jpg", "Fovea_location.xlsx"):
        touch(tmp_path / "Training400" / name)
    return tmp_path


def test_the_folder_is_the_label_and_the_spreadsheet_is_of_the_fovea(root: Path):
    rows = read_adam(root)
    assert [(row.image_id, row.grades) for row in rows] == [
        ("adam/A0001", {"amd_present": 1}),
        ("adam/A0002", {"amd_present": 1}),
        ("adam/N0001", {"amd_present": 0}),
    ]


def test_yes_or_no_is_no_grade_of_task_amd(root: Path):
    assert all("amd" not in row.grades for row in read_adam(root))


def test_the_archive_holds_a_folder_of_its_own_name(root: Path, tmp_path: Path):
    (root / "Training400").rename(root / "inner")
    (root / "Training400").mkdir()
    (root / "inner").rename(root / "Training400" / "Training400")
    assert [row.image.name for row in read_adam(tmp_path)] == ["A0001.jpg", "A0002.jpg", "N0001.jpg"]


def test_lesions_of_amd_are_no_masks_of_ours(root: Path):
    touch(root / "Training400-Lesion" / "Lesion_Masks" / "hemorrhage" / "A0001.bmp")
    touch(root / "Training400-Lesion" / "Disc_Masks" / "A0001.bmp")
    assert [row.masks for row in read_adam(root)] == [None] * 3


def test_the_challenges_other_photographs_have_no_label_and_are_listed(root: Path):
    touch(root / "Validation400" / "V0001.jpg")
    row = read_adam(root)[-1]
    assert row.refused == "image without label: the challenge keeps the labels of this part"
    assert {row.split for row in read_adam(root)} == {None}


def test_what_a_mac_leaves_in_an_archive_is_passed_over(root: Path):
    touch(root / "Training400" / "AMD" / "._A0001.jpg")
    touch(root / "__MACOSX" / "Training400" / "AMD" / "._A0001.jpg")
    (root / "unpacked").mkdir()
    (root / "Training400").rename(root / "unpacked" / "Training400")
    assert len(read_adam(root)) == 3


def test_a_folder_that_is_no_adam_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="this is no ADAM data set"):
        read_adam(tmp_path)
    touch(tmp_path / "Training400" / "AMD" / "A0001.jpg")
    with pytest.raises(DataError, match=r"there are no photographs: .*Non-AMD"):
        read_adam(tmp_path)
