"""Bytes of unknown origin -> an RGB photograph or a drawn mask, or an error that names the file and the cause.

Ingest and serving decode through this file, so a photograph that one accepts the other accepts too, with equal pixels.
Also the images that a data set stores, whose size is known beforehand (`decode_image`).
What is not here: finding the fundus in the photograph (``fundus``) and colour management (ICC profiles are ignored).
"""

import io
from typing import TYPE_CHECKING

import cv2
import numpy as np
import numpy.typing as npt
import simplejpeg
from PIL import Image, ImageOps, UnidentifiedImageError

from retina_ray.data.jpeg_header import read_jpeg_header
from retina_ray.data.quiet import quiet
from retina_ray.errors import DataError

if TYPE_CHECKING:
    from pydicom import Dataset

MIN_SIDE = 64
MAX_SIDE = 16_384
MAX_PIXELS = 64 * 2**20
MAX_JPEG_SCANS = 64
"""Genuine progressive JPEGs hold about ten; each scan costs a pass over all coefficients, however few its bytes."""

_DICOM_META_AT = 132  # behind the preamble and the magic number
_PHOTOMETRIC = ("RGB", "YBR_", "MONOCHROME2")
_OTHER_PHOTOMETRIC = ("MONOCHROME1", "PALETTE COLOR")
_DICOM_ELEMENTS = ("Rows", "Columns", "PhotometricInterpretation", "BitsStored")
_OF_OBJECTS = (UnidentifiedImageError, AttributeError, LookupError, TypeError)
"""Errors of libraries that speak of Python's objects, and some of an address in memory, not of the file."""

_MAGIC = {
    b"\xff\xd8\xff": "JPEG",
    b"\x89PNG\r\n\x1a\n": "PNG",
    b"II*\x00": "TIFF",
    b"MM\x00*": "TIFF",
    b"BM": "BMP",
}


class CorruptImageError(DataError):
    """A file that is no photograph, or a damaged or an over-sized one."""


def decode_photograph(data: bytes, *, name: str, target: int | None = None) -> npt.NDArray[np.uint8]:
    """Decode a JPEG, PNG, TIFF, BMP, WebP or DICOM file as it is to be looked at: upright, RGB, 8 bits.

    The format is told by the first bytes, never by the name. The dimensions are checked in the header, before memory
    is spent on pixels. A JPEG is decoded strictly: where it is truncated, lacks its end, holds invalid codes or has its
    restart markers in the wrong order, of which other decoders make garbage pixels, that is an error. It has no
    checksum, though: rot that leaves all codes valid, as most single flipped bits do, cannot be seen.

    Args:
        data: the file.
        name: what error messages call it.
        target: where given, a JPEG may be decoded at 1/2, 3/8, 1/4 or 1/8 of its size, the smallest of these whose
            short side is still at least ``target`` pixels.

    Returns:
        Pixels, uint8 (H, W, 3) RGB in 0..255.

    Raises:
        CorruptImageError: the file is empty, of another format, truncated, damaged, or outside the size limits.
    """
    image_format = _format_of(data, name)
    if image_format == "JPEG":
        return _decode_jpeg(data, name, target)
    if image_format == "DICOM":
        return _decode_dicom(data, name)
    return _decode_with_pillow(data, name, image_format)


@quiet()
def decode_drawing(data: bytes, *, name: str) -> npt.NDArray[np.bool_]:
    """Decode a file in which a finding is drawn: every pixel that is not black belongs to it.

    Transparency says nothing: publishers leave it opaque everywhere, or mark with it what their editor showed.

    Args:
        data: a PNG, TIFF, BMP, WebP or JPEG file of any mode.
        name: what error messages call it.

    Returns:
        (H, W) bool, upright.

    Raises:
        CorruptImageError: as `decode_photograph`.
    """
    image_format = _format_of(data, name)
    image = _open_with_pillow(data, name, image_format)
    try:
        image = ImageOps.exif_transpose(image)
        pixels = np.asarray(image if image.mode in ("1", "L", "I;16", "I", "F") else image.convert("RGB")) > 0
    except Exception as error:  # at bytes from outside, Pillow raises almost any type
        raise _damaged(image_format, error, name) from error
    return np.asarray(pixels if pixels.ndim == 2 else pixels.any(axis=2), dtype=np.bool_)


def decode_image(data: memoryview | bytes, *, encoding: str, size: int) -> npt.NDArray[np.uint8]:
    """Decode a stored image.

    Args:
        data: a JPEG file, or raw pixels.
        encoding: ``jpeg`` or ``raw``.
        size: its side in pixels.

    Returns:
        (size, size, 3) uint8 RGB, possibly a read-only view of ``data``.

    Raises:
        ValueError: when the bytes are not a sound image of that size. The header is read first, because decoding
            allocates what it promises.
    """
    if encoding == "raw":
        return np.frombuffer(data, np.uint8).reshape(size, size, 3)
    check_jpeg_size(data, size)
    pixels: npt.NDArray[np.uint8] = simplejpeg.decode_jpeg(data, "RGB", strict=True)
    return pixels


def check_jpeg_size(data: memoryview | bytes, size: int) -> None:
    """Raise ValueError unless the bytes begin like a JPEG file of size x size pixels."""
    height, width, *_ = simplejpeg.decode_jpeg_header(data)
    if (height, width) != (size, size):
        raise ValueError(f"the image is {width} x {height} pixels, not {size} x {size}")


def _format_of(data: bytes, name: str) -> str:
    if not data:
        raise CorruptImageError("the file is empty", name, "copy it again from its source")
    for magic, image_format in _MAGIC.items():
        if data.startswith(magic):
            return image_format
    if data[:4] == b"RIFF" and data[8:12] == b"WEBP":
        return "WEBP"
    if data[128:132] == b"DICM":
        return "DICOM"
    if data[:1024].lstrip(b"\xef\xbb\xbf \t\r\n").startswith(b"<"):
        raise CorruptImageError("the file is a web page, not an image", name, "download it again, signed in if need be")
    raise CorruptImageError("the file is no image of a known format", name, "give JPEG, PNG, TIFF, BMP, WebP or DICOM")


def _check_dimensions(width: int, height: int, name: str) -> None:
    if min(width, height) < MIN_SIDE:
        raise CorruptImageError(
            f"the image is too small, {width} x {height} pixels", name, f"give at least {MIN_SIDE} pixels per side"
        )
    if max(width, height) > MAX_SIDE or width * height > MAX_PIXELS:
        raise CorruptImageError(
            f"the image is too large, {width} x {height} pixels",
            name,
            f"reduce it to at most {MAX_SIDE} pixels per side and {MAX_PIXELS >> 20} x 2^20 pixels",
        )


def _decode_jpeg(data: bytes, name: str, target: int | None) -> npt.NDArray[np.uint8]:
    try:
        height, width, _, _ = simplejpeg.decode_jpeg_header(data)
    except ValueError as error:
        raise _damaged("JPEG", error, name) from error
    _check_dimensions(int(width), int(height), name)
    header = read_jpeg_header(data)
    if not header.one_scan and (scans := data.count(b"\xff\xda")) > MAX_JPEG_SCANS:
        raise CorruptImageError(f"the JPEG holds {scans} scans", name, "save it again as a baseline JPEG")
    least = target or 0
    try:
        # A factor of 2 leaves out 7/8, 6/8 and 5/8, whose inverse transforms are slower than that of full size.
        image = simplejpeg.decode_jpeg(
            data, min_height=least, min_width=least, min_factor=2.0 if target else 1.0, strict=True
        )
    except ValueError as error:
        raise _damaged("JPEG", error, name) from error
    return _upright(image, header.orientation)


def _upright(image: npt.NDArray[np.uint8], orientation: int) -> npt.NDArray[np.uint8]:
    """Undo an EXIF orientation: from 5 on the axes are swapped, and each code adds a mirroring."""
    if orientation >= 5:
        image = np.asarray(cv2.transpose(image), dtype=np.uint8)
    flip = {2: 1, 3: -1, 4: 0, 6: 1, 7: -1, 8: 0}.get(orientation)  # cv2: 0 rows, 1 columns, -1 both
    return image if flip is None else np.asarray(cv2.flip(image, flip), dtype=np.uint8)


@quiet()
def _decode_with_pillow(data: bytes, name: str, image_format: str) -> npt.NDArray[np.uint8]:
    image = _open_with_pillow(data, name, image_format)
    try:
        return _rgb(ImageOps.exif_transpose(image), name)
    except CorruptImageError:
        raise
    except Exception as error:  # at bytes from outside, Pillow raises almost any type
        raise _damaged(image_format, error, name) from error


def _open_with_pillow(data: bytes, name: str, image_format: str) -> Image.Image:
    """Return an image, its dimensions checked before its pixels are decoded."""
    try:
        image: Image.Image = Image.open(io.BytesIO(data), formats=[image_format])
    except Image.DecompressionBombError as error:
        raise CorruptImageError(
            "the image is too large", name, f"reduce it to at most {MAX_PIXELS >> 20} x 2^20 pixels"
        ) from error
    except Exception as error:  # at bytes from outside, Pillow's plug-ins raise almost any type
        raise _damaged(image_format, error, name) from error
    _check_dimensions(image.width, image.height, name)
    try:
        image.load()
    except Exception as error:  # as above
        raise _damaged(image_format, error, name) from error
    return image


def _decode_dicom(data: bytes, name: str) -> npt.NDArray[np.uint8]:
    """Decode the one frame of a DICOM photograph; whatever says who it is of is left behind, also by errors."""
    # Not at the top: loaders and ranks decode JPEG all day and never see a DICOM file.
    import pydicom
    from pydicom.pixels.utils import pixel_array

    with quiet():
        _check_transfer_syntax(data, name)
        try:
            record = pydicom.dcmread(io.BytesIO(data))
            _check_record(record, name)
            pixels = pixel_array(record)  # colours become RGB
            bits = int(record.BitsStored)
        except CorruptImageError:
            raise
        except Exception as error:  # at bytes from outside, pydicom raises almost any type
            raise _damaged_dicom(error, name) from None
    if pixels.dtype not in (np.uint8, np.uint16):
        raise CorruptImageError(f"the DICOM file has {pixels.dtype} pixels", name, "give a photograph, 8 or 16 bits")
    highest = 2**bits - 1
    eight = ((pixels.astype(np.uint32) * 255 + highest // 2) // highest).astype(np.uint8)
    return eight if eight.ndim == 3 else np.repeat(eight[:, :, None], 3, axis=2)


def _check_transfer_syntax(data: bytes, name: str) -> None:
    """Refuse a deflated file, which pydicom would inflate whole before it can be looked at."""
    # By the function that pydicom itself goes by, whose public one wants a path: what is read differently gets past.
    from pydicom.filereader import _read_file_meta_info
    from pydicom.uid import UID

    file = io.BytesIO(data)
    file.seek(_DICOM_META_AT)
    try:
        syntax = UID(str(_read_file_meta_info(file).TransferSyntaxUID))
    except Exception as error:  # as above; then nobody knows whether it is deflated
        raise _damaged_dicom(error, name) from None
    if "deflate" in syntax.name.lower():  # `is_deflated` knows one of them alone
        raise CorruptImageError("the DICOM file is deflated", name, "save it in another transfer syntax")


def _check_record(record: "Dataset", name: str) -> None:
    """Refuse what is no single photograph, before its pixels are decoded."""
    if missing := [element for element in _DICOM_ELEMENTS if element not in record]:
        raise _damaged("DICOM", f"it has no {' and no '.join(missing)}", name)
    _check_dimensions(int(record.Columns), int(record.Rows), name)
    frames = int(record.get("NumberOfFrames", None) or 1)
    if frames != 1:
        raise CorruptImageError(f"the DICOM file holds {frames} frames", name, "give one per file")
    photometric = str(record.PhotometricInterpretation)
    if not photometric.startswith(_PHOTOMETRIC):
        named = photometric if photometric in _OTHER_PHOTOMETRIC else "an unknown PhotometricInterpretation"
        raise CorruptImageError(f"the DICOM file stores its pixels as {named}", name, "save it as RGB or MONOCHROME2")


def _damaged_dicom(error: Exception, name: str) -> CorruptImageError:
    """Return an error that names the kind of another: the words of pydicom's may be a patient's."""
    return _damaged("DICOM", type(error).__name__, name)


def _rgb(image: Image.Image, name: str) -> npt.NDArray[np.uint8]:
    """Return 8-bit RGB pixels of an image of any mode; transparent pixels become black, like the fundus's surround."""
    if image.mode.startswith("I;16"):
        grey = ((np.asarray(image).astype(np.uint32) + 128) // 257).astype(np.uint8)
        return np.repeat(grey[:, :, None], 3, axis=2)
    if image.mode in ("I", "F"):
        raise CorruptImageError(
            f"the image has 32-bit pixels (mode {image.mode})", name, "save it with 8 or 16 bits per channel"
        )
    if image.has_transparency_data:
        image = image.convert("RGBA")
        black = Image.new("RGBA", image.size, (0, 0, 0, 255))
        image = Image.alpha_composite(black, image)
    return np.array(image.convert("RGB"), dtype=np.uint8)


def _damaged(image_format: str, cause: Exception | str, name: str) -> CorruptImageError:
    said = "it cannot be made sense of" if isinstance(cause, _OF_OBJECTS) else cause
    return CorruptImageError(f"the {image_format} file is damaged ({said})", name, "copy it again from its source")
