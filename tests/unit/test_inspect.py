"""Inspecting a data set: right counts, and every kind of defect found."""

import json
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from retina_ray.cli.main import run
from retina_ray.data.fundus import prepare
from retina_ray.data.inspect import LESION_COLOURS, contact_sheet, inspect_dataset
from retina_ray.data.masks import encode_mask
from retina_ray.data.schema import KNOWN_TASKS, LESIONS
from retina_ray.data.shards import Row, ShardedDataset, ShardWriter
from retina_ray.errors import DataError, RetinaRayError
from tests.clinic import pixels

SIZE = 64
TASKS = (KNOWN_TASKS["dr"], KNOWN_TASKS["amd"])


def square(colour: int, encoding: str) -> bytes:
    image = np.full((SIZE, SIZE, 3), (colour, 0, 255 - colour), np.uint8)
    return image.tobytes() if encoding == "raw" else simplejpeg.encode_jpeg(image)


def dataset(folder: Path, *, encoding: str = "jpeg", **changes: dict[int, object]) -> ShardedDataset:
    """Twelve rows of two shards; ``changes`` replaces fields of single rows."""
    out = str(folder / encoding)
    with ShardWriter(
        out, tasks=TASKS, image_size=SIZE, encoding=encoding, source="drawn", shard_bytes=6 * (SIZE * SIZE * 3 + 1100)
    ) as writer:
        for index in range(12):
            fields: dict[str, object] = {
                "image_id": f"eye {index}",
                "group_id": f"patient {index // 2}",
                "source": "clinic" if index < 8 else "screening",
                "split": ("train", "train", "train", "validation", "test", "test")[index // 2],
                "image": square(20 * index, encoding),
                "width": SIZE,
                "height": SIZE,
                "sha256": f"{index:064x}",
                "grades": {"dr": index % 5, "amd": None if index % 2 else 1},
                "mask": encode_mask(np.zeros((4, SIZE, SIZE), np.bool_)) if index < 3 else None,
            }
            fields |= {name: values[index] for name, values in changes.items() if index in values}
            writer.add(Row(**fields))
    return ShardedDataset.open(out)


def test_a_sound_data_set_is_counted(tmp_path):
    data = dataset(tmp_path, encoding="raw")
    report = inspect_dataset(data)
    assert report.sound
    assert (report.rows, report.masks, report.image_size, report.encoding) == (12, 3, SIZE, "raw")
    assert report.rows_per_split == {"train": 6, "validation": 2, "test": 4}
    assert report.rows_per_source == {"clinic": 8, "screening": 4}
    assert report.counts == data.manifest.counts
    assert report.counts["train"] == {"dr": [2, 1, 1, 1, 1], "amd": [0, 3, 0, 0]}
    assert report.size_bytes == sum(path.stat().st_size for path in (tmp_path / "raw/shards").iterdir())


def test_duplicates_and_leaks_are_named(tmp_path):
    report = inspect_dataset(
        dataset(tmp_path, image={7: square(40, "jpeg"), 9: square(40, "jpeg")}, group_id={11: "patient 0"})
    )
    assert report.duplicates == (("eye 2", "eye 7", "eye 9"),)
    assert report.leaking_groups == ("patient 0",)
    assert not report.sound


def test_pictures_that_occur_again_in_other_bytes_are_named(tmp_path):
    def picture(quality: int) -> bytes:
        return bytes(simplejpeg.encode_jpeg(prepare(pixels(1), SIZE), quality))

    # eye 2 and eye 4 are in train, eye 9 in test
    report = inspect_dataset(dataset(tmp_path, image={2: picture(95), 4: picture(95), 9: picture(60)}))
    assert report.duplicates == (("eye 2", "eye 4"),)
    assert report.lookalikes == (("eye 2", "eye 9"), ("eye 4", "eye 9"))
    assert report.leaking_pictures == (("eye 2", "eye 9"), ("eye 4", "eye 9"))
    assert not report.sound


def flip_a_byte_of(data: ShardedDataset, row: int, folder: Path) -> str:
    """Damage a row's pixels on disk and return the shard's name."""
    pixels = bytes(data.image(row))
    for path in sorted((folder / "raw/shards").iterdir()):
        content = path.read_bytes()
        if (position := content.find(pixels)) >= 0:
            path.write_bytes(content[:position] + b"\x99" + content[position + 1 :])
            return path.name
    raise AssertionError


def test_damage_is_found_in_the_shard_where_it_is(tmp_path):
    shard = flip_a_byte_of(dataset(tmp_path, encoding="raw"), 10, tmp_path)
    assert shard != "00000.arrow"
    report = inspect_dataset(ShardedDataset.open(str(tmp_path / "raw")))
    assert report.damaged_shards == (shard,)
    assert not report.sound


@pytest.mark.parametrize("encoding", ["raw", "jpeg"])
def test_contact_sheet_shows_each_grade_in_its_line(tmp_path, encoding):
    data = dataset(tmp_path, encoding=encoding)
    path = tmp_path / "new folder" / "sheet.png"
    contact_sheet(data, str(path), per_grade=2, cell=80)
    sheet = np.asarray(Image.open(path).convert("RGB")).astype(int)
    height = 80 + 19  # a cell, its caption and the gaps; five grades of dr, four of amd
    assert 9 * height < sheet.shape[0] < 10 * height
    for grade in range(5):
        line = sheet[grade * height : (grade + 1) * height]
        for column, row in enumerate((grade, grade + 5 + (5 if grade < 2 else 0))):
            pixel = line[height // 2, line.shape[1] - 2 * 84 + column * 84 + 40]
            assert np.abs(pixel - (20 * row, 0, 255 - 20 * row)).max() < 8
        assert (line[:, :150].min(axis=2) < 100).sum() > 100  # the label
    assert (sheet[5 * height : 6 * height, -168:].min(axis=2) > 200).mean() > 0.99  # nobody has amd 0


@pytest.mark.parametrize("tasks", [TASKS, ()])
def test_contact_sheet_shows_ungraded_images_and_outlines_their_lesions(tmp_path, tasks):
    planes = np.zeros((4, SIZE, SIZE), np.bool_)
    planes[LESIONS.index("HE"), 20:40, 20:40] = True
    grey = np.full((SIZE, SIZE, 3), 100, np.uint8).tobytes()
    with ShardWriter(str(tmp_path / "set"), tasks=tasks, image_size=SIZE, encoding="raw", source="drawn") as writer:
        for name, mask in (("drawn", encode_mask(planes)), ("spoilt", b"mask"), ("plain", None)):
            writer.add(Row(name, name, "drawn", "train", grey, SIZE, SIZE, "0" * 64, grades={}, mask=mask))
    contact_sheet(ShardedDataset.open(str(tmp_path / "set")), str(tmp_path / "sheet.png"), per_grade=3, cell=SIZE)
    sheet = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB"))
    top, left = sum(task.num_grades for task in tasks) * (SIZE + 19) + 4, sheet.shape[1] - 3 * (SIZE + 4)
    outlined, spoilt, plain = (sheet[top : top + SIZE, left + column * (SIZE + 4) :][:, :SIZE] for column in range(3))
    green = (outlined == LESION_COLOURS["HE"]).all(axis=2)
    assert green[19, 19:41].all()
    assert green.sum() == 4 * 21
    assert (outlined[~green] == 100).all()
    assert (plain == 100).all()
    assert (spoilt == 255).all(axis=2).mean() > 0.8


def test_contact_sheet_marks_a_damaged_image(tmp_path):
    flip_a_byte_of(dataset(tmp_path, encoding="raw"), 0, tmp_path)
    contact_sheet(ShardedDataset.open(str(tmp_path / "raw")), str(tmp_path / "sheet.png"), per_grade=1, cell=80)
    first = np.asarray(Image.open(tmp_path / "sheet.png").convert("RGB")).astype(int)[:80, -84:]
    assert (first == 255).all(axis=2).mean() > 0.8
    assert ((first[..., 0] > 200) & (first[..., 1] < 100)).sum() > 20


def test_a_sheet_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match=r"cannot be written to: .*sheet\.png"):
        contact_sheet(dataset(tmp_path), str(tmp_path / "file" / "sheet.png"))


@pytest.mark.parametrize(("name", "image_format"), [("a.png", "PNG"), ("a.jpg", "JPEG"), ("a.JPEG", "JPEG")])
def test_a_sheet_is_what_its_name_says(tmp_path, name, image_format):
    contact_sheet(dataset(tmp_path), str(tmp_path / name))
    with Image.open(tmp_path / name) as sheet:
        assert sheet.format == image_format


@pytest.mark.parametrize(
    ("address", "message"),
    [("sheet.gif", "PNG or JPEG file: sheet.gif; end it in .png"), ("s3://sheet.png", "names no bucket")],
)
def test_a_sheet_that_cannot_be_is_refused(tmp_path, monkeypatch, address, message):
    data = dataset(tmp_path)
    monkeypatch.chdir(tmp_path)
    before = sorted(tmp_path.iterdir())
    with pytest.raises(RetinaRayError, match=message):
        contact_sheet(data, address)
    assert sorted(tmp_path.iterdir()) == before


def test_a_damaged_shard_fails_the_command_after_its_report(tmp_path, capsys):
    data = dataset(tmp_path, encoding="raw")
    folder = str(tmp_path / "raw")
    assert run(["data", "inspect", folder]) == 0
    shard = flip_a_byte_of(data, 10, tmp_path)
    assert run(["data", "inspect", folder]) == 2
    assert f"a damaged shard, make the data set again: {shard}" in capsys.readouterr().out
    assert run(["data", "inspect", folder, "--json"]) == 2
    assert json.loads(capsys.readouterr().out)["damaged_shards"] == [shard]
