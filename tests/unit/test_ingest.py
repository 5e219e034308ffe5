"""From photographs and their tables to a data set: what gets in, with what and where, what is listed and why."""

import csv
import hashlib
import re
from dataclasses import replace

import cv2
import numpy as np
import pytest
import simplejpeg

from retina_ray.data.conversion import Target, convert
from retina_ray.data.fundus import PREPROCESSING_VERSION, prepare_bytes
from retina_ray.data.ingest import ingest
from retina_ray.data.masks import decode_mask
from retina_ray.data.parts import PART_ROWS
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.sources.base import SourceRow
from retina_ray.data.sources.csv_table import read_csv
from retina_ray.data.splits import leaks
from retina_ray.data.workers import in_processes, serially
from retina_ray.errors import ConfigError, DataError
from tests.clinic import SIZE, copied, made, photograph, quarantine, sample, tree


def test_convert_depends_on_the_bytes_alone():
    data = photograph(3)
    square = prepare_bytes(data, name="any", size=SIZE)
    raw = convert(data, None, name="a", target=Target(SIZE, "raw"))
    assert raw.image == square.tobytes()
    assert raw.sha256 == hashlib.sha256(data).hexdigest()
    assert raw.mask is None
    jpeg = convert(data, None, name="b", target=Target(SIZE, "jpeg"))
    assert np.abs(simplejpeg.decode_jpeg(jpeg.image).astype(float) - square).mean() < 5
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
    rows = sample(tmp_path / "in", 2 * PART_ROWS + 3)
    rows[7].image.write_bytes(b"")
    one, two = (made(rows, tmp_path / name, work=work) for name, work in (("one", serially), ("two", in_processes(2))))
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
    summary = made(rows, tmp_path / "out")
    assert (summary.rows_in, summary.rows_out, summary.quarantined) == (24, 20, 4)
    assert summary.refusals == {"damaged image": 2, "no fundus": 1, "label without image": 1}
    listed = quarantine(tmp_path / "out")
    assert [(entry["file"], entry["line"], entry["kind"]) for entry in listed] == [
        (str(rows[2].image), "4", "damaged image"),
        (str(rows[5].image), "7", "damaged image"),
        (str(rows[9].image), "11", "no fundus"),
        (str(rows[11].image), "13", "label without image"),
    ]
    assert "web page" in listed[0]["reason"]
    assert all(entry["what to do"] and entry["stored"] == "no" for entry in listed)
    sound, rest = (ShardedDataset.open(str(tmp_path / name)) for name in ("sound", "out"))
    kept = np.isin(sound.image_ids, rest.image_ids)
    assert kept.sum() == 20
    assert (sound.splits[kept] == rest.splits).all()


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


def test_a_patient_in_two_splits_stays_in_the_stronger_one(tmp_path):
    rows = sample(tmp_path / "in", 8)
    rows[0], rows[1] = replace(rows[0], split="test"), replace(rows[1], split="train")
    assert made(rows, tmp_path / "out").refusals == {"leak": 1}
    dataset = ShardedDataset.open(str(tmp_path / "out"))
    assert dataset.image_ids[0] == "eye_00"
    assert "eye_01" not in dataset.image_ids
    (entry,) = quarantine(tmp_path / "out")
    assert "patient 0 is in train and in test, as line 2" in entry["reason"]
    with pytest.raises(DataError, match="patient 0"):
        made(rows, tmp_path / "strict", strict=True)


def test_one_picture_in_two_files_stays_in_one_split_and_is_reported(tmp_path):
    rows = sample(tmp_path / "in", 24)
    for patient, index in enumerate(range(6, 24, 4)):
        rows[index].image.write_bytes(photograph(patient, quality=70))
    summary = made(rows, tmp_path / "out")
    assert (summary.rows_out, summary.refusals, summary.warnings) == (24, {}, {"near duplicate": 5})
    assert {entry["stored"] for entry in quarantine(tmp_path / "out")} == {"yes"}
    splits = ShardedDataset.open(str(tmp_path / "out")).splits
    assert all(splits[index] == splits[patient] for patient, index in enumerate(range(6, 24, 4)))
    with pytest.raises(DataError, match="near duplicate: the same picture as line 2"):
        made(rows, tmp_path / "strict", strict=True)


def test_equal_files_in_two_splits_keep_the_stronger_one_and_all_of_the_patient_there(tmp_path):
    rows = sample(tmp_path / "in", 8)  # two of each patient
    rows[5].image.write_bytes(photograph(0))
    rows = [replace(row, grades={"dr": 1}, split="test" if index >= 4 else "train") for index, row in enumerate(rows)]
    summary = made(rows, tmp_path / "out")
    assert summary.refusals == {"duplicate": 1, "leak": 1}
    dataset = ShardedDataset.open(str(tmp_path / "out"))
    assert dict(zip(dataset.image_ids, dataset.splits, strict=True)) == {
        "eye_02": "train",
        "eye_03": "train",
        "eye_04": "test",
        "eye_05": "test",
        "eye_06": "test",
        "eye_07": "test",
    }


def test_a_free_eye_follows_neither_its_twin_nor_its_patient_into_a_leak(tmp_path):
    rows = sample(tmp_path / "in", 12)
    rows[1].image.write_bytes(photograph(4, quality=70))
    rows[0] = replace(rows[0], split="train")
    rows[4] = replace(rows[4], split="test")
    assert made(rows, tmp_path / "out").refusals == {"leak": 1}
    dataset = ShardedDataset.open(str(tmp_path / "out"))
    splits = dict(zip(dataset.image_ids, dataset.splits, strict=True))
    assert "eye_00" not in splits
    assert splits["eye_01"] == splits["eye_04"] == "test"


def test_one_picture_in_two_prescribed_splits_leaves_the_weaker_one(tmp_path):
    rows = sample(tmp_path / "in", 8)
    rows[5].image.write_bytes(photograph(2, quality=70))
    for index in range(8):
        rows[index] = replace(rows[index], split="train" if index < 4 else "test")
    assert made(rows, tmp_path / "out").refusals == {"leak": 2}  # the other eye is of the same patient
    assert [(entry["line"], entry["kind"]) for entry in quarantine(tmp_path / "out")] == [("4", "leak"), ("5", "leak")]
    dataset = ShardedDataset.open(str(tmp_path / "out"))
    assert set(dataset.splits[dataset.image_ids >= "eye_04"]) == {"test"}


def test_a_source_without_validation_rows_gets_some_of_its_training_rows(tmp_path):
    rows = [replace(row, split="test" if index >= 18 else "train") for index, row in enumerate(sample(tmp_path / "in"))]
    made(rows, tmp_path / "out", fractions=(0.6, 0.3, 0.1))
    dataset = ShardedDataset.open(str(tmp_path / "out"))
    assert [(dataset.splits == split).sum() for split in ("train", "validation", "test")] == [12, 6, 6]
    assert set(dataset.splits[18:]) == {"test"}
    assert leaks(dataset.group_ids.tolist(), dataset.splits.tolist()) == []


def test_strict_raises_at_the_first_bad_photograph_and_leaves_no_data_set(tmp_path):
    rows = sample(tmp_path / "in", 8)
    rows[3].image.write_bytes(b"")
    rows[6].image.write_bytes(b"")
    with pytest.raises(DataError, match=r"is empty: line 5 .*eye_03.jpg"):
        made(rows, tmp_path / "out", strict=True)
    rows[3] = replace(rows[3], grades={}, refused="ungradable: so they say")
    with pytest.raises(DataError, match=r"ungradable: so they say: line 5 .*eye_03.jpg"):
        made(rows, tmp_path / "out", strict=True)
    assert not (tmp_path / "out" / "dataset.json").exists()


def test_a_row_that_its_source_refuses_is_listed_and_its_file_not_opened(tmp_path):
    rows = sample(tmp_path / "in", 6)
    rows[2] = replace(rows[2], image=tmp_path / "nowhere.jpg", grades={}, refused="ungradable: class is 5")
    summary = made(rows, tmp_path / "out")
    assert (summary.rows_in, summary.rows_out, summary.refusals) == (6, 5, {"ungradable": 1})
    (entry,) = quarantine(tmp_path / "out")
    assert (entry["kind"], entry["reason"], entry["stored"]) == ("ungradable", "ungradable: class is 5", "no")


def test_drawn_lesions_travel_with_the_photograph(tmp_path):
    rows = sample(tmp_path / "in", 6)
    drawn = np.zeros((100, 120), np.uint8)
    drawn[50, 60] = drawn[10, 61] = 255  # the disc's centre, and nearly its top
    cv2.imwrite(str(tmp_path / "ma.tif"), drawn)
    rows[0] = replace(rows[0], masks={"MA": tmp_path / "ma.tif"})
    cv2.imwrite(str(tmp_path / "other.png"), drawn[:, :80])
    rows[1] = replace(rows[1], masks={"HE": tmp_path / "other.png"})
    rows[2] = replace(rows[2], masks={})
    summary = made(rows, tmp_path / "out", image_size=32)
    assert summary.refusals == {"damaged image": 1}
    (entry,) = quarantine(tmp_path / "out")
    sizes = "80 x 100 pixels are of other proportions than the photograph's 120 x 100"
    assert entry["reason"] == f"{sizes}: the lesion drawing {tmp_path / 'other.png'}"
    dataset = ShardedDataset.open(str(tmp_path / "out"))
    assert dataset.has_mask.tolist() == [True, True, False, False, False]
    mask = decode_mask(dataset.mask(0), 32, 32)
    assert mask[0, 15:17, 15:17].any()  # of 2.8 pixels' width; an average would have lost it
    assert mask[0, 1:3, 15:17].any()
    assert mask[0].sum() < 9
    assert not mask[1:].any()
    assert not decode_mask(dataset.mask(1), 32, 32).any()


def test_a_damaged_drawing_is_named_and_its_photograph_not_blamed(tmp_path):
    rows = sample(tmp_path / "in", 3)
    drawing = tmp_path / "ma.tif"
    cv2.imwrite(str(drawing), np.full((100, 120), 255, np.uint8))
    drawing.write_bytes(drawing.read_bytes()[:-40])
    rows[0] = replace(rows[0], masks={"MA": drawing})
    assert made(rows, tmp_path / "out").refusals == {"damaged image": 1}
    (entry,) = quarantine(tmp_path / "out")
    assert entry["file"] == str(rows[0].image)
    assert entry["reason"].startswith("the TIFF file is damaged")
    assert entry["reason"].endswith(f": the lesion drawing {drawing}")


def test_what_to_do_fits_where_the_row_is_from(tmp_path):
    rows = sample(tmp_path / "in", 6)
    rows[0] = replace(rows[0], image=tmp_path / "in")
    rows[1] = rows[1].refuse("no such grade: task dr has 0..4, not 7")
    rows[2] = replace(rows[1], line=None, image_id="of a folder")
    made(rows, tmp_path / "out")
    assert [(entry["kind"], entry["what to do"]) for entry in quarantine(tmp_path / "out")] == [
        ("unreadable file", "name a photograph, not a folder"),
        ("no such grade", "correct the grade, or empty the cell"),
        ("no such grade", "move it into the folder of its grade, or away"),
    ]


def test_twins_share_their_lesions(tmp_path):
    rows = sample(tmp_path / "in", 40)
    cv2.imwrite(str(tmp_path / "ma.tif"), np.full((100, 120), 255, np.uint8))
    twin = copied(rows[3], "twin", {}, 77)
    rows.append(replace(twin, masks={"MA": tmp_path / "ma.tif"}))
    assert made(rows, tmp_path / "out").refusals == {"duplicate": 1}
    dataset = ShardedDataset.open(str(tmp_path / "out"))
    assert np.flatnonzero(dataset.has_mask).tolist() == [3]
    assert dataset.grades["dr"][3] == 1


def test_nothing_left_is_an_error_that_points_to_the_list(tmp_path):
    rows = sample(tmp_path / "in", 3)
    for row in rows:
        row.image.write_bytes(b"")
    first = f"3 damaged image; the first is line 2 ({rows[0].image}), the file is empty; see"
    for _ in range(2):  # what is left of the first attempt does not block the second
        with pytest.raises(DataError, match=f"every photograph was refused: {re.escape(first)} .*quarantine.csv"):
            made(rows, tmp_path / "out")
    assert len(quarantine(tmp_path / "out")) == 3
    with pytest.raises(DataError, match="no photographs"):
        ingest([], str(tmp_path / "none"), tasks=[], image_size=SIZE)


def test_rows_that_their_source_refuses_are_listed_even_if_none_is_left(tmp_path):
    rows = [row.refuse(f"no such grade: grade {row.line} of task dr") for row in sample(tmp_path / "in", 3)]
    with pytest.raises(DataError, match=r"every .* 3 no such grade; the first is line 2 .*grade 2 of .*quarantine.csv"):
        made(rows, tmp_path / "out")
    assert [entry["line"] for entry in quarantine(tmp_path / "out")] == ["2", "3", "4"]
    rows[1] = replace(rows[1], grades={"dr": None}, refused=None)
    with pytest.raises(DataError, match="no photograph that is left has a grade: 2 no such grade"):
        made(rows, tmp_path / "out")
    assert [entry["line"] for entry in quarantine(tmp_path / "out")] == ["2", "4"]
    with pytest.raises(DataError, match=r"no image has a grade: 1 rows"):
        made([rows[1]], tmp_path / "out")


@pytest.mark.parametrize("refused_by", ["the source", "the conversion"])
def test_a_data_set_that_cannot_be_replaced_is_left_as_it_was(tmp_path, refused_by):
    rows, out = sample(tmp_path / "in", 3), tmp_path / "out"
    made(rows, out)
    before = tree(out)
    if refused_by == "the source":
        rows = [row.refuse("no such split: Training") for row in rows]
    for row in rows:
        row.image.write_bytes(b"")
    with pytest.raises(DataError, match="name another folder to have them listed there"):
        made(rows, out, overwrite=True)
    assert tree(out) == before
    assert not (out / "parts").exists()


def test_an_earlier_result_is_replaced_only_when_told_to(tmp_path):
    out = tmp_path / "out"
    made(sample(tmp_path / "in", 8), out)
    rows = sample(tmp_path / "in", 4)
    with pytest.raises(DataError, match="--overwrite"):
        made(rows, out)
    assert len(ShardedDataset.open(str(out))) == 8
    made(rows, out, overwrite=True)
    assert len(ShardedDataset.open(str(out))) == 4


@pytest.mark.parametrize(
    "foreign", ["thesis.docx", "shards/notes.txt", "shards/eyes.arrow", "shards/.mine.tmp", "parts/a.arrow"]
)
def test_other_files_are_never_deleted(tmp_path, foreign):
    out = tmp_path / "out"
    rows = sample(tmp_path / "in", 4)
    made(rows, out)
    (out / foreign).parent.mkdir(exist_ok=True)
    (out / foreign).write_text("precious")
    with pytest.raises(DataError, match="other files"):
        made(rows, out, overwrite=True)
    assert (out / foreign).read_text() == "precious"
    assert len(ShardedDataset.open(str(out))) == 4


def test_the_output_must_not_be_a_file(tmp_path):
    (tmp_path / "out").write_text("precious")
    with pytest.raises(DataError, match="is a file"):
        made(sample(tmp_path / "in", 2), tmp_path / "out", overwrite=True)


def test_workers_must_be_positive():
    with pytest.raises(ConfigError, match="workers"):
        in_processes(0)


def test_progress_counts_what_is_converted(tmp_path):
    rows = sample(tmp_path / "in", PART_ROWS + 5)
    rows[3].image.write_bytes(b"")
    done: list[tuple[str, int, int]] = []
    made(rows, tmp_path / "out", progress=lambda *position: done.append(position))
    number = len(rows)
    assert done[:5] == [
        *(("reading", count, number) for count in (0, PART_ROWS, number)),
        *(("comparing", count, number) for count in (0, number)),
    ]
    assert done[5:] == [("writing", count, number - 1) for count in range(number)]


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
