"""Splits that somebody else has made: which columns and words are understood, and how rows are found."""

from pathlib import Path

import pytest

from retina_ray.data.sources.base import SourceRow
from retina_ray.data.split_file import prescribe, read_split_file, unused
from retina_ray.errors import DataError


def split_file(folder: Path, text: str) -> Path:
    path = folder / "splits.csv"
    path.write_text(text, encoding="utf-8-sig")
    return path


def row(name: str, **changes: object) -> SourceRow:
    return SourceRow(
        **{"image": Path("in") / name, "image_id": name, "group_id": name, "source": "s", "grades": {"dr": 1}} | changes
    )


def test_columns_and_words_in_use_are_understood(tmp_path):
    text = "ImageName,label,Subset\na.jpg,0,training\nb.jpg,1,VAL\nc.jpg,2,test\n\nd.jpg,0,crossval\n"
    found = read_split_file(split_file(tmp_path, text))
    assert found == {"a.jpg": "train", "b.jpg": "validation", "c.jpg": "test", "d.jpg": "validation"}


@pytest.mark.parametrize("name", ["deep/a.jpg", "a.jpg", "a", "other/a.png"])
def test_rows_are_found_by_id_name_or_stem(tmp_path, name):
    path = split_file(tmp_path, f"image,split\n{name},test\n")
    (found,) = prescribe([row("deep/a.jpg", split="train")], read_split_file(path), path)
    assert (found.split, found.refused) == ("test", None)


def test_rows_that_the_file_does_not_name_are_refused(tmp_path):
    path = split_file(tmp_path, "image,split\na.jpg,test\n")
    rows = [row("a.jpg"), row("b.jpg", masks={}), row("c.jpg", grades={}, refused="ungradable: so they say")]
    first, second, third = prescribe(rows, read_split_file(path), path)
    assert first.refused is None
    assert (second.refused, second.grades, second.masks) == ("not in the split file: splits.csv", {}, None)
    assert third.refused == "ungradable: so they say"


def test_names_that_fit_no_photograph_are_told(tmp_path):
    path = split_file(tmp_path, "image,split\nz.jpg,train\na,test\nother/b.jpg,train\ny.jpg,test\n")
    rows = [row("a.jpg"), row("b.jpg", grades={}, refused="ungradable: so they say"), row("c.jpg")]
    assert unused(rows, read_split_file(path)) == ["z.jpg", "y.jpg"]


def test_equal_names_in_different_folders_are_told_apart_by_their_folders(tmp_path):
    rows = [row("Training/a.jpg"), row("Testing/a.jpg")]
    path = split_file(tmp_path, "image,split\nTraining/a.jpg,train\nTesting/a.png,test\n")
    assert [found.split for found in prescribe(rows, read_split_file(path), path)] == ["train", "test"]
    path = split_file(tmp_path, "image,split\na.jpg,train\n")
    with pytest.raises(DataError, match=r"a name that fits in/Training/a.jpg and in/Testing/a.jpg: a.jpg"):
        prescribe(rows, read_split_file(path), path)
    path = split_file(tmp_path, "image,split\nx/b.jpg,train\ny/b.jpg,test\n")
    with pytest.raises(DataError, match=r"several lines that fit b.jpg: x/b.jpg, y/b.jpg"):
        prescribe([row("b.jpg")], read_split_file(path), path)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("image,label\na.jpg,1\n", "lacks a column: split or subset"),
        ("picture,split\na.jpg,train\n", "lacks a column: image or"),
        ("", "lacks a column"),
        ("image,split\na.jpg,holdout\n", "line 2: no such split: holdout"),
        ("image,split\na.jpg\n", "line 2: no such split: empty cell"),
        ("image,split\na.jpg,train\na.jpg,test\n", "line 3: a photograph in two splits: a.jpg"),
        ("image,split\nz.jpg,train\n", "names none of the photographs: z.jpg"),
    ],
)
def test_what_is_wrong_is_said(tmp_path, text, message):
    path = split_file(tmp_path, text)
    with pytest.raises(DataError, match=message):
        prescribe([row("a.jpg")], read_split_file(path), path)
    with pytest.raises(DataError, match="cannot be read"):
        read_split_file(tmp_path / "none.csv")
