"""EyePACS in miniature, as Kaggle lays it out: https://www.kaggle.com/c/diabetic-retinopathy-detection/data."""

from pathlib import Path

import pytest

from retina_ray.data.sources.eyepacs import read_eyepacs
from retina_ray.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("train/10_left.jpeg", "train/10_right.jpeg", "train/13_left.jpeg", "test/1_left.jpeg"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "trainLabels.csv").write_text("image,level\n10_left,0\n10_right,3\n13_left,4\n")
    return tmp_path


def with_test_grades(root: Path, name: str = "retinopathy_solution.csv") -> None:
    (root / "test" / "1_right.jpeg").write_bytes(b"right")
    (root / "test" / "2_left.jpeg").write_bytes(b"another")
    (root / name).write_text("image,level,Usage\n1_left,0,Private\n1_right,1,Private\n2_left,2,Public\n")


def test_names_in_the_table_have_no_suffix_and_files_end_in_jpeg(root: Path):
    rows = [row for row in read_eyepacs(root) if row.refused is None]
    assert [row.image for row in rows] == [root / "train" / f"{eye}.jpeg" for eye in ("10_left", "10_right", "13_left")]
    assert [row.grades for row in rows] == [{"dr": 0}, {"dr": 3}, {"dr": 4}]
    assert [row.line for row in rows] == [2, 3, 4]


def test_both_eyes_of_a_patient_are_one_group_and_keep_their_side(root: Path):
    left, right, other = read_eyepacs(root)[:3]
    assert left.group_id == right.group_id == "eyepacs/10"
    assert other.group_id == "eyepacs/13"
    assert (left.laterality, right.laterality) == ("left", "right")


def test_kaggle_ships_no_test_grades_so_the_test_set_is_listed_and_no_split_is_prescribed(root: Path):
    *train, test = read_eyepacs(root)
    assert {row.split for row in train} == {None}
    assert test.image == root / "test" / "1_left.jpeg"
    assert test.refused == "image without label: Kaggle ships none for test; retinopathy_solution.csv is missing"


@pytest.mark.parametrize("name", ["retinopathy_solution.csv", "testLabels.csv"])
def test_usage_of_the_later_test_table_is_the_split(root: Path, name: str):
    with_test_grades(root, name)
    rows = read_eyepacs(root)
    assert [row.refused for row in rows] == [None] * 6
    assert [row.split for row in rows] == ["train"] * 3 + ["test", "test", "validation"]
    assert len({row.image_id for row in rows}) == 6


def test_a_line_without_a_photograph_and_a_photograph_without_a_line_are_both_listed(root: Path):
    (root / "train" / "13_left.jpeg").rename(root / "train" / "14_left.jpeg")
    missing, extra = read_eyepacs(root)[2:4]
    assert missing.refused == "label without image: train has no 13_left"
    assert missing.line == 4
    assert extra.refused == "image without label: trainLabels.csv does not list it"


def test_a_level_beyond_4_and_an_unknown_usage_are_refused(root: Path):
    (root / "trainLabels.csv").write_text("image,level\n10_left,5\n10_right,3\n13_left,\n")
    with_test_grades(root)
    (root / "retinopathy_solution.csv").write_text("image,level,Usage\n1_left,0,Ignored\n")
    reasons = [row.refused for row in read_eyepacs(root) if row.line]
    assert reasons == [
        "unknown label: level is 5, known are 0, 1, 2, 3, 4",
        None,
        "no label: nothing in level",
        "unknown label: Usage is Ignored, known are Public, Private",
    ]


def test_what_is_no_eyepacs_says_what_it_wants(root: Path):
    (root / "trainLabels.csv").write_text("image,level\n000c1434d8d7,2\n")
    with pytest.raises(DataError, match="line 2: no eye of a patient: 000c1434d8d7; names are like 10_left"):
        read_eyepacs(root)
    (root / "trainLabels.csv").write_text("image,lvl\n10_left,2\n")
    with pytest.raises(DataError, match="lacks a column: level; did you mean 'lvl'"):
        read_eyepacs(root)
    (root / "trainLabels.csv").unlink()
    with pytest.raises(DataError, match=r"put trainLabels\.csv into this folder"):
        read_eyepacs(root)
    with pytest.raises(DataError, match="there is no such folder"):
        read_eyepacs(root / "nowhere")
