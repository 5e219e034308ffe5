"""What an ingest says on standard error about input that it does not use."""

import re
from pathlib import Path

import pytest

from retina_ray.cli.main import run
from tests.clinic import photograph


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Eight photographs in folders of grades, with files among them that are none."""
    monkeypatch.chdir(tmp_path)
    for number in range(8):
        path = tmp_path / "dr" / str(number % 2) / f"eye{number}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(photograph(number))
    for name in ("dr/0/c", "dr/0/d.jpg.part", "dr/1/e.gif", "dr/1/f.txt"):
        (tmp_path / name).touch()
    return tmp_path / "dr"


def said(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> list[str]:
    """What a successful ingest says, progress left out."""
    assert run(["data", "ingest", *arguments, "--size", "64", "--workers", "1"]) == 0
    return [
        line for line in capsys.readouterr().err.splitlines() if not re.match("(reading|comparing|writing): ", line)
    ]


def test_files_of_other_names_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    names = f"{folder}/0/c, {folder}/0/d.jpg.part, {folder}/1/e.gif, ..."
    told = said(["dr", "out", "--adapter", "folder", "--task", "dr"], capsys)
    assert told == [f"passed over, for their names are of no photographs: 4 ({names})"]


def test_names_in_a_split_file_that_fit_nothing_are_counted(folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    lines = ["image,split", *(f"eye{number}.jpg,train" for number in range(8)), "nobody.jpg,test"]
    Path("splits.csv").write_text("\n".join(lines), encoding="utf-8")
    told = said(["dr", "out", "--adapter", "folder", "--task", "dr", "--split", "splits.csv"], capsys)
    assert told[1:] == [f"names in {folder.parent}/splits.csv that fit no photograph: 1 (nobody.jpg)"]


def test_splits_of_the_source_that_outweigh_the_fractions_are_told(
    folder: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lines = ["image,dr,split", *(f"dr/{n % 2}/eye{n}.jpg,1,{'test' if n > 5 else 'train'}" for n in range(8))]
    Path("labels.csv").write_text("\n".join(lines), encoding="utf-8")
    command = ["labels.csv", "out", "--columns", "image=image,dr=dr,split=split", "--split", "0.8,0.2,0"]
    (told,) = said(command, capsys)
    assert told.startswith("the splits of the source are kept: 6 train, 2 test; --split deals the rest")
