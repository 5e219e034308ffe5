"""Photographs sorted into folders by grade: both layouts, what has no grade, errors."""

import pytest

from retina_ray.data.sources.folder import passed_over, read_folder
from retina_ray.errors import DataError


def test_folder_layouts(tmp_path):
    for place in ("dr/0", "dr/3", "amd/1"):
        folder = tmp_path / "set" / place
        folder.mkdir(parents=True)
        (folder / "b.JPG").touch()
        (folder / "a.png").touch()
        (folder / "Thumbs.db").touch()
    rows = read_folder(tmp_path / "set")
    assert [(row.image_id, row.grades) for row in rows] == [
        ("amd/1/a.png", {"amd": 1}),
        ("amd/1/b.JPG", {"amd": 1}),
        ("dr/0/a.png", {"dr": 0}),
        ("dr/0/b.JPG", {"dr": 0}),
        ("dr/3/a.png", {"dr": 3}),
        ("dr/3/b.JPG", {"dr": 3}),
    ]
    assert {row.source for row in rows} == {"set"}
    assert all(row.group_id == row.image_id for row in rows)
    one_task = read_folder(tmp_path / "set" / "dr", task="dr", name="clinic")
    assert [(row.image_id, row.grades) for row in one_task][-1] == ("3/b.JPG", {"dr": 3})
    with pytest.raises(DataError, match=r"of which task is not said: .*/set/dr; add --task NAME"):
        read_folder(tmp_path / "set" / "dr")
    with pytest.raises(DataError, match=r"this folder is no grade: .*/set/amd; leave --task out"):
        read_folder(tmp_path / "set", task="dr")


def test_files_that_are_no_photographs_by_their_names_are_told(tmp_path):
    for name in ("dr/0/a.jpg", "dr/0/b.jfif", "dr/0/c", "dr/1/d.jpg.part", "e.gif", "dr/0/.hidden"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).touch()
    assert [row.image.name for row in read_folder(tmp_path)] == ["a.jpg", "b.jfif"]
    assert [file.name for file in passed_over(tmp_path)] == ["e.gif", "c", "d.jpg.part"]


@pytest.mark.parametrize(
    ("place", "message"),
    [("dr/mild/a.jpg", "no grade: .*mild"), ("dr/0/a.txt", "no photographs")],
)
def test_folder_errors_name_the_folder(tmp_path, place, message):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).touch()
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_folder(tmp_path / "none")


def test_folder_photographs_without_a_grade_say_why(tmp_path):
    for place in ("dr/0/a.jpg", "dr/7/b.jpg", "dr/0/patient/e.jpg", "dr/c.jpg", "d.jpg"):
        (tmp_path / place).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / place).touch()
    found = {row.image.relative_to(tmp_path).as_posix(): row.refused for row in read_folder(tmp_path)}
    assert found == {
        "dr/0/a.jpg": None,
        "dr/7/b.jpg": "no such grade: task dr has 0..4, not 7",
        "dr/0/patient/e.jpg": "image without label: it lies in no folder of a grade",
        "dr/c.jpg": "image without label: it lies in no folder of a grade",
        "d.jpg": "image without label: it lies in no folder of a grade",
    }
