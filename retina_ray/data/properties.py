"""Properties of images that no prediction table holds, by image id: which eye, or a column of a user's table."""

from pathlib import Path

from retina_ray.data.shards import ShardedDataset
from retina_ray.data.sources.files import csv_lines
from retina_ray.errors import DataError

ID_COLUMN = "image_id"


def lateralities(dataset: ShardedDataset) -> dict[str, str]:
    """Return left or right by image id, for the images of which it is known.

    Raises:
        DataError: it is known of none.
    """
    known = {
        str(image_id): str(side) for image_id, side in zip(dataset.image_ids, dataset.lateralities, strict=True) if side
    }
    if not known:
        fix = "ingest a table with --columns laterality=..., or give a file of your own"
        raise DataError("the data set says of no image which eye it shows", dataset.manifest.source, fix)
    return known


def read_property(path: Path, column: str) -> dict[str, str]:
    """Return a column of a table by image id, without the empty cells.

    Args:
        path: CSV in UTF-8 with a header that names ``image_id`` and the column.
        column: its name.

    Raises:
        DataError: it cannot be read, lacks a column, or gives an image two values.
    """
    lines = list(csv_lines(path))
    header = [name.strip() for name in lines[0]] if lines else []
    for name in (ID_COLUMN, column):
        if name not in header:
            fix = f"it has {', '.join(filter(None, header)) or 'none'}"
            raise DataError(f"the table {path} lacks a column", name, fix)
    id_place, place = header.index(ID_COLUMN), header.index(column)
    found: dict[str, str] = {}
    for number, line in enumerate(lines[1:], start=2):
        if not any(line):
            continue
        if len(line) != len(header):
            raise DataError(f"{path}, line {number}: fewer or more cells than the header", len(line), "correct it")
        image_id, value = line[id_place].strip(), line[place].strip()
        if found.setdefault(image_id, value) != value:
            raise DataError(f"{path}, line {number}: an image with two values", image_id, "keep one of its lines")
    return {image_id: value for image_id, value in found.items() if value}
