"""DICOM files from outside: none is inflated, and what they say of a patient stays in the decoder."""

import io
import logging
import struct
import traceback
import tracemalloc
import warnings
import zlib
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pydicom
import pytest

from retina_ray.data.decode import CorruptImageError, decode_photograph
from retina_ray.data.quiet import quiet
from tests.unit.test_decode import dicom

PICTURE = np.full((96, 160, 3), 90, np.uint8)

DEFLATED = {
    "explicit": pydicom.uid.DeflatedExplicitVRLittleEndian,
    "JPIP": pydicom.uid.UID("1.2.840.10008.1.2.4.95"),
    "JPIP HTJ2K": pydicom.uid.JPIPHTJ2KReferencedDeflate,
}


def dicom_of_syntax(syntax: str, rest: bytes, *, version: bytes = b"\0\1", group: int = 2) -> bytes:
    """A DICOM file of hand-made meta information, which says nothing but this, and what follows it."""
    meta = struct.pack("<HH2sHI", group, 1, b"OB", 0, len(version)) + version
    uid = syntax.encode() + b"\0" * (len(syntax) % 2)
    meta += struct.pack("<HH2sH", group, 0x10, b"UI", len(uid)) + uid
    return bytes(128) + b"DICM" + meta + rest


@pytest.mark.parametrize("syntax", DEFLATED)
def test_deflated_dicom_is_refused_before_it_is_inflated(syntax):
    bomb = zlib.compressobj(wbits=-zlib.MAX_WBITS)
    rest = bomb.compress(bytes(2**26)) + bomb.flush()
    for version in (b"\0\1", bytes(5000)):
        data = dicom_of_syntax(DEFLATED[syntax], rest, version=version)
        tracemalloc.start()
        try:
            with pytest.raises(CorruptImageError, match="is deflated"):
                decode_photograph(data, name="eye.dcm")
            _, most = tracemalloc.get_traced_memory()
        finally:
            tracemalloc.stop()
        assert most < 2**22


def test_dicom_whose_meta_information_cannot_be_read_is_refused():
    syntax = pydicom.uid.DeflatedExplicitVRLittleEndian
    cut = dicom_of_syntax(syntax, b"")[:-30]
    for data in (cut, dicom_of_syntax(syntax, b"", group=8), bytes(128) + b"DICM" + dicom(PICTURE)[400:]):
        with pytest.raises(CorruptImageError, match="DICOM file is damaged"):
            decode_photograph(data, name="eye.dcm")


def dicom_that_says(**elements: str) -> bytes:
    """A DICOM photograph with words where there should be codes and numbers."""
    record = pydicom.dcmread(io.BytesIO(dicom(PICTURE)))
    for name, value in elements.items():
        record.add(pydicom.DataElement(name, "CS", value, validation_mode=pydicom.config.IGNORE))
    file = io.BytesIO()
    with quiet():
        record.save_as(file, enforce_file_format=True)
    return file.getvalue()


@pytest.mark.parametrize(
    "change",
    [
        {"SpecificCharacterSet": "PLANTED NAME"},
        {"SpecificCharacterSet": "PLANTED NAME", "PhotometricInterpretation": "YBR_PLANTED NAME"},
        {"PhotometricInterpretation": "PLANTED NAME"},
        {"NumberOfFrames": "PLANTED NAME"},
        {"BitsStored": "PLANTED NAME"},
    ],
    ids=lambda change: "-".join(change),
)
def test_what_a_dicom_file_says_of_its_patient_is_neither_raised_nor_logged_nor_warned_of(change, caplog, recwarn):
    warnings.simplefilter("always")
    caplog.set_level(logging.DEBUG)
    data = dicom_that_says(**change)
    if list(change) == ["SpecificCharacterSet"]:
        decode_photograph(data, name="eye.dcm")
    else:
        with pytest.raises(CorruptImageError) as caught:
            decode_photograph(data, name="eye.dcm")
        assert "PLANTED" not in "".join(traceback.format_exception(caught.value))
    assert caplog.text == ""
    assert [str(warning.message) for warning in recwarn] == []


def test_threads_that_decode_at_a_time_stay_quiet_together_and_leave_what_they_found(caplog, recwarn):
    warnings.simplefilter("always")
    caplog.set_level(logging.DEBUG)
    data = dicom_that_says(SpecificCharacterSet="PLANTED NAME")
    logger = logging.getLogger("pydicom")
    before = list(warnings.filters), logger.level
    with ThreadPoolExecutor(4) as pool:
        for _ in pool.map(lambda _: decode_photograph(data, name="eye"), range(200)):
            pass
    assert caplog.text == ""
    assert [str(warning.message) for warning in recwarn] == []
    assert (list(warnings.filters), logger.level) == before


def test_without_silence_pydicom_repeats_what_a_file_says(caplog, recwarn):
    pydicom.dcmread(io.BytesIO(dicom_that_says(SpecificCharacterSet="PLANTED NAME")))
    assert "PLANTED NAME" in caplog.text
    assert any("PLANTED NAME" in str(warning.message) for warning in recwarn)
