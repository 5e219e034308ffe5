"""APTOS 2019 in miniature, as Kaggle lays it out: https://www.kaggle.com/c/aptos2019-blindness-detection/data."""

from pathlib import Path

import pytest

from retina_ray.data.sources.aptos import read_aptos
from retina_ray.errors import DataError


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for name in ("train_images/000c1434d8d7.png", "train_images/001639a390f0.png", "test_images/0005cfc8afb6.png"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_bytes(name.encode())
    (tmp_path / "train.csv").write_text("id_code,diagnosis\n000c1434d8d7,2\n001639a390f0,4\n")
    (tmp_path / "test.csv").write_text("id_code\n0005cfc8afb6\n")
    return tmp_path


def test_ids_are_hashes_without_a_suffix(root: Path):
    first, second = read_aptos(root)[:2]
    assert first.image == root / "train_images" / "000c1434d8d7.png"
    assert (first.grades, second.grades) == ({"dr": 2}, {"dr": 4})
    assert (first.image_id, first.line) == ("aptos/000c1434d8d7", 2)


def test_patients_are_unknown_so_each_photograph_is_a_group_of_its_own_without_a_side(root: Path):
    first, second = read_aptos(root)[:2]
    assert first.group_id != second.group_id
    assert first.laterality is second.laterality is None


def test_the_test_set_has_no_grades_so_it_is_listed_and_no_split_is_prescribed(root: Path):
    rows = read_aptos(root)
    assert [row.split for row in rows] == [None] * 3
    assert rows[2].refused == "image without label: the grades of the test set were never published"
    assert rows[2].grades == {}


def test_a_copy_without_the_test_set_is_read(root: Path):
    (root / "test_images" / "0005cfc8afb6.png").unlink()
    (root / "test_images").rmdir()
    (root / "test.csv").unlink()
    assert [row.refused for row in read_aptos(root)] == [None, None]


def test_a_half_unpacked_archive_lists_what_is_missing(root: Path):
    (root / "train_images" / "001639a390f0.png").unlink()
    assert read_aptos(root)[1].refused == "label without image: train_images has no 001639a390f0"
    (root / "train_images" / "000c1434d8d7.png").unlink()
    with pytest.raises(DataError, match=r"there are no photographs: .*train_images; unpack"):
        read_aptos(root)
