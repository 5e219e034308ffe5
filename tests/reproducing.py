"""An experiment at the debug budget, from its name to its files, in this process."""

import csv
import io
import json
import re
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from retina_ray.cli.main import run

WITHOUT_TABLE = {"sall-figure8"}


def reproduce(name: str, storage: Path, *more: str) -> int:
    """Run the command and return its exit status."""
    arguments = ["--budget", "debug", "--storage", str(storage), "--no-tune"]
    return run(["reproduce", name, *arguments, *more])


def expect_all_files(name: str, storage: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Run an experiment and check what it writes."""
    assert reproduce(name, storage, "--json") == 0
    files = json.loads(capsys.readouterr().out)["files"]
    record = json.loads(Path(files["results.json"]).read_text())
    assert record["experiment"] == name
    assert "hardly learn" in record["not_comparable"]
    assert all(record["data"].values())
    pictures = [file for file in files if file.endswith(".png")]
    assert bool(pictures) == ("figure" in name)
    for picture in pictures:
        pixels = np.asarray(Image.open(files[picture]).convert("L"))
        assert min(pixels.shape) > 300
        assert pixels.std() > 5, "not blank"
        assert "<svg" in Path(files[picture.replace(".png", ".svg")]).read_text()
    if name in WITHOUT_TABLE:
        assert "table.md" not in files
        return
    rows = list(csv.DictReader(io.StringIO(Path(files["table.csv"]).read_text())))
    measured = [row for row in rows if row["mean"]]
    assert measured
    assert all(np.isfinite(float(row["mean"])) for row in measured)
    text = Path(files["table.md"]).read_text()
    assert "Not comparable" in text or not re.search(r"paper \|", text)
    assert all(row["paper_comparable"] == ("no" if row["paper"] else "") for row in rows)
    for row in measured:
        assert row["figure"] in text
    assert Path(files["table.tex"]).read_text().count(r"\end{tabular}") == text.count("\n| ---")
