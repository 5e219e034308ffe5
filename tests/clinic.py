"""Photographs of patients, small and quickly drawn, and the data sets that tests make of them."""

import csv
from pathlib import Path

import cv2
import numpy as np
import simplejpeg

from retina_ray.data.ingest import QUARANTINE, IngestSummary, ingest
from retina_ray.data.sources.base import SourceRow, tasks_of

SIZE = 64


def pixels(number: int) -> np.ndarray:
    """A disc of blotches, 120 x 100 pixels; another number is another picture."""
    y, x = np.mgrid[:100, :120]
    disc = np.hypot(x - 60, y - 50) < 45
    blotches = cv2.resize(np.random.default_rng(number).uniform(60, 200, (12, 12, 3)), (120, 100))
    return (disc[..., None] * np.clip(blotches, 40, 255)).astype(np.uint8)


def photograph(number: int, quality: int = 95) -> bytes:
    """It as a JPEG file."""
    return simplejpeg.encode_jpeg(pixels(number), quality)


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


def made(rows: list[SourceRow], out: Path | str, **options: object) -> IngestSummary:
    return ingest(rows, str(out), **{"tasks": tasks_of(rows), "image_size": SIZE, **options})


def quarantine(out: Path) -> list[dict[str, str]]:
    with (out / QUARANTINE).open(newline="") as file:
        return list(csv.DictReader(file))


def copied(row: SourceRow, image_id: str, grades: dict[str, int | None], line: int) -> SourceRow:
    path = row.image.with_name(f"{image_id}.jpg")
    path.write_bytes(row.image.read_bytes())
    return SourceRow(path, image_id, image_id, "copies", grades, line=line)


def tree(folder: Path) -> dict[str, bytes]:
    """Every file below a folder."""
    return {str(path.relative_to(folder)): path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}
