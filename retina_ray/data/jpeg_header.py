"""What a JPEG file says of itself before its first pixel, read from its markers alone (ITU-T T.81, annex B).

What is not here: decoding, and the dimensions, which the decoder reports.
"""

import struct
from dataclasses import dataclass

from PIL import Image

_ORIENTATION_TAG = 0x0112
_EXIF = b"Exif\x00\x00"
_APP1, _SOS = 0xE1, 0xDA
_SEQUENTIAL = (0xC0, 0xC1)
_FRAMES = frozenset(range(0xC0, 0xD0)) - {0xC4, 0xC8, 0xCC}  # these three are tables and an extension


@dataclass(frozen=True)
class JpegHeader:
    """``one_scan``: the first scan holds every component, whole; decoders refuse a second.

    ``exif``: the first EXIF block, empty if none.
    """

    one_scan: bool
    exif: bytes

    @property
    def orientation(self) -> int:
        """The EXIF orientation, 1 to 8; an unreadable block says nothing, hence 1."""
        if not self.exif:
            return 1
        tags = Image.Exif()
        try:
            tags.load(self.exif)
            orientation = tags.get(_ORIENTATION_TAG, 1)
        except Exception:  # the pixels are sound; Pillow's metadata parsers raise almost any type
            return 1
        return orientation if orientation in range(1, 9) else 1


def read_jpeg_header(data: bytes) -> JpegHeader:
    """Walk the segments up to the first scan; where they make no sense, the rest of the header is taken as absent."""
    exif, sequential, components, position = b"", False, 0, 2
    while position + 5 <= len(data) and data[position] == 0xFF:
        marker = data[position + 1]
        if marker == 0xFF:  # a fill byte
            position += 1
            continue
        (length,) = struct.unpack_from(">H", data, position + 2)
        if marker == _SOS:
            return JpegHeader(sequential and data[position + 4] == components, exif)
        if marker in _FRAMES and length > 7:
            sequential, components = marker in _SEQUENTIAL, data[min(position + 9, len(data) - 1)]
        if marker == _APP1 and not exif and data.startswith(_EXIF, position + 4):
            exif = data[position + 4 : position + 2 + length]
        position += 2 + length
    return JpegHeader(False, exif)
