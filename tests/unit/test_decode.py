"""Decoding bytes of unknown origin: every format to the same pixels, every kind of damage to a named error."""

import io
import pickle
import re
import struct
import warnings
import zlib

import cv2
import numpy as np
import pydicom
import pytest
import simplejpeg
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from retina_ray.data.decode import MAX_JPEG_SCANS, CorruptImageError, decode_drawing, decode_photograph
from retina_ray.data.jpeg_header import read_jpeg_header
from retina_ray.errors import DataError

HEIGHT, WIDTH = 96, 160


@pytest.fixture
def picture() -> np.ndarray:
    """Smooth colours, so that lossy formats stay near, without any symmetry."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    return np.stack([x * 255 // WIDTH, y * 255 // HEIGHT, (x + 2 * y) * 255 // (WIDTH + 2 * HEIGHT)], axis=2).astype(
        np.uint8
    )


def saved(image: Image.Image, image_format: str, **options: object) -> bytes:
    file = io.BytesIO()
    image.save(file, image_format, **options)
    return file.getvalue()


def jpeg(picture: np.ndarray, **options: object) -> bytes:
    return saved(Image.fromarray(picture), "JPEG", quality=95, subsampling=0, **options)


def scans(data: bytes, more: int) -> bytes:
    """Return a JPEG file whose last scan comes ``more`` times more."""
    last, end = data.rindex(b"\xff\xda"), len(data) - 2
    return data[:end] + data[last:end] * more + data[end:]


def difference(a: np.ndarray, b: np.ndarray) -> float:
    return float(np.abs(a.astype(float) - b.astype(float)).mean())


@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF", "BMP", "WEBP"])
def test_each_format_gives_the_picture_whatever_its_name(picture, image_format):
    data = saved(Image.fromarray(picture), image_format)
    decoded = decode_photograph(data, name="misnamed.txt")
    assert decoded.dtype == np.uint8
    assert decoded.shape == picture.shape
    assert difference(decoded, picture) < (3 if image_format in ("JPEG", "WEBP") else 0.01)


@pytest.mark.parametrize("orientation", range(1, 9))
@pytest.mark.parametrize("image_format", ["JPEG", "PNG", "TIFF"])
def test_exif_orientation_is_undone(picture, image_format, orientation):
    undone = {
        1: picture,
        2: picture[:, ::-1],
        3: picture[::-1, ::-1],
        4: picture[::-1],
        5: picture.transpose(1, 0, 2),
        6: np.rot90(picture, -1),
        7: np.rot90(picture, 2).transpose(1, 0, 2),
        8: np.rot90(picture, 1),
    }[orientation]
    exif = Image.Exif()
    exif[0x0112] = orientation
    decoded = decode_photograph(saved(Image.fromarray(picture), image_format, exif=exif), name="turned")
    assert decoded.shape == undone.shape
    assert difference(decoded, undone) < 3


def test_exif_is_found_behind_other_segments_and_fill_bytes(picture):
    exif = Image.Exif()
    exif[0x0112] = 3
    data = jpeg(picture, exif=exif)
    comment = b"\xff\xff\xff\xfe\x00\x06note"
    decoded = decode_photograph(data[:2] + comment + data[2:], name="turned")
    assert difference(decoded, picture[::-1, ::-1]) < 3


def test_what_an_exif_thumbnail_holds_counts_for_nothing(picture):
    many_scans = b"Exif\0\0" + b"\xff\xda" * (MAX_JPEG_SCANS + 1)
    assert difference(decode_photograph(jpeg(picture, exif=many_scans), name="thumbnail"), picture) < 3


@given(st.binary(max_size=60))
def test_a_header_of_any_bytes_is_read_to_its_end(data):
    header = read_jpeg_header(b"\xff\xd8\xff" + data)
    assert header.orientation in range(1, 9)


def test_unreadable_exif_leaves_the_picture_as_it_is(picture):
    data = jpeg(picture, exif=b"Exif\0\0" + b"MM\0*\xff\xff\xff\xff" + b"\x07" * 40)
    assert difference(decode_photograph(data, name="x"), picture) < 3


def test_grey_becomes_three_equal_channels(picture):
    grey = Image.fromarray(picture).convert("L")
    for image_format in ("JPEG", "PNG"):
        decoded = decode_photograph(saved(grey, image_format), name="grey")
        assert decoded.shape == (HEIGHT, WIDTH, 3)
        assert (decoded[..., 0] == decoded[..., 2]).all()
        assert difference(decoded[..., 0], np.asarray(grey)) < 2


@pytest.mark.parametrize("image_format", ["PNG", "TIFF"])
def test_sixteen_bits_keep_their_brightness(picture, image_format):
    deep = picture[..., 0].astype(np.uint16) * 257
    decoded = decode_photograph(saved(Image.fromarray(deep), image_format), name="deep")
    assert (decoded == picture[..., :1]).all()


def test_sixteen_bit_colour_keeps_its_colours(picture):
    _, data = cv2.imencode(".png", picture[..., ::-1].astype(np.uint16) * 257)
    assert difference(decode_photograph(data.tobytes(), name="deep"), picture) < 1


def test_cmyk_becomes_rgb(picture):
    decoded = decode_photograph(saved(Image.fromarray(picture).convert("CMYK"), "JPEG", quality=95), name="cmyk")
    assert difference(decoded, picture) < 4


def test_transparent_pixels_become_black(picture):
    alpha = np.full((HEIGHT, WIDTH, 1), 255, np.uint8)
    alpha[:, :40] = 0
    decoded = decode_photograph(saved(Image.fromarray(np.concatenate([picture, alpha], 2)), "PNG"), name="clear")
    assert (decoded[:, :40] == 0).all()
    assert (decoded[:, 40:] == picture[:, 40:]).all()


@pytest.mark.parametrize(
    ("target", "short_side"), [(None, 800), (801, 800), (700, 800), (400, 400), (260, 300), (60, 100)]
)
def test_target_gives_the_smallest_fast_size_that_is_large_enough(target, short_side):
    picture = np.full((800, 1200, 3), 90, np.uint8)
    decoded = decode_photograph(jpeg(picture), name="large", target=target)
    assert decoded.shape == (short_side, short_side * 3 // 2, 3)
    assert abs(float(decoded.mean()) - 90) < 2


def png_header(width: int, height: int) -> bytes:
    header = b"IHDR" + struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    data = b"IDAT" + zlib.compress(bytes(100))
    chunks = b"".join(
        struct.pack(">I", len(chunk) - 4) + chunk + struct.pack(">I", zlib.crc32(chunk))
        for chunk in (header, data, b"IEND")
    )
    return b"\x89PNG\r\n\x1a\n" + chunks


def jpeg_of_claimed_size(width: int, height: int) -> bytes:
    data = bytearray(simplejpeg.encode_jpeg(np.zeros((64, 64, 3), np.uint8)))
    start = data.index(b"\xff\xc0")
    data[start + 5 : start + 9] = struct.pack(">HH", height, width)
    return bytes(data)


def rotten(data: bytes) -> bytes:
    middle = len(data) // 2
    noise = np.random.default_rng(0).integers(0, 255, 200, dtype=np.uint8).tobytes()
    return data[:middle] + noise + data[middle + 200 :]


def restarts_swapped(picture: np.ndarray) -> bytes:
    data = bytearray(cv2.imencode(".jpg", picture, [cv2.IMWRITE_JPEG_RST_INTERVAL, 4])[1].tobytes())
    second, third = data.index(b"\xff\xd1") + 1, data.index(b"\xff\xd2") + 1
    data[second], data[third] = data[third], data[second]
    return bytes(data)


PYTHON_WORDS = re.compile("object (at|has)|at 0x")
NOISE = np.random.default_rng(0).integers(0, 255, (256, 256, 3), dtype=np.uint8)

REFUSED = {
    "empty": (b"", "is empty"),
    "web page": (b"\n<!DOCTYPE html><title>Sign in</title>", "web page"),
    "text": (b"image,grade\n1,2\n", "known format"),
    "zeros": (bytes(1000), "known format"),
    "gif": (saved(Image.fromarray(NOISE), "GIF"), "known format"),
    "jpeg, half": (jpeg(NOISE)[: len(jpeg(NOISE)) // 2], "JPEG file is damaged"),
    "jpeg without its end": (jpeg(NOISE)[:-2], "JPEG file is damaged"),
    "jpeg, header only": (jpeg(NOISE)[:100], "JPEG file is damaged"),
    "jpeg with invalid codes": (rotten(jpeg(NOISE)), "JPEG file is damaged"),
    "jpeg, restarts in the wrong order": (restarts_swapped(NOISE), "JPEG file is damaged"),
    "png, half": (saved(Image.fromarray(NOISE), "PNG")[:50_000], "PNG file is damaged"),
    "png with bit rot": (rotten(saved(Image.fromarray(NOISE), "PNG")), "PNG file is damaged"),
    "tiff, half": (saved(Image.fromarray(NOISE), "TIFF")[:50_000], "TIFF file is damaged"),
    "bmp, half": (saved(Image.fromarray(NOISE), "BMP")[:50_000], "BMP file is damaged"),
    "webp, half": (saved(Image.fromarray(NOISE), "WEBP")[:5000], "WEBP file is damaged"),
    "png bomb": (png_header(50_000, 50_000), "too large"),
    "png just over the area": (png_header(8193, 8192), "too large"),
    "png just over the side": (png_header(16_385, 64), "too large"),
    "jpeg bomb": (jpeg_of_claimed_size(65_500, 65_500), "too large, 65500 x 65500"),
    "jpeg of no pixels": (jpeg_of_claimed_size(0, 0), "damaged"),
    "tiny": (jpeg(NOISE[:63]), "too small, 256 x 63"),
    "tiny png": (saved(Image.fromarray(NOISE[:, :63]), "PNG"), "too small, 63 x 256"),
    "float tiff": (saved(Image.fromarray(np.ones((64, 64), np.float32)), "TIFF"), "32-bit"),
    "scan bomb": (
        scans(saved(Image.fromarray(NOISE), "JPEG", progressive=True), MAX_JPEG_SCANS),
        f"holds {MAX_JPEG_SCANS + 10} scans",
    ),
    "second baseline scan": (scans(jpeg(NOISE), 1), "JPEG file is damaged"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_is_no_sound_photograph_is_refused_with_its_name_and_cause(case):
    data, cause = REFUSED[case]
    with pytest.raises(CorruptImageError, match=cause) as caught:
        decode_photograph(data, name="eye_7.jpg")
    assert "eye_7.jpg" in str(caught.value)
    assert not PYTHON_WORDS.search(str(caught.value))
    assert caught.value.fix
    assert isinstance(caught.value, DataError)
    assert str(pickle.loads(pickle.dumps(caught.value))) == str(caught.value)


def test_a_jpeg_has_no_checksum_so_a_wrong_bit_may_pass(picture):
    data = bytearray(jpeg(picture))
    data[len(data) // 2] ^= 1
    assert decode_photograph(bytes(data), name="eye").shape == picture.shape


@pytest.mark.parametrize("image_format", ["PNG", "TIFF", "BMP", "WEBP", "DICOM"])
def test_a_file_cut_anywhere_is_refused_alike_each_time_and_without_python_s_words(image_format):
    data = dicom(NOISE) if image_format == "DICOM" else saved(Image.fromarray(NOISE), image_format)
    reasons: list[list[str]] = [[], []]
    for said in reasons:
        for length in (*range(14, 400, 9), len(data) // 2):
            with pytest.raises(CorruptImageError) as caught:
                decode_photograph(data[:length], name="eye")
            said.append(caught.value.what)
    assert reasons[0] == reasons[1]
    assert not [reason for reason in reasons[0] if PYTHON_WORDS.search(reason)]


def test_dicom_without_a_size_says_so(picture):
    record = pydicom.dcmread(io.BytesIO(dicom(picture)))
    del record.Columns
    file = io.BytesIO()
    record.save_as(file, enforce_file_format=True)
    with pytest.raises(CorruptImageError, match=r"the DICOM file is damaged \(it has no Columns\)"):
        decode_photograph(file.getvalue(), name="eye.dcm")


def test_libraries_warn_of_nothing_that_is_refused_anyway(recwarn):
    warnings.simplefilter("always")
    large = saved(Image.new("1", (9000, 10_000)), "PNG")
    cut = saved(Image.fromarray(NOISE), "TIFF")[:60]
    for decode in (decode_photograph, decode_drawing):
        for data, cause in ((large, "too large, 9000 x 10000"), (cut, "TIFF file is damaged")):
            with pytest.raises(CorruptImageError, match=cause):
                decode(data, name="eye")
    assert [str(warning.message) for warning in recwarn] == []


def dicom(pixels: np.ndarray, *, bits: int = 8, photometric: str = "RGB", **attributes: object) -> bytes:
    """A DICOM ophthalmic photograph with a patient's name in it."""
    record = pydicom.Dataset()
    record.file_meta = pydicom.dataset.FileMetaDataset()
    record.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRLittleEndian
    record.SOPClassUID = "1.2.840.10008.5.1.4.1.1.77.1.5.1"
    record.SOPInstanceUID = pydicom.uid.generate_uid()
    record.PatientName = "Planted^Name"
    record.Rows, record.Columns = pixels.shape[:2]
    record.SamplesPerPixel = 3 if pixels.ndim == 3 else 1
    record.PhotometricInterpretation = photometric
    record.BitsStored, record.BitsAllocated, record.HighBit = bits, 8 * pixels.itemsize, bits - 1
    record.PixelRepresentation = 0
    if pixels.ndim == 3:
        record.PlanarConfiguration = 0
    for name, value in attributes.items():
        setattr(record, name, value)
    record.PixelData = pixels.tobytes()
    file = io.BytesIO()
    record.save_as(file, enforce_file_format=True)
    return file.getvalue()


def test_dicom_photographs_are_read_whatever_their_name(picture):
    assert (decode_photograph(dicom(picture), name="eye.jpg") == picture).all()
    grey = picture[..., 2].astype(np.uint16) * 16
    decoded = decode_photograph(dicom(grey, bits=12, photometric="MONOCHROME2"), name="eye.dcm")
    assert np.abs(decoded[..., 0].astype(int) - picture[..., 2]).max() <= 1


def test_dicom_jpegs_are_decoded(picture):
    record = pydicom.dcmread(io.BytesIO(dicom(picture, photometric="YBR_FULL_422")))
    record.PixelData = pydicom.encaps.encapsulate([jpeg(picture)])
    record["PixelData"].VR = "OB"
    record.file_meta.TransferSyntaxUID = pydicom.uid.JPEGBaseline8Bit
    file = io.BytesIO()
    record.save_as(file, enforce_file_format=True)
    assert difference(decode_photograph(file.getvalue(), name="eye.dcm"), picture) < 3


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"NumberOfFrames": 2}, "holds 2 frames"),
        ({"Rows": 60_000, "Columns": 60_000}, "too large"),
        ({"Rows": 90}, "damaged"),
        ({"BitsStored": 70}, "damaged"),
        ({"PhotometricInterpretation": "MONOCHROME1"}, "stores its pixels as MONOCHROME1"),
        ({"PhotometricInterpretation": "PALETTE COLOR"}, "stores its pixels as PALETTE COLOR"),
        ({"PhotometricInterpretation": "ANOTHER"}, "stores its pixels as an unknown PhotometricInterpretation"),
    ],
)
def test_dicom_that_is_no_single_photograph_is_refused(picture, change, message):
    data = dicom(picture, **change)
    if message == "damaged":
        data = data[:-5000]
    with pytest.raises(CorruptImageError, match=message) as caught:
        decode_photograph(data, name="eye.dcm")
    assert "Planted" not in str(caught.value)


@pytest.mark.parametrize("mode", ["1", "L", "P", "RGB", "RGBA", "I;16"])
@pytest.mark.parametrize("image_format", ["TIFF", "PNG"])
def test_drawings_of_any_mode_are_what_is_not_black(mode, image_format):
    drawn = np.zeros((HEIGHT, WIDTH), bool)
    drawn[30:33, 70:72] = True
    pixels = drawn.astype(np.uint8) * (1 if mode == "P" else 200)
    if mode == "I;16":
        image = Image.fromarray(drawn.astype(np.uint16) * 300)
    elif mode == "P":
        image = Image.fromarray(pixels, "P")
        image.putpalette([0, 0, 0, 255, 0, 0])
    elif mode == "RGBA":  # opaque everywhere, drawn in red
        zero = np.zeros_like(pixels)
        image = Image.fromarray(np.dstack([pixels, zero, zero, np.full_like(pixels, 255)]))
    else:
        image = Image.fromarray(pixels).convert(mode, dither=Image.Dither.NONE)
    assert (decode_drawing(saved(image, image_format), name="drawing") == drawn).all()
