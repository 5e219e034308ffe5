"""DDR in miniature, as its authors lay it out: https://github.com/nkicsl/DDR-dataset."""

from pathlib import Path

import pytest

from retina_ray.data.sources.ddr import read_ddr
from retina_ray.errors import DataError

GRADED = {
    "train": {"007-0004-000.jpg": 0, "007-0007-000.jpg": 2, "20170323093305605.jpg": 5},
    "valid": {"007-2846-100.jpg": 4},
    "test": {"007-0025-000.jpg": 1},
}
DRAWN = {"train": "007-1782-100", "valid": "007-2846-100", "test": "007-0007-000"}


def touch(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(str(path).encode())


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for split, grades in GRADED.items():
        for name in grades:
            touch(tmp_path / "DR_grading" / split / name)
        text = "".join(f"{name} {grade}\n" for name, grade in grades.items())
        (tmp_path / "DR_grading" / f"{split}.txt").write_text(text)
    for split, stem in DRAWN.items():
        part = tmp_path / "lesion_segmentation" / split
        touch(part / "image" / f"{stem}.jpg")
        for lesion in ("EX", "HE", "MA", "SE"):
            touch(part / ("segmentation label" if split == "valid" else "label") / lesion / f"{stem}.tif")
    return tmp_path


def by_id(root: Path) -> dict:
    return {row.image_id.removeprefix("ddr/"): row for row in read_ddr(root)}


def test_class_5_is_ungradable_and_listed_as_such(root: Path):
    row = by_id(root)["20170323093305605.jpg"]
    assert (row.grades, row.refused, row.line) == ({}, "ungradable: class is 5", 3)


def test_the_lists_have_no_header_and_one_space_and_each_is_a_split(root: Path):
    rows = by_id(root)
    assert rows["007-0004-000.jpg"].image == root / "DR_grading" / "train" / "007-0004-000.jpg"
    assert (rows["007-0004-000.jpg"].grades, rows["007-0004-000.jpg"].split) == ({"dr": 0}, "train")
    assert (rows["007-0025-000.jpg"].grades, rows["007-0025-000.jpg"].split) == ({"dr": 1}, "test")


def test_he_are_haemorrhages_and_ex_hard_exudates(root: Path):
    masks = by_id(root)["007-1782-100.jpg"].masks
    assert {plane: path.parent.name for plane, path in masks.items()} == {
        "MA": "MA",
        "HM": "HE",
        "HE": "EX",
        "SE": "SE",
    }


def test_valid_calls_the_folder_of_lesions_segmentation_label(root: Path):
    row = by_id(root)["007-2846-100.jpg"]
    assert row.masks["MA"] == root / "lesion_segmentation/valid/segmentation label/MA/007-2846-100.tif"
    assert (row.grades, row.split) == ({"dr": 4}, "validation")


def test_a_photograph_in_both_parts_is_one_row_in_the_split_of_its_lesions(root: Path):
    row = by_id(root)["007-0007-000.jpg"]
    assert (row.grades, row.split, row.line) == ({"dr": 2}, "test", 2)
    assert row.image == root / "lesion_segmentation/test/image/007-0007-000.jpg"
    assert len(row.masks) == 4
    assert len(read_ddr(root)) == len(by_id(root)) == 6


def test_a_lesion_that_is_not_drawn_is_left_out_of_the_masks(root: Path):
    (root / "lesion_segmentation/train/label/SE/007-1782-100.tif").unlink()
    assert set(by_id(root)["007-1782-100.jpg"].masks) == {"MA", "HM", "HE"}


def test_either_part_alone_is_read(root: Path):
    (root / "lesion_segmentation").rename(root / "elsewhere")
    assert len(read_ddr(root)) == 5
    (root / "DR_grading").rename(root / "set aside")
    (root / "elsewhere").rename(root / "lesion_segmentation")
    assert [row.grades for row in read_ddr(root)] == [{}, {}, {}]
    (root / "lesion_segmentation").rename(root / "gone")
    with pytest.raises(DataError, match="this is no DDR data set"):
        read_ddr(root)


def test_what_does_not_fit_together_is_listed(root: Path):
    (root / "DR_grading/train.txt").write_text("007-0004-000.jpg 7\n007-9999-000.jpg 1\n")
    (root / "lesion_segmentation/train/image/007-1782-100.jpg").unlink()
    touch(root / "lesion_segmentation/test/image/007-3036-100.jpg")
    reasons = {row.image.name: row.refused for row in read_ddr(root) if row.refused}
    assert reasons == {
        "007-0004-000.jpg": "unknown label: class is 7, known are 0, 1, 2, 3, 4, 5",
        "007-9999-000.jpg": "label without image: train has no 007-9999-000.jpg",
        "20170323093305605.jpg": "image without label: train.txt does not list it",
        "007-0007-000.jpg": "image without label: train.txt does not list it",
        "007-1782-100": "label without image: image has no 007-1782-100",
        "007-3036-100.jpg": "image without label: no lesions of 007-3036-100.jpg are drawn",
    }


def test_a_photograph_that_is_listed_twice_is_used_once_and_listed(root: Path):
    with (root / "DR_grading/train.txt").open("a") as file:
        file.write("007-0004-000.jpg 3\n")
    first, again = (row for row in read_ddr(root) if row.image.name == "007-0004-000.jpg")
    assert (first.grades, first.refused) == ({"dr": 0}, None)
    assert (again.grades, again.refused) == ({}, "repeated id: line 1 of train lists it too")


def test_a_missing_list_is_an_error(root: Path):
    (root / "DR_grading/test.txt").unlink()
    with pytest.raises(DataError, match=r"the table cannot be read: .*test\.txt"):
        read_ddr(root)
