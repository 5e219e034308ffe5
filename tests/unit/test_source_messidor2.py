"""Messidor-2 in miniature, as ADCIS and Google lay it out.

https://www.adcis.net/en/third-party/messidor2/ and https://www.kaggle.com/datasets/google-brain/messidor2-dr-grades
"""

from pathlib import Path

import pytest

from retina_ray.data.sources.messidor2 import read_messidor2
from retina_ray.errors import DataError

HEADER = "image_id,adjudicated_dr_grade,adjudicated_dme,adjudicated_gradable\n"
PNG_LEFT, PNG_RIGHT = "20051020_43808_0100_PP.png", "20051020_43832_0100_PP.png"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    (tmp_path / "IMAGES").mkdir()
    for name in (PNG_LEFT, PNG_RIGHT, "IM000147.JPG", "IM000149.JPG"):
        (tmp_path / "IMAGES" / name).write_bytes(name.encode())
    (tmp_path / "messidor_data.csv").write_text(
        f"{HEADER}{PNG_LEFT},0,0,1\n{PNG_RIGHT},3,1,1\nIM000147.jpg,,,0\nIM000149.jpg,2,0,1\n"
    )
    (tmp_path / "messidor-2.csv").write_text(f"{PNG_LEFT};{PNG_RIGHT}\nIM000147.JPG;IM000149.JPG\n")
    return tmp_path


def test_the_table_says_jpg_where_the_file_says_jpg_in_capitals(root: Path):
    rows = read_messidor2(root)
    assert [row.image.name for row in rows] == [PNG_LEFT, PNG_RIGHT, "IM000147.JPG", "IM000149.JPG"]
    assert (rows[3].grades, rows[3].refused) == ({"dr": 2, "dme_referable": 0}, None)


def test_an_ungradable_photograph_has_empty_grades_and_is_listed_as_such(root: Path):
    row = read_messidor2(root)[2]
    assert (row.grades, row.refused, row.line) == ({}, "ungradable: adjudicated_gradable is 0", 4)


def test_grades_that_a_table_with_gaps_shows_as_decimals_are_read(root: Path):
    (root / "messidor_data.csv").write_text(f"{HEADER}{PNG_LEFT},3.0,1.0,1.0\nIM000147.jpg,,,0.0\n")
    first, second = read_messidor2(root)[:2]
    assert first.grades == {"dr": 3, "dme_referable": 1}
    assert second.refused == "ungradable: adjudicated_gradable is 0"


def test_referable_oedema_is_no_grade_of_task_dme(root: Path):
    assert all("dme" not in row.grades for row in read_messidor2(root))


def test_the_eyes_of_an_examination_are_one_group_as_the_semicolon_table_pairs_them(root: Path):
    left, right, *second = read_messidor2(root)
    assert left.group_id == right.group_id
    assert (left.laterality, right.laterality) == ("left", "right")
    assert second[0].group_id == second[1].group_id != left.group_id


def test_without_the_pairs_each_photograph_is_a_group_of_its_own(root: Path):
    (root / "messidor-2.csv").unlink()
    rows = read_messidor2(root)
    assert len({row.group_id for row in rows}) == 4
    assert {row.laterality for row in rows} == {None}


def test_photographs_that_the_grades_leave_out_are_listed(root: Path):
    (root / "messidor_data.csv").write_text(f"{HEADER}{PNG_LEFT},0,0,1\nIM009999.jpg,1,0,1\n")
    reasons = [row.refused for row in read_messidor2(root)]
    assert reasons == [
        None,
        "label without image: IMAGES has no IM009999.jpg",
        *["image without label: messidor_data.csv does not list it"] * 3,
    ]


def test_a_broken_table_of_pairs_is_an_error(root: Path):
    (root / "messidor-2.csv").write_text(f"{PNG_LEFT},{PNG_RIGHT}\n")
    with pytest.raises(DataError, match="line 1: no pair of eyes"):
        read_messidor2(root)
