"""One photograph's file into one stored image: decode, find the disc, cut, resize, encode, with its drawn lesions.

Depends on the files alone, so any process of any machine may do it. What is not here: which photographs, and in which
order (``ingest``).
"""

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import numpy as np
import simplejpeg

from retina_ray.data.decode import CorruptImageError, decode_drawing, decode_photograph
from retina_ray.data.fundus import NoFundusError, Square, crop_drawing, find_and_crop, is_drawn_on
from retina_ray.data.lookalikes import look_of
from retina_ray.data.manifest import Encoding
from retina_ray.data.masks import encode_mask
from retina_ray.data.refusals import Refusal
from retina_ray.data.schema import LESIONS
from retina_ray.data.sources.base import SourceRow
from retina_ray.data.sources.files import read_file
from retina_ray.errors import DataError

JPEG_QUALITY = 92

UNREADABLE = "unreadable file"
"""Kind of the one refusal that may be another the next time."""


@dataclass(frozen=True, slots=True)
class Target:
    """What photographs are turned into.

    Attributes:
        image_size: S, pixels of a side of the square around the fundus disc.
        encoding: jpeg (quality 92, full chroma: small lesions differ from the retina mostly in colour) or raw.
    """

    image_size: int
    encoding: Encoding


@dataclass(frozen=True, slots=True)
class Converted:
    """A stored image.

    Attributes:
        image: JPEG, or raw uint8 HWC bytes.
        mask: as `data.masks.encode_mask` makes it, or None where no lesions are drawn.
        sha256: of the photograph's file, in hexadecimal.
        look: see `data.lookalikes`.
    """

    image: bytes
    mask: bytes | None
    sha256: str
    look: bytes


class Drawing(NamedTuple):
    """A file in which lesions of one plane are drawn, and what messages call it."""

    name: str
    data: bytes


def convert(data: bytes, drawings: Mapping[str, Drawing] | None, *, name: str, target: Target) -> Converted:
    """Turn a photograph's file into a stored image.

    Args:
        data: the file.
        drawings: by lesion plane (of `LESIONS`); a plane that is missing is empty. None: no mask.
        name: what error messages call the photograph.
        target: what to turn it into.

    Raises:
        CorruptImageError: a file cannot be decoded, or a drawing is of another photograph.
        NoFundusError: it shows no fundus disc.
    """
    square = find_and_crop(data, name=name, size=target.image_size)
    raw = target.encoding == "raw"
    return Converted(
        image=square.pixels.tobytes() if raw else simplejpeg.encode_jpeg(square.pixels, quality=JPEG_QUALITY),
        mask=None if drawings is None else _mask(drawings, square, data),
        sha256=hashlib.sha256(data).hexdigest(),
        look=look_of(square.pixels),
    )


def convert_row(row: SourceRow, target: Target) -> Converted | Refusal:
    """Read and convert a source's photograph, or say why that cannot be done.

    Raises:
        DataError: a file has vanished, or the storage does not answer.
    """
    name = str(row.image)
    try:
        data = read_file(row.image)
        drawings = None if row.masks is None else {plane: _drawing(file) for plane, file in row.masks.items()}
        return convert(data, drawings, name=name, target=target)
    except CorruptImageError as error:
        return Refusal("damaged image", error.what + _of_drawing(error.value, name), error.fix)
    except NoFundusError as error:
        return Refusal("no fundus", error.what, error.fix)
    except FileNotFoundError as error:
        fix = "mount the source on every node under one path, or use s3://; if it was deleted meanwhile, start again"
        raise DataError("a worker does not find a file that was there", error.filename or name, fix) from error
    except OSError as error:
        reason = str(error.strerror or error) + _of_drawing(error.filename or name, name)
        is_folder = isinstance(error, IsADirectoryError)
        fix = "name a photograph, not a folder" if is_folder else "check its permissions, and start again"
        return Refusal(UNREADABLE, reason, fix)


def _drawing(file: Path) -> Drawing:
    return Drawing(str(file), read_file(file))


def _of_drawing(file: object, name: str) -> str:
    """Return the end of a reason that names the drawing, where that is at fault and not the photograph."""
    return "" if file == name else f": the lesion drawing {file}"


def _mask(drawings: Mapping[str, Drawing], square: Square, photograph: bytes) -> bytes:
    unknown = set(drawings) - set(LESIONS)
    if unknown:
        raise DataError("a source draws unknown lesions", sorted(unknown), f"use {', '.join(LESIONS)}")
    size = len(square.pixels)
    planes = np.zeros((len(LESIONS), size, size), dtype=np.bool_)
    for plane, lesion in enumerate(LESIONS):
        if lesion in drawings:
            drawing = decode_drawing(drawings[lesion].data, name=drawings[lesion].name)
            if not is_drawn_on(drawing, square):
                raise _of_other_proportions(drawing.shape, drawings[lesion].name, photograph)
            planes[plane] = crop_drawing(drawing, square)
    return encode_mask(planes)


def _of_other_proportions(shape: tuple[int, ...], name: str, photograph: bytes) -> CorruptImageError:
    height, width, _ = decode_photograph(photograph, name=name).shape  # the square's may be of reduced decoding
    what = f"{shape[1]} x {shape[0]} pixels are of other proportions than the photograph's {width} x {height}"
    return CorruptImageError(what, name, "draw the lesions on the photograph itself")
