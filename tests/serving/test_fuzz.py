"""Files that are damaged at random, over real HTTP: each gets grades or a reason, and nothing leaks."""

import io
import random
import resource
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import cv2
import numpy as np
import pydicom
import pytest
import requests
from PIL import Image
from pydicom.dataset import Dataset, FileMetaDataset
from pydicom.uid import ExplicitVRLittleEndian, OphthalmicPhotography8BitImageStorage, generate_uid

from retina_ray.bundle import Bundle
from retina_ray.data.synthetic import draw
from retina_ray.serving.grading_service import GradingService, ServiceLimits
from retina_ray.serving.model_link import ModelLink
from retina_ray.serving.routing import Route
from retina_ray.serving.telemetry import Telemetry
from tests.bundles import make_everything
from tests.serving_http import served
from tests.serving_links import HubHere, ModelsHere, host_of

pytestmark = pytest.mark.serving

GROWTH_MB = 100
"""What the process may grow by; a file that leaked its pixels each time would show in a few hundred."""


RAW = {"content-type": "application/octet-stream"}


def resident_mb() -> float:
    """Return the memory that this process holds, in MiB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * resource.getpagesize() / 2**20


def originals() -> dict[str, bytes]:
    """Return a photograph in every format that is read."""
    fundus = Image.fromarray(draw(size=128, task="dr", grade=2, seed=5, index=0).image)
    files = {}
    for name, options in {
        "JPEG": {"quality": 90},
        "progressive": {"quality": 90, "progressive": True},
        "PNG": {},
        "TIFF": {"compression": "tiff_lzw"},
        "BMP": {},
        "WEBP": {"quality": 90},
    }.items():
        file = io.BytesIO()
        exif = Image.Exif()
        exif[0x0112], exif[0x010E] = 6, "a patient's name"
        with_exif = {"exif": exif} if name in ("JPEG", "progressive", "WEBP") else {}
        fundus.save(file, "JPEG" if name == "progressive" else name, **options, **with_exif)
        files[name] = file.getvalue()
    files["DICOM"] = dicom(np.asarray(fundus))
    return files


def dicom(pixels: np.ndarray) -> bytes:
    meta = FileMetaDataset()
    meta.MediaStorageSOPClassUID = OphthalmicPhotography8BitImageStorage
    meta.MediaStorageSOPInstanceUID = generate_uid()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    record = Dataset()
    record.file_meta = meta
    record.SOPClassUID, record.SOPInstanceUID = meta.MediaStorageSOPClassUID, meta.MediaStorageSOPInstanceUID
    record.PatientName, record.PatientID = "Doe^Jane", "12345"
    record.Rows, record.Columns = pixels.shape[:2]
    record.SamplesPerPixel, record.PlanarConfiguration, record.PixelRepresentation = 3, 0, 0
    record.PhotometricInterpretation = "RGB"
    record.BitsAllocated = record.BitsStored = 8
    record.HighBit = 7
    record.PixelData = pixels.tobytes()
    file = io.BytesIO()
    pydicom.dcmwrite(file, record, enforce_file_format=True)
    return file.getvalue()


def damaged(data: bytes, rng: random.Random) -> bytes:
    """Return a file with some of its bytes changed, cut, moved or repeated, more often near its head."""
    changed = bytearray(data)
    for _ in range(rng.choice((1, 1, 2, 5, 20))):
        span = len(changed) if rng.random() < 0.5 else min(len(changed), 600)
        at = rng.randrange(max(1, span))
        kind = rng.randrange(6)
        if kind == 0:
            changed[at : at + 1] = bytes([rng.randrange(256)])
        elif kind == 1:
            changed[at : at + 4] = rng.choice((b"\xff\xff\xff\xff", b"\x00\x00\x00\x00", b"\x7f\xff\xff\xff"))
        elif kind == 2:
            del changed[at:]
        elif kind == 3:
            del changed[at : at + rng.randrange(1, 64)]
        elif kind == 4:
            changed[at:at] = bytes(rng.randrange(256) for _ in range(rng.randrange(1, 64)))
        else:
            other = rng.randrange(max(1, len(changed)))
            changed[at:at] = changed[other : other + rng.randrange(1, 512)]
        if not changed:
            break
    return bytes(changed)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_everything(tmp_path_factory.mktemp("dataset")).build(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def url(bundle: Bundle) -> Iterator[str]:
    route = Route(ModelLink("grading", ModelsHere([host_of(bundle)])))
    service = GradingService(
        "replica",
        {"grading": route},
        HubHere(),
        limits=ServiceLimits(),
        telemetry=Telemetry(),
        audit=None,
        rate_limited=False,
        shadow_log=None,
    )
    with served(service) as address:
        yield address


def test_the_originals_are_graded_and_say_nothing_of_the_patient(url: str) -> None:
    for name, data in originals().items():
        answer = requests.post(f"{url}/v1/grade", data=data, headers=RAW, timeout=20)
        assert answer.status_code == 200, (name, answer.text)
        assert "patient" not in answer.text
        assert "Doe" not in answer.text


@pytest.mark.timeout(1800)
@pytest.mark.parametrize("files", [300, pytest.param(10_000, marks=pytest.mark.long)])
def test_damaged_files(url: str, files: int, capsys: pytest.CaptureFixture[str]) -> None:
    rng = random.Random(0)
    whole = originals()
    seen: Counter[tuple[str, int]] = Counter()
    before = 0.0
    with requests.Session() as session:
        for index in range(files):
            name = rng.choice(list(whole))
            data = damaged(whole[name], rng)
            answer = session.post(f"{url}/v1/grade", data=data, headers=RAW, timeout=20)
            assert answer.status_code in (200, 400, 413, 422), (name, index, answer.text)
            assert "Doe" not in answer.text
            if answer.status_code != 200:
                assert answer.json()["type"] in ("unreadable-image", "no-fundus", "bad-request", "too-large")
            seen[name, answer.status_code] += 1
            if index == 100:  # when every format has been met, and every buffer is there
                before = resident_mb()
    grown = resident_mb() - before
    with capsys.disabled():
        counts = ", ".join(f"{name} {status}: {count}" for (name, status), count in sorted(seen.items()))
        print(f"\n{files} damaged files: {counts}; grown by {grown:.0f} MiB")
    assert {name for name, _ in seen} == set(whole)
    assert grown < GROWTH_MB


def test_a_bomb_is_refused_by_its_header(url: str) -> None:
    flat = cv2.imencode(".png", np.zeros((9_000, 9_000), np.uint8))[1].tobytes()
    assert len(flat) < 200_000
    before = resident_mb()
    answer = requests.post(f"{url}/v1/grade", data=flat, headers={"content-type": "image/png"}, timeout=20)
    assert answer.status_code == 422
    assert "too large" in answer.json()["detail"]
    assert resident_mb() - before < 60
