"""What a data set holds, whether it is sound, and a sheet of its images to look at before training on them."""

import hashlib
import io
from collections import defaultdict
from dataclasses import dataclass
from itertools import combinations, compress
from pathlib import Path

import cv2
import numpy as np
import numpy.typing as npt
from PIL import Image, ImageDraw, ImageFont

from retina_ray.data.decode import decode_image
from retina_ray.data.lookalikes import LOOK_BYTES, alike, look_of
from retina_ray.data.masks import decode_mask
from retina_ray.data.schema import NO_GRADE, SPLITS
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.splits import leaks
from retina_ray.data.store import Store
from retina_ray.errors import ConfigError, DataError

_LABEL_WIDTH = 150
_GAP = 4
_FONT_SIZE = 14
_CAPTION_SIZE = 11
_SHEET_FORMATS = {".png": "PNG", ".jpg": "JPEG", ".jpeg": "JPEG"}

LESION_COLOURS = {"MA": (0, 255, 255), "HM": (255, 255, 255), "HE": (0, 255, 0), "SE": (255, 0, 255)}
"""Of the outlines of drawn lesions, RGB, in the order of `LESIONS`."""


@dataclass(frozen=True)
class InspectReport:
    """What `inspect_dataset` found.

    Attributes:
        rows: images in all.
        rows_per_split: images per split.
        rows_per_source: images per source.
        counts: images per split, task and grade.
        masks: images with lesion masks.
        duplicates: ids of images whose stored bytes are equal, per set of equals.
        lookalikes: pairs of ids of images that differ but show one picture.
        leaking_groups: groups with images in more than one split.
        leaking_pictures: pairs of ids of equal or alike images in different splits.
        damaged_shards: names of shards whose SHA-256 is wrong.
        image_size: pixels of a side of the stored squares.
        encoding: jpeg or raw.
        size_bytes: of all shards.
    """

    rows: int
    rows_per_split: dict[str, int]
    rows_per_source: dict[str, int]
    counts: dict[str, dict[str, list[int]]]
    masks: int
    duplicates: tuple[tuple[str, ...], ...]
    lookalikes: tuple[tuple[str, str], ...]
    leaking_groups: tuple[str, ...]
    leaking_pictures: tuple[tuple[str, str], ...]
    damaged_shards: tuple[str, ...]
    image_size: int
    encoding: str
    size_bytes: int

    @property
    def sound(self) -> bool:
        """Whether there is neither a duplicate, nor a lookalike, nor a leak, nor a damaged shard."""
        leaks = self.leaking_groups or self.leaking_pictures
        return not (self.duplicates or self.lookalikes or leaks or self.damaged_shards)


def inspect_dataset(dataset: ShardedDataset) -> InspectReport:
    """Count and check a data set; reads every byte of it.

    The counts are made from the rows, not copied from the manifest.
    """
    manifest = dataset.manifest
    duplicates = _duplicates(dataset)
    equal = {pair for same in duplicates for pair in combinations(same, 2)}
    alike_rows = _lookalikes(dataset)
    names = [tuple(dataset.image_ids[list(pair)].tolist()) for pair in alike_rows]
    leaking = [dataset.splits[one] != dataset.splits[other] for one, other in alike_rows]
    sources, rows_per_source = np.unique(dataset.sources, return_counts=True)
    return InspectReport(
        rows=len(dataset),
        rows_per_split={split: int((dataset.splits == split).sum()) for split in SPLITS},
        rows_per_source=dict(zip(sources.tolist(), rows_per_source.tolist(), strict=True)),
        counts={
            split: {
                task.name: [
                    int(((dataset.splits == split) & (dataset.grades[task.name] == grade)).sum())
                    for grade in range(task.num_grades)
                ]
                for task in dataset.tasks
            }
            for split in SPLITS
        },
        masks=int(dataset.has_mask.sum()),
        duplicates=duplicates,
        lookalikes=tuple(pair for pair in names if pair not in equal),
        leaking_groups=tuple(leaks(dataset.group_ids.tolist(), dataset.splits.tolist())),
        leaking_pictures=tuple(compress(names, leaking)),
        damaged_shards=tuple(dataset.verify()),
        image_size=manifest.image_size,
        encoding=manifest.encoding,
        size_bytes=sum(shard.bytes for shard in manifest.shards),
    )


def contact_sheet(dataset: ShardedDataset, address: str, *, per_grade: int = 4, cell: int = 160) -> None:
    """Write a picture with a line of images for every task and grade, and one for those without any grade.

    The images are taken from all over the data set; drawn lesions are outlined in the colours of `LESION_COLOURS`.

    Args:
        dataset: at least one row.
        address: of the PNG or JPEG file, by its suffix, here or on S3; its folder is made.
        per_grade: images per line, at most.
        cell: pixels of a side of an image.

    Raises:
        ConfigError: for another suffix.
        DataError: when the file cannot be written.
    """
    place, _, name = Store(address).uri.rpartition("/")
    store = Store(f"{place}/")
    image_format = _SHEET_FORMATS.get(Path(name).suffix.lower())
    if image_format is None:
        raise ConfigError("a contact sheet is a PNG or JPEG file", address, f"end it in {', '.join(_SHEET_FORMATS)}")
    lines = _lines(dataset)
    height = cell + _CAPTION_SIZE + 2 * _GAP
    foot = _GAP + (_FONT_SIZE + 2 * _GAP if dataset.has_mask.any() else 0)
    sheet = Image.new("RGB", (_LABEL_WIDTH + per_grade * (cell + _GAP), len(lines) * height + foot), "white")
    draw = ImageDraw.Draw(sheet)
    font, caption_font = ImageFont.load_default(_FONT_SIZE), ImageFont.load_default(_CAPTION_SIZE)
    for line, (label, rows) in enumerate(lines):
        top = _GAP + line * height
        draw.text((2 * _GAP, top), f"{label}\n{len(rows)} images", "black", font)
        for column, row in enumerate(_spread(rows, per_grade)):
            left = _LABEL_WIDTH + column * (cell + _GAP)
            if (small := _drawn(dataset, row, cell)) is not None:
                sheet.paste(Image.fromarray(small), (left, top))
            else:
                draw.text((left, top), "damaged", "red", font)
            caption = f"{dataset.splits[row]}: {Path(dataset.image_ids[row]).name}"
            draw.text((left, top + cell), _shortened(caption, caption_font, cell), "black", caption_font)
    if dataset.has_mask.any():
        _write_legend(draw, len(lines) * height + _GAP, font)
    file = io.BytesIO()
    sheet.save(file, image_format)
    store.write_bytes(name, file.getvalue())


def _lines(dataset: ShardedDataset) -> list[tuple[str, npt.NDArray[np.intp]]]:
    """Return the lines of a contact sheet: label, and the rows of which some are shown."""
    lines = [
        (f"{task.name} {grade}\n{name}", np.flatnonzero(dataset.grades[task.name] == grade))
        for task in dataset.tasks
        for grade, name in enumerate(task.grades)
    ]
    ungraded = np.ones(len(dataset), dtype=np.bool_)
    for grades in dataset.grades.values():
        ungraded &= grades == NO_GRADE
    return [*lines, ("ungraded", np.flatnonzero(ungraded))] if ungraded.any() else lines


def _drawn(dataset: ShardedDataset, row: int, cell: int) -> npt.NDArray[np.uint8] | None:
    """Return an image at a cell's size, (cell, cell, 3), with its lesions outlined; None where it is damaged."""
    manifest = dataset.manifest
    if not dataset.check(row):
        return None
    image = decode_image(dataset.image(row), encoding=manifest.encoding, size=manifest.image_size)
    small = np.asarray(cv2.resize(image, (cell, cell), interpolation=cv2.INTER_AREA), dtype=np.uint8)
    mask = dataset.mask(row)
    if mask is None:
        return small
    try:
        planes = decode_mask(mask, manifest.image_size, manifest.image_size)
    except DataError:
        return None
    for plane, colour in zip(planes, LESION_COLOURS.values(), strict=True):
        lesion = cv2.resize(plane.astype(np.float32), (cell, cell), interpolation=cv2.INTER_AREA) > 0
        around = cv2.dilate(lesion.astype(np.uint8), np.ones((3, 3), np.uint8)) > 0
        small[around & ~lesion] = colour
    return small


def _write_legend(draw: ImageDraw.ImageDraw, top: int, font: ImageFont.FreeTypeFont | ImageFont.ImageFont) -> None:
    left = 2.0 * _GAP
    for lesion, colour in LESION_COLOURS.items():
        draw.rectangle((left, top, left + _FONT_SIZE, top + _FONT_SIZE), colour, "black")
        draw.text((left + _FONT_SIZE + _GAP, top), lesion, "black", font)
        left += _FONT_SIZE + 4 * _GAP + font.getlength(lesion)


def _duplicates(dataset: ShardedDataset) -> tuple[tuple[str, ...], ...]:
    """Return the ids of images that are stored equal; equal files are, for the conversion is deterministic."""
    ids: dict[bytes, list[str]] = defaultdict(list)
    for row, image_id in enumerate(dataset.image_ids.tolist()):
        ids[hashlib.sha256(dataset.image(row)).digest()].append(image_id)
    return tuple(tuple(same) for same in ids.values() if len(same) > 1)


def _lookalikes(dataset: ShardedDataset) -> list[tuple[int, int]]:
    """Return the pairs of rows that show one picture, equal ones included; a damaged row is like no other."""
    manifest = dataset.manifest
    looks = np.zeros((len(dataset), LOOK_BYTES), np.int8)
    for row in range(len(dataset)):
        if dataset.check(row):
            image = decode_image(dataset.image(row), encoding=manifest.encoding, size=manifest.image_size)
            looks[row] = np.frombuffer(look_of(image), np.int8)
    return alike(looks)


def _spread(rows: npt.NDArray[np.intp], number: int) -> list[int]:
    """Return at most ``number`` of the rows, evenly spread."""
    chosen = np.unique(np.linspace(0, len(rows) - 1, min(number, len(rows))).round().astype(int))
    return [int(rows[index]) for index in chosen]


def _shortened(text: str, font: ImageFont.FreeTypeFont | ImageFont.ImageFont, width: int) -> str:
    """Return the text, its end cut off where it is wider than ``width`` pixels."""
    while font.getlength(text) > width:
        text = text[:-1]
    return text
