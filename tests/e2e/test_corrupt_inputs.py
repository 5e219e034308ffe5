"""Everything that is wrong with photographs and tables in the field, in one table: refused or reported, never lost."""

import csv
import io
import json
import struct
import zlib
from pathlib import Path

import numpy as np
import pytest
import simplejpeg
from PIL import Image

from retina_ray.cli.main import run
from tests.clinic import photograph, pixels

COLUMNS = "image=image,dr=dr,group=patient,split=split"


def bomb() -> bytes:
    """A PNG of a few bytes that claims 60,000 x 60,000 pixels."""

    def chunk(kind: bytes, data: bytes) -> bytes:
        return struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))

    header = struct.pack(">IIBBBBB", 60_000, 60_000, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", zlib.compress(b"")) + chunk(b"IEND", b"")


def png(number: int) -> bytes:
    file = io.BytesIO()
    Image.fromarray(pixels(number)).save(file, "PNG")
    return file.getvalue()


def page() -> bytes:
    """A picture that is no fundus: dark text on white."""
    paper = np.full((300, 400, 3), 255, np.uint8)
    paper[40:60, 30:300] = 0
    return simplejpeg.encode_jpeg(paper)


# name -> (file, grade, patient, split, kind under which it is listed or None, part of the reason)
CASES: dict[str, tuple[bytes | None, str, str, str, str | None, str]] = {
    "truncated.jpg": (photograph(1)[:-500], "1", "p1", "", "damaged image", "JPEG file is damaged"),
    "zero.jpg": (b"", "1", "p2", "", "damaged image", "the file is empty"),
    "page.jpg": (b"<!DOCTYPE html><html>sign in</html>", "1", "p3", "", "damaged image", "web page"),
    "text.jpg": (b"not an image", "1", "p4", "", "damaged image", "no image of a known format"),
    "bomb.png": (bomb(), "1", "p5", "", "damaged image", "the image is too large"),
    "black.jpg": (simplejpeg.encode_jpeg(np.zeros((200, 200, 3), np.uint8)), "1", "p6", "", "no fundus", "uniform"),
    "paper.jpg": (page(), "1", "p7", "", "no fundus", "the photograph shows no dark surround"),
    "missing.jpg": (None, "1", "p8", "", "label without image", "missing.jpg"),
    "unlisted.jpg": (photograph(2), "unlisted", "", "", "image without label", "labels.csv does not list it"),
    "grade7.jpg": (photograph(3), "7", "p9", "", "no such grade", "task dr has 0..4, not 7"),
    "mild.jpg": (photograph(4), "mild", "p10", "", "no such grade", "mild"),
    "once.jpg": (photograph(5), "0", "p11", "", "conflicting grades", "graded differently"),
    "again.jpg": (photograph(5), "3", "p12", "", "conflicting grades", "graded differently"),
    "first.jpg": (photograph(6), "2", "p13", "", None, ""),
    "copy.jpg": (photograph(6), "2", "p13", "", "duplicate", "the same photograph as line"),
    "trained.jpg": (photograph(7), "2", "p14", "train", "leak", "p14 is in train and in test"),
    "tested.jpg": (photograph(8), "2", "p14", "test", None, ""),
    "resaved-train.jpg": (
        photograph(9, quality=60),
        "2",
        "p15",
        "train",
        "leak",
        "under the name p16 in test",
    ),
    "original-test.jpg": (photograph(9), "2", "p16", "test", None, ""),
    "original.jpg": (photograph(10), "4", "p17", "", None, ""),
    "resaved.jpg": (photograph(10, quality=60), "4", "p18", "", "near duplicate", "the same picture as line"),
    "suffix.jpg": (png(11), "4", "p19", "", None, ""),  # a PNG by another name is no defect
    **{f"sound{number}.jpg": (photograph(100 + number), str(number % 5), "s", "", None, "") for number in range(12)},
}
STORED = {"near duplicate"}


@pytest.fixture
def table(tmp_path: Path) -> Path:
    lines = ["image,dr,patient,split"]
    for number, (name, (data, grade, patient, split, *_)) in enumerate(CASES.items()):
        if data is not None:
            (tmp_path / name).write_bytes(data)
        if grade != "unlisted":
            lines.append(f"{name},{grade},{patient if patient != 's' else f's{number}'},{split}")
    path = tmp_path / "labels.csv"
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def test_each_case_is_listed_with_its_reason_and_what_to_do(table: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = table.parent / "set"
    command = ["data", "ingest", str(table), str(out), "--columns", COLUMNS, "--size", "64", "--workers", "1"]
    assert run([*command, "--json"]) == 0
    summary = json.loads(capsys.readouterr().out)
    with (out / "quarantine.csv").open(newline="") as file:
        listed = {Path(line["file"]).name: line for line in csv.DictReader(file)}
    expected = {name: kind for name, (*_, kind, _) in CASES.items() if kind is not None}
    assert {name: line["kind"] for name, line in listed.items()} == expected
    for name, line in listed.items():
        assert CASES[name][-1] in line["reason"]
        assert line["what to do"]
        assert line["stored"] == ("yes" if line["kind"] in STORED else "no")
        assert line["line"] or line["kind"] == "image without label"
    refused = [kind for kind in expected.values() if kind not in STORED]
    assert summary["refusals"] == {kind: refused.count(kind) for kind in refused}
    assert summary["warnings"] == {"near duplicate": 1}
    assert (summary["rows_in"], summary["quarantined"]) == (len(CASES), len(refused))
    assert summary["rows_in"] == summary["rows_out"] + summary["quarantined"]
    assert run([*command, "--overwrite"]) == 0
    printed = capsys.readouterr().out
    assert f"{len(CASES) - len(refused)} of {len(CASES)} images" in printed
    assert "5 refused: damaged image; see" in printed
    assert "1 to look at: near duplicate; see" in printed


@pytest.mark.parametrize("name", [name for name, (*_, kind, _) in CASES.items() if kind is not None])
def test_strict_makes_each_an_error_of_one_line(table: Path, capsys: pytest.CaptureFixture[str], name: str) -> None:
    lines = table.read_text(encoding="utf-8").splitlines()
    partners = {"again.jpg": "once.jpg", "copy.jpg": "first.jpg", "once.jpg": "again.jpg", "trained.jpg": "tested.jpg"}
    partners |= {"resaved-train.jpg": "original-test.jpg", "resaved.jpg": "original.jpg"}
    wanted = {name, partners.get(name), *(sound for sound in CASES if sound.startswith("sound"))}
    table.write_text("\n".join(line for line in lines if line.split(",")[0] in {"image", *wanted}) + "\n")
    for file in table.parent.iterdir():
        if file.name not in wanted and file != table:
            file.unlink()
    command = ["data", "ingest", str(table), str(table.parent / "set"), "--columns", COLUMNS, "--size", "64"]
    assert run([*command, "--workers", "1", "--strict"]) == 2
    message = capsys.readouterr().err.strip().splitlines()[-1]
    assert message.startswith("error: ")
    assert name in message or partners.get(name, name) in message
    assert CASES[name][-1] in message
    assert not (table.parent / "set" / "dataset.json").exists()
