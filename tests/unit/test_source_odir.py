"""ODIR-5K in miniature, as Kaggle and OIA-ODIR lay it out.

https://www.kaggle.com/datasets/andrewmvd/ocular-disease-recognition-odir5k and https://github.com/nkicsl/OIA-ODIR
"""

from pathlib import Path

import pytest

from retina_ray.data.sources.base import SourceRow
from retina_ray.data.sources.odir import read_odir
from retina_ray.errors import DataError

COMMA = "\N{FULLWIDTH COMMA}"
HEADER = (
    "ID,Patient Age,Patient Sex,Left-Fundus,Right-Fundus,Left-Diagnostic Keywords,Right-Diagnostic Keywords,"
    "N,D,G,C,A,H,M,O"
)
NORMAL = {"dr": 0, "dr_present": 0, "amd": 0, "amd_present": 0}


def line(patient: int, left: str, right: str) -> str:
    return f'{patient},69,Female,{patient}_left.jpg,{patient}_right.jpg,"{left}","{right}",0,1,0,0,0,0,0,0'


def write_images(folder: Path, patients: int) -> None:
    folder.mkdir(parents=True)
    for patient in range(patients):
        for side in ("left", "right"):
            (folder / f"{patient}_{side}.jpg").write_bytes(f"{folder}{patient}{side}".encode())


def kaggle(root: Path, *patients: tuple[str, str]) -> list[SourceRow]:
    """Rows of Kaggle's copy: each patient once per eye, with the columns that Kaggle's author added."""
    write_images(root / "ODIR-5K" / "ODIR-5K" / "Training Images", len(patients))
    text = HEADER + ",filepath,labels,target,filename\n"
    for side in ("right", "left"):
        for patient, (left, right) in enumerate(patients):
            file = f"{patient}_{side}.jpg"
            text += f"{line(patient, left, right)},../input/{file},['D'],\"[0, 1, 0, 0, 0, 0, 0, 0]\",{file}\n"
    (root / "full_df.csv").write_text(text, encoding="utf-8")
    return read_odir(root)


def test_an_eye_has_the_grade_of_its_own_keywords_not_of_the_patients_columns(tmp_path: Path):
    left, right = kaggle(tmp_path, ("normal fundus", "moderate non proliferative retinopathy"))
    assert left.grades == NORMAL
    assert right.grades == {"dr": 2, "dr_present": 1}


def test_full_df_repeats_each_patient_once_per_eye(tmp_path: Path):
    rows = kaggle(tmp_path, ("normal fundus", "normal fundus"), ("normal fundus", "normal fundus"))
    assert [row.image.name for row in rows] == ["0_left.jpg", "0_right.jpg", "1_left.jpg", "1_right.jpg"]
    assert [row.group_id for row in rows] == ["odir/0", "odir/0", "odir/1", "odir/1"]
    assert [row.laterality for row in rows] == ["left", "right"] * 2
    assert {row.split for row in rows} == {None}


def test_an_eye_that_is_repeated_with_other_keywords_is_two_rows_for_ingest_to_compare(tmp_path: Path):
    kaggle(tmp_path, ("normal fundus", "normal fundus"))
    with (tmp_path / "full_df.csv").open("a", encoding="utf-8") as file:
        file.write(line(0, "mild nonproliferative retinopathy", "normal fundus") + "\n")
    rows = read_odir(tmp_path)
    assert [(row.image.name, row.grades["dr"], row.line) for row in rows] == [
        ("0_left.jpg", 0, 2),
        ("0_right.jpg", 0, 2),
        ("0_left.jpg", 1, 4),
    ]


def test_keywords_are_separated_by_commas_of_full_and_of_usual_width(tmp_path: Path):
    left, right = kaggle(
        tmp_path,
        (f"laser spot{COMMA}severe nonproliferative retinopathy", "hypertensive retinopathy,diabetic retinopathy"),
    )
    assert left.grades == {"dr": 3, "dr_present": 1}
    assert right.grades == {"dr_present": 1}


def test_lens_dust_alone_is_no_diagnosis_and_beside_one_changes_nothing(tmp_path: Path):
    left, right = kaggle(tmp_path, ("lens dust", f"lens dust{COMMA}normal fundus"))
    assert (left.grades, left.refused) == ({}, "no label of ours: lens dust")
    assert (right.grades, right.refused) == (NORMAL, None)


@pytest.mark.parametrize("keyword", ["no fundus image", "anterior segment image", "low image quality"])
def test_what_is_no_usable_fundus_is_refused_whatever_else_is_said(tmp_path: Path, keyword: str):
    left, _ = kaggle(tmp_path, (f"{keyword}{COMMA}mild nonproliferative retinopathy", "normal fundus"))
    assert (left.grades, left.refused) == ({}, f"ungradable: {keyword}")


def test_dry_macular_degeneration_has_no_grade_but_is_present_and_wet_is_the_highest(tmp_path: Path):
    left, right = kaggle(tmp_path, ("dry age-related macular degeneration", "wet age-related macular degeneration"))
    assert left.grades == {"amd_present": 1}
    assert right.grades == {"amd": 3, "amd_present": 1}


def test_drusen_in_a_normal_fundus_leave_macular_degeneration_open(tmp_path: Path):
    left, _ = kaggle(tmp_path, (f"normal fundus{COMMA}drusen", "normal fundus"))
    assert left.grades == {"dr": 0, "dr_present": 0}


@pytest.mark.parametrize(
    "keyword", ["suspected diabetic retinopathy", "myopia retinopathy", "hypertensive retinopathy", "cataract"]
)
def test_a_suspicion_and_other_retinopathies_are_no_grade(tmp_path: Path, keyword: str):
    left, _ = kaggle(tmp_path, (keyword, "normal fundus"))
    assert (left.grades, left.refused) == ({}, f"no label of ours: {keyword}")


def test_photographs_without_a_line_and_the_testing_images_are_listed(tmp_path: Path):
    write_images(tmp_path / "ODIR-5K" / "ODIR-5K" / "Testing Images", 1)
    kaggle(tmp_path, ("normal fundus", "normal fundus"))
    training = tmp_path / "ODIR-5K" / "ODIR-5K" / "Training Images"
    (training / "0_left.jpg").rename(training / "9_left.jpg")
    assert [row.refused for row in read_odir(tmp_path)] == [
        "label without image: Training Images has no 0_left.jpg",
        None,
        "image without label: full_df.csv does not list it",
        *["image without label: the challenge does not publish the labels of its testing images"] * 2,
    ]


def test_oia_odir_keeps_its_sets_apart(tmp_path: Path):
    for folder, patient in (("Training Set", 0), ("Off-site Test Set", 1), ("On-site Test Set", 2)):
        write_images(tmp_path / folder / "Images", 3)
        (tmp_path / folder / "Annotation").mkdir()
        annotation = tmp_path / folder / "Annotation" / f"{folder.lower()} annotation (English).csv"
        annotation.write_text(f"{HEADER}\n{line(patient, 'normal fundus', 'cataract')}\n", encoding="utf-8")
    rows = [row for row in read_odir(tmp_path) if row.line]
    assert [row.split for row in rows] == ["train"] * 2 + ["test"] * 4


def test_a_table_that_is_still_xlsx_says_to_export_it(tmp_path: Path):
    write_images(tmp_path / "Training Set" / "Images", 1)
    (tmp_path / "Training Set" / "Annotation").mkdir()
    (tmp_path / "Training Set" / "Annotation" / "training annotation (English).xlsx").write_bytes(b"PK")
    with pytest.raises(DataError, match=r"export the English \.xlsx there as one CSV file"):
        read_odir(tmp_path)


def test_a_folder_without_either_copy_is_an_error(tmp_path: Path):
    with pytest.raises(DataError, match="this is no ODIR-5K data set"):
        read_odir(tmp_path)
