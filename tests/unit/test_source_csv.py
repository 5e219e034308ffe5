"""Photographs listed in a table whose columns the user names: rows, refused lines, errors."""

from pathlib import Path

import pytest

from retina_ray.data.schema import SPLIT_WORDS
from retina_ray.data.sources.base import SourceRow, tasks_of
from retina_ray.data.sources.csv_table import read_csv
from retina_ray.errors import DataError


def table(folder: Path, text: str, *, images: int = 4) -> Path:
    (folder / "photos").mkdir()
    for number in range(images):
        (folder / f"photos/eye_{number:02d}.jpg").touch()
    path = folder / "labels.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


COLUMNS = {"image": "file", "dr": "dr_grade"}


def test_csv_rows(tmp_path):
    path = table(
        tmp_path,
        "file,dr_grade,amd,patient,part,eye\n"
        "photos/eye_00.jpg,2,,p1,test,OD\n"
        '"photos/eye_01.jpg", 0.0 ,3,p1,test,left\n'
        "photos/eye_02.jpg,,1,,,\n",
    )
    columns = {**COLUMNS, "amd": "amd", "group": "patient", "split": "part", "laterality": "eye"}
    first, second, third = read_csv(path, columns=columns)[:3]
    assert first == SourceRow(
        image=tmp_path / "photos/eye_00.jpg",
        image_id="photos/eye_00.jpg",
        group_id="p1",
        source="labels",
        grades={"dr": 2, "amd": None},
        split="test",
        laterality="right",
        line=2,
    )
    assert (second.grades, second.laterality, second.line) == ({"dr": 0, "amd": 3}, "left", 3)
    assert (third.grades, third.group_id, third.split) == ({"dr": None, "amd": 1}, "photos/eye_02.jpg", None)
    assert [task.name for task in tasks_of([first, second, third])] == ["dr", "amd"]
    renamed = read_csv(path, columns={**columns, "id": "amd"}, name="clinic")
    assert (renamed[1].image_id, renamed[1].source) == ("3", "clinic")


ROW = "photos/eye_00.jpg,1\n"


@pytest.mark.parametrize(
    ("text", "columns", "message"),
    [
        ("file,dr_grad\n" + ROW, COLUMNS, "lacks a column: dr_grade; did you mean 'dr_grad'"),
        ("file,zzz\n" + ROW, COLUMNS, "lacks a column: dr_grade; it has file, zzz"),
        ("file,dr_grade\n", COLUMNS, "no rows"),
        ("", COLUMNS, "the table is empty: .*labels.csv; export it again"),
        (ROW, {"image": "file"}, "of the images and of a task must be named: image=file; write --columns image="),
        (ROW, {}, "must be named: none is; write --columns image="),
        ("file,dr_grade\nno.jpg,1\nno2.jpg,1\n", COLUMNS, r"none of the 2 images .*no.jpg; paths are relative"),
    ],
)
def test_csv_errors_name_what_is_missing(tmp_path, text, columns, message):
    path = table(tmp_path, text, images=2)
    with pytest.raises(DataError, match=message):
        read_csv(path, columns=columns)


@pytest.mark.parametrize(
    ("header", "line", "columns", "reason"),
    [
        ("file,dr", "photos/eye_01.jpg,mild", {}, "no such grade: mild of task dr is no whole number"),
        ("file,dr", "photos/eye_01.jpg,1.5", {}, "no such grade: 1.5 of task dr is no whole number"),
        ("file,dr", "photos/eye_01.jpg,inf", {}, "no such grade: inf of task dr is no whole number"),
        ("file,dr", "photos/eye_01.jpg,5", {}, "no such grade: task dr has 0..4, not 5"),
        ("file,dr", "photos/eye_01.jpg,-1", {}, "no such grade: task dr has 0..4, not -1"),
        ("file,hr", "photos/eye_01.jpg,128", {"dr": None, "hr": "hr"}, "no such grade: task hr has 0..127, not 128"),
        ("file,dr", "photos/no.jpg,1", {}, "label without image: there is no no.jpg"),
        ("file,dr", ",1", {}, "label without image: the line names none"),
        ("file,dr", "photos/eye_01.jpg", {}, "unreadable line: it has fewer or more cells than the header"),
        ("file,dr", "photos/eye_01.jpg,1,2", {}, "unreadable line: it has fewer or more cells than the header"),
        ("file,dr,s", "photos/eye_01.jpg,1,held", {"split": "s"}, "no such split: held, known are train, training"),
        ("file,dr,s", "photos/eye_01.jpg,1,up", {"laterality": "s"}, "no such laterality: up"),
    ],
)
def test_csv_lines_that_cannot_be_used_say_why(tmp_path, header, line, columns, reason):
    path = table(tmp_path, f"{header}\nphotos/eye_00.jpg,1{',' * (header.count(',') - 1)}\n{line}\n", images=2)
    mapping = {key: value for key, value in ({"image": "file", "dr": "dr"} | columns).items() if value}
    first, second, *_ = read_csv(path, columns=mapping)
    assert first.refused is None
    assert second.refused.startswith(reason)
    assert (second.line, second.grades, second.split) == (3, {}, None)


@pytest.mark.parametrize("word", SPLIT_WORDS)
def test_a_split_may_be_any_word_that_a_split_file_may_use(tmp_path, word):
    path = table(tmp_path, f"file,dr,s\nphotos/eye_00.jpg,1,{word.title()}\n", images=1)
    (row,) = read_csv(path, columns={"image": "file", "dr": "dr", "split": "s"})
    assert (row.split, row.refused) == (SPLIT_WORDS[word], None)


def test_csv_photographs_that_no_line_names_are_listed(tmp_path):
    path = table(tmp_path, "file,dr\nphotos/eye_00.jpg,1\n", images=3)
    _, *others = read_csv(path, columns={"image": "file", "dr": "dr"})
    assert [(row.image.name, row.refused) for row in others] == [
        (f"eye_0{number}.jpg", "image without label: labels.csv does not list it") for number in (1, 2)
    ]


def test_csv_that_cannot_be_read(tmp_path):
    with pytest.raises(DataError, match="cannot be read"):
        read_csv(tmp_path / "none.csv", columns=COLUMNS)
    (tmp_path / "binary.csv").write_bytes(b"\xff\xfe\x00\x81")
    with pytest.raises(DataError, match="no CSV in UTF-8"):
        read_csv(tmp_path / "binary.csv", columns=COLUMNS)


def test_tasks_keep_the_order_of_the_columns_whichever_is_graded_first(tmp_path):
    path = table(tmp_path, "file,dr,amd,hr\nphotos/eye_00.jpg,,1,\nphotos/eye_01.jpg,2,,\n")
    rows = read_csv(path, columns={"image": "file", "dr": "dr", "amd": "amd", "hr": "hr"})
    assert [(task.name, task.num_grades) for task in tasks_of(rows)] == [("dr", 5), ("amd", 4), ("hr", 2)]


def test_tasks_need_a_plain_name(tmp_path):
    assert tasks_of([SourceRow(tmp_path / "eye.jpg", "a", "a", "s", {}, masks={})]) == ()
    with pytest.raises(DataError, match="no name for a task: DR grade"):
        tasks_of([SourceRow(tmp_path / "eye.jpg", "a", "a", "s", {"DR grade": 1})])
