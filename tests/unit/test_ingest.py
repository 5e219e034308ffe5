"""From photographs and their tables to a data set: what gets in, what is quarantined and why, and that it repeats."""

import csv
import hashlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg

from retina_ray.data.fundus import PREPROCESSING_VERSION, prepare_bytes
from retina_ray.data.ingest import QUARANTINE, IngestSummary, convert, ingest
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.sources.base import SourceRow, tasks_of
from retina_ray.data.sources.csv_table import read_csv
from retina_ray.data.sources.folder import read_folder
from retina_ray.data.splits import leaks
from retina_ray.errors import ConfigError, DataError

SIZE = 64


def photograph(hue: int) -> bytes:
    """A JPEG file of a disc, 120 x 100 pixels; another hue is another file."""
    y, x = np.mgrid[:100, :120]
    disc = np.hypot(x - 60, y - 50) < 45
    return simplejpeg.encode_jpeg((disc[..., None] * np.array([200, 60 + 5 * hue, 30])).astype(np.uint8), 95)


def sample(folder: Path, number: int = 24) -> list[SourceRow]:
    """Rows of sound photographs, two of each patient."""
    folder.mkdir(exist_ok=True)
    rows = []
    for index in range(number):
        path = folder / f"eye_{index:02d}.jpg"
        path.write_bytes(photograph(index))
        rows.append(
            SourceRow(
                image=path,
                image_id=path.stem,
                group_id=f"patient {index // 2}",
                source="clinic",
                grades={"dr": index // 2 % 5},
                laterality=("right", "left")[index % 2],
                line=index + 2,
            )
        )
    return rows


def made(rows: list[SourceRow], out: Path, **options: object) -> IngestSummary:
    return ingest(rows, str(out), **{"tasks": tasks_of(rows), "image_size": SIZE, **options})


def quarantine(out: Path) -> list[dict[str, str]]:
    with (out / QUARANTINE).open(newline="") as file:
        return list(csv.DictReader(file))


def test_convert_depends_on_the_bytes_alone():
    data = photograph(3)
    square = prepare_bytes(data, name="any", size=SIZE)
    raw = convert(data, name="a", image_size=SIZE, encoding="raw")
    assert raw.image == square.tobytes()
    assert raw.sha256 == hashlib.sha256(data).hexdigest()
    jpeg = convert(data, name="b", image_size=SIZE, encoding="jpeg")
    assert np.abs(simplejpeg.decode_jpeg(jpeg.image).astype(float) - square).mean() < 3
    assert len(jpeg.image) < len(raw.image)


def test_all_that_is_known_of_a_row_is_stored(tmp_path):
    rows = sample(tmp_path / "in")
    summary = made(rows, tmp_path / "out", encoding="raw")
    dataset = ShardedDataset.open(str(tmp_path / "out"))
    assert (summary.rows_in, summary.rows_out, summary.quarantined, summary.refusals) == (24, 24, 0, {})
    assert summary.manifest == dataset.manifest
    assert dataset.manifest.preprocessing == PREPROCESSING_VERSION
    assert (dataset.manifest.image_size, dataset.manifest.encoding) == (SIZE, "raw")
    assert dataset.image_ids.tolist() == [row.image_id for row in rows]
    assert dataset.group_ids.tolist() == [row.group_id for row in rows]
    assert set(dataset.sources) == {"clinic"}
    assert dataset.grades["dr"].tolist() == [row.grades["dr"] for row in rows]
    assert leaks(dataset.group_ids.tolist(), dataset.splits.tolist()) == []
    assert [(dataset.splits == split).sum() for split in ("train", "validation", "test")] == [12, 6, 6]
    assert bytes(dataset.image(5)) == prepare_bytes(photograph(5), name="", size=SIZE).tobytes()
    assert quarantine(tmp_path / "out") == []


def test_the_number_of_workers_changes_no_byte(tmp_path):
    rows = sample(tmp_path / "in")
    rows[7].image.write_bytes(b"")
    one, two = (made(rows, tmp_path / name, num_workers=number) for name, number in (("one", 1), ("two", 2)))
    assert one == two
    files = sorted(path.relative_to(tmp_path / "one") for path in (tmp_path / "one").rglob("*.*"))
    assert len(files) == 3
    for file in files:
        assert (tmp_path / "one" / file).read_bytes() == (tmp_path / "two" / file).read_bytes()


def test_bad_photographs_are_listed_counted_and_move_no_other(tmp_path):
    rows = sample(tmp_path / "in")
    made(rows, tmp_path / "sound")
    rows[2].image.write_bytes(b"<html>not found</html>")
    rows[5].image.write_bytes(photograph(5)[:-400])
    rows[9].image.write_bytes(simplejpeg.encode_jpeg(np.zeros((100, 120, 3), np.uint8)))
    rows[11].image.unlink()
    done: list[tuple[int, int]] = []
    summary = made(rows, tmp_path / "out", progress=lambda *position: done.append(position))
    assert (summary.rows_in, summary.rows_out, summary.quarantined) == (24, 20, 4)
    assert summary.refusals == {"damaged image": 2, "no fundus": 1, "unreadable file": 1}
    assert done == [(number, 24) for number in range(1, 25)]
    listed = quarantine(tmp_path / "out")
    assert [(entry["file"], entry["line"], entry["kind"]) for entry in listed] == [
        (str(rows[2].image), "4", "damaged image"),
        (str(rows[5].image), "7", "damaged image"),
        (str(rows[9].image), "11", "no fundus"),
        (str(rows[11].image), "13", "unreadable file"),
    ]
    assert "web page" in listed[0]["reason"]
    assert all(entry["what to do"] for entry in listed)
    sound, rest = (ShardedDataset.open(str(tmp_path / name)) for name in ("sound", "out"))
    kept = np.isin(sound.image_ids, rest.image_ids)
    assert kept.sum() == 20
    assert (sound.splits[kept] == rest.splits).all()


def copied(row: SourceRow, image_id: str, grades: dict[str, int | None], line: int) -> SourceRow:
    path = row.image.with_name(f"{image_id}.jpg")
    path.write_bytes(row.image.read_bytes())
    return SourceRow(path, image_id, image_id, "copies", grades, line=line)


def test_twins_with_other_grades_are_both_refused(tmp_path):
    rows = sample(tmp_path / "in", 8)
    rows.append(copied(rows[3], "twin", {"dr": 4}, 77))
    summary = made(rows, tmp_path / "out")
    assert summary.refusals == {"conflicting grades": 2}
    assert "eye_03" not in ShardedDataset.open(str(tmp_path / "out")).image_ids
    assert all("line 5" in entry["reason"] and "line 77" in entry["reason"] for entry in quarantine(tmp_path / "out"))


def test_twins_that_agree_are_stored_once_with_the_grades_of_both(tmp_path):
    rows = sample(tmp_path / "in", 8)
    rows += [copied(rows[3], "twin", {"dr": 1, "amd": 2}, 77), copied(rows[4], "other", {"dr": 2}, 78)]
    summary = made(rows, tmp_path / "out")
    assert summary.refusals == {"duplicate": 2}
    dataset = ShardedDataset.open(str(tmp_path / "out"))
    assert dataset.image_ids.tolist() == [row.image_id for row in rows[:8]]
    assert dataset.grades["amd"].tolist() == [-1, -1, -1, 2, -1, -1, -1, -1]
    assert "line 5" in quarantine(tmp_path / "out")[0]["reason"]


def test_copies_of_an_error_page_are_called_damaged_not_twins(tmp_path):
    rows = sample(tmp_path / "in", 6)
    for row in rows[:4]:
        row.image.write_bytes(b"<html>please sign in</html>")
    assert made(rows, tmp_path / "out").refusals == {"damaged image": 4}


def test_a_repeated_id_is_refused(tmp_path):
    rows = sample(tmp_path / "in", 6)
    rows[4] = SourceRow(rows[4].image, "eye_01", "x", "clinic", {"dr": 1}, line=6)
    assert made(rows, tmp_path / "out").refusals == {"repeated id": 1}


def test_prescribed_splits_are_kept_and_bind_the_whole_group(tmp_path):
    rows = sample(tmp_path / "in", 8)
    for index, split in ((0, "test"), (2, "train")):
        row = rows[index]
        rows[index] = SourceRow(row.image, row.image_id, row.group_id, row.source, row.grades, split)
    made(rows, tmp_path / "out")
    dataset = ShardedDataset.open(str(tmp_path / "out"))
    assert dataset.splits[:4].tolist() == ["test", "test", "train", "train"]
    assert leaks(dataset.group_ids.tolist(), dataset.splits.tolist()) == []
    rows[1] = SourceRow(rows[1].image, "eye_01", rows[0].group_id, "clinic", {"dr": 0}, "train")
    with pytest.raises(DataError, match="patient 0"):
        made(rows, tmp_path / "leaking")
    assert not (tmp_path / "leaking").exists()


def test_strict_raises_at_the_first_bad_photograph_and_leaves_no_data_set(tmp_path):
    rows = sample(tmp_path / "in", 8)
    rows[3].image.write_bytes(b"")
    rows[6].image.write_bytes(b"")
    with pytest.raises(DataError, match=r"is empty: line 5 .*eye_03.jpg"):
        made(rows, tmp_path / "out", strict=True)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_nothing_left_is_an_error_that_points_to_the_list(tmp_path):
    rows = sample(tmp_path / "in", 3)
    for row in rows:
        row.image.write_bytes(b"")
    for _ in range(2):  # what is left of the first attempt does not block the second
        with pytest.raises(DataError, match=r"every photograph was refused: .*damaged image.*quarantine.csv"):
            made(rows, tmp_path / "out")
    assert len(quarantine(tmp_path / "out")) == 3
    with pytest.raises(DataError, match="no photographs"):
        ingest([], str(tmp_path / "none"), tasks=[], image_size=SIZE)


def test_an_earlier_result_is_replaced_only_when_told_to(tmp_path):
    out = tmp_path / "out"
    made(sample(tmp_path / "in", 8), out)
    rows = sample(tmp_path / "in", 4)
    with pytest.raises(DataError, match="--overwrite"):
        made(rows, out)
    assert len(ShardedDataset.open(str(out))) == 8
    made(rows, out, overwrite=True)
    assert len(ShardedDataset.open(str(out))) == 4


@pytest.mark.parametrize("foreign", ["thesis.docx", "shards/notes.txt", "shards/eyes.arrow", "shards/.mine.tmp"])
def test_other_files_are_never_deleted(tmp_path, foreign):
    out = tmp_path / "out"
    rows = sample(tmp_path / "in", 4)
    made(rows, out)
    (out / foreign).write_text("precious")
    with pytest.raises(DataError, match="other files"):
        made(rows, out, overwrite=True)
    assert (out / foreign).read_text() == "precious"
    assert len(ShardedDataset.open(str(out))) == 4


def test_the_output_must_not_be_a_file(tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(DataError, match="is a file"):
        made(sample(tmp_path / "in", 2), tmp_path / "out", overwrite=True)


def test_workers_must_be_positive(tmp_path):
    with pytest.raises(ConfigError, match="workers"):
        made(sample(tmp_path / "in", 2), tmp_path / "out", num_workers=0)


# Tables


def table(folder: Path, text: str, *, images: int = 4) -> Path:
    sample(folder / "photos", images)
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
    first, second, third = read_csv(path, columns=columns)
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
        ("file,dr_grade\n" + ROW + "photos/eye_01.jpg,mild\n", COLUMNS, "line 3: .*no whole number: mild"),
        ("file,dr_grade\n" + ROW + "photos/eye_01.jpg,1.5\n", COLUMNS, "line 3: .*no whole number: 1.5"),
        ("file,dr_grade\n" + ROW + "photos/eye_01.jpg,inf\n", COLUMNS, "line 3: .*no whole number: inf"),
        ("file,dr_grade\n" + ROW + "photos/eye_01.jpg,5\n", COLUMNS, "line 3: task dr has no such grade: 5; use 0..4"),
        ("file,dr_grade\n" + ROW + "photos/eye_01.jpg,-1\n", COLUMNS, "line 3: task dr has no such grade: -1"),
        ("file,hr\nphotos/eye_00.jpg,128\n", {"image": "file", "hr": "hr"}, "line 2: task hr has no such grade: 128"),
        ("file,dr_grade\n" + ROW + "photos/no.jpg,1\nno2.jpg,1\n", COLUMNS, r"line 3: the image is missing \(2 of 3"),
        ("file,dr_grade\n,1\n", COLUMNS, "line 2: no image is named"),
        ("file,dr_grade\n" + ROW + "photos/eye_01.jpg\n", COLUMNS, "line 3: the line has fewer or more cells"),
        ("file,dr_grade\nphotos/eye_01.jpg,1,2\n", COLUMNS, "line 2: the line has fewer or more cells"),
        ("file,dr_grade,s\nphotos/eye_00.jpg,1,val\n", {**COLUMNS, "split": "s"}, "line 2: no such split: val"),
        ("file,dr_grade,s\nphotos/eye_00.jpg,1,up\n", {**COLUMNS, "laterality": "s"}, "line 2: no such laterality: up"),
        ("file,dr_grade\n", COLUMNS, "no rows"),
        ("", COLUMNS, "lacks a column: file"),
        (ROW, {"image": "file"}, "of the images and of a task"),
    ],
)
def test_csv_errors_name_the_line_and_the_value(tmp_path, text, columns, message):
    path = table(tmp_path, text, images=2)
    with pytest.raises(DataError, match=message):
        read_csv(path, columns=columns)


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


def test_tasks_need_a_grade_and_a_plain_name(tmp_path):
    row = sample(tmp_path, 1)[0]
    with pytest.raises(DataError, match="no image has a grade"):
        tasks_of([SourceRow(row.image, "a", "a", "s", {"dr": None})])
    with pytest.raises(DataError, match="no name for a task: DR grade"):
        tasks_of([SourceRow(row.image, "a", "a", "s", {"DR grade": 1})])


def test_every_idrid_photograph_arrives_with_its_grades(tmp_path, shared_dir):
    path = shared_dir / "data/idrid/labels.csv"
    rows = read_csv(path, columns={"image": "image", "dr": "dr_grade", "dme": "dme_grade"})
    summary = made(rows, tmp_path / "out")
    assert (summary.rows_in, summary.rows_out, summary.quarantined) == (215, 215, 0)
    dataset = ShardedDataset.open(str(tmp_path / "out"))
    assert [(task.name, task.num_grades) for task in dataset.tasks] == [("dr", 5), ("dme", 3)]
    with path.open(newline="") as file:
        listed = {line["image"]: (int(line["dr_grade"]), int(line["dme_grade"])) for line in csv.DictReader(file)}
    pairs = zip(dataset.grades["dr"].tolist(), dataset.grades["dme"].tolist(), strict=True)
    assert dict(zip(dataset.image_ids.tolist(), pairs, strict=True)) == listed
    assert all(dataset.check(index) for index in range(215))
    brightness = [np.frombuffer(dataset.image(index), np.uint8).mean() for index in range(215)]
    assert min(brightness) > 20  # a disc, not a corner of the background


# Folders


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
    with pytest.raises(DataError, match="of which task"):
        read_folder(tmp_path / "set" / "dr")


@pytest.mark.parametrize(
    ("place", "message"),
    [("dr/mild/a.jpg", "no grade: .*mild"), ("dr/7/a.jpg", "no such grade: 7"), ("dr/0/a.txt", "no photographs")],
)
def test_folder_errors_name_the_folder(tmp_path, place, message):
    (tmp_path / place).parent.mkdir(parents=True)
    (tmp_path / place).touch()
    with pytest.raises(DataError, match=message):
        read_folder(tmp_path)
    with pytest.raises(DataError, match="no such folder"):
        read_folder(tmp_path / "none")
