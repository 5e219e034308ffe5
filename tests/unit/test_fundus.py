"""Finding the fundus disc: drawn discs of known place and size, real photographs, and frames without one."""

from pathlib import Path

import cv2
import numpy as np
import pytest
import simplejpeg
from hypothesis import given, settings
from hypothesis import strategies as st

from retina_ray.data.decode import CorruptImageError, decode_photograph
from retina_ray.data.fundus import Disc, NoFundusError, crop_disc, find_disc, prepare, prepare_bytes

SEED = 3


def drawn(width: int, height: int, disc: Disc, *, surround: int = 5, level: float = 1.0) -> np.ndarray:
    """A disc whose brightness falls off outwards, with sensor noise."""
    y, x = np.mgrid[:height, :width] + 0.5
    distance = np.hypot(x - disc.cx, y - disc.cy) / disc.radius
    colour = np.array([180, 90, 40]) * level * np.clip(1.1 - 0.6 * distance**2, 0, None)[..., None]
    image = np.where((distance < 1)[..., None], np.maximum(colour, surround), surround)
    return np.clip(image + np.random.default_rng(SEED).normal(0, 3, image.shape), 0, 255).astype(np.uint8)


def error(found: Disc, truth: Disc) -> float:
    """The largest error of centre or radius, as a part of the radius."""
    return max(abs(found.cx - truth.cx), abs(found.cy - truth.cy), abs(found.radius - truth.radius)) / truth.radius


@pytest.mark.parametrize(
    ("width", "height", "disc"),
    [
        pytest.param(400, 400, Disc(200, 200, 190), id="whole"),
        pytest.param(600, 400, Disc(310.5, 195.2, 120), id="small, off centre"),
        pytest.param(600, 400, Disc(300, 200, 240), id="cut at top and bottom"),
        pytest.param(600, 400, Disc(300, 230, 240), id="cut unevenly"),
        pytest.param(500, 400, Disc(250, 200, 275), id="cut on all sides"),
        pytest.param(500, 400, Disc(60, 200, 150), id="cut on the left"),
        pytest.param(1200, 800, Disc(605, 390, 460), id="larger than the working size"),
        pytest.param(100, 80, Disc(50, 40, 38), id="small frame"),
    ],
)
def test_disc_is_found_within_two_per_cent(width, height, disc):
    assert error(find_disc(drawn(width, height, disc)), disc) < 0.02


@settings(max_examples=25)
@given(
    width=st.integers(200, 600),
    aspect=st.floats(0.6, 1),
    size=st.floats(0.25, 0.52),
    shift=st.tuples(st.floats(-0.05, 0.05), st.floats(-0.05, 0.05)),
    level=st.floats(0.4, 1.3),
)
def test_any_disc_is_found_within_two_per_cent(width, aspect, size, shift, level):
    height = int(width * aspect)
    disc = Disc(width * (0.5 + shift[0]), height * (0.5 + shift[1]), width * size)
    assert error(find_disc(drawn(width, height, disc, level=level)), disc) < 0.02


def test_grey_surround_labels_notch_and_shadow_do_not_move_the_disc():
    disc = Disc(300, 200, 180)
    image = drawn(600, 400, disc, surround=30)
    cv2.putText(image, "OD 2021-03-04", (5, 25), cv2.FONT_HERSHEY_SIMPLEX, 0.7, (255, 255, 255), 2)
    cv2.circle(image, (300 + 178, 200 - 20), 9, (170, 90, 40), -1)  # a camera's mark on the rim
    cv2.ellipse(image, (300, 200), (181, 181), 0, 100, 150, (30, 30, 30), 30)  # a lid's shadow
    assert error(find_disc(image), disc) < 0.02


def test_finding_is_deterministic():
    image = drawn(600, 400, Disc(300, 200, 240))
    assert find_disc(image) == find_disc(image.copy())


def no_fundus() -> dict[str, np.ndarray]:
    rng = np.random.default_rng(SEED)
    black = np.zeros((300, 400, 3), np.uint8)
    page = np.full_like(black, 255)
    for row in range(20, 300, 20):
        cv2.putText(page, "patient report, page 1", (10, row), cv2.FONT_HERSHEY_SIMPLEX, 0.5, (0, 0, 0), 1)
    frame, square, bars = black.copy(), black.copy(), black.copy()
    frame[40:260, 60:340] = (150, 140, 130)
    square[50:250, 100:300] = (150, 80, 40)
    bars[:, ::40] = bars[:, 1::40] = bars[:, 2::40] = 200
    return {
        "black": black,
        "black with noise": rng.integers(0, 12, black.shape, dtype=np.uint8),
        "white": np.full_like(black, 255),
        "white page": page,
        "all retina": np.full_like(black, (180, 90, 40)),
        "noise": rng.integers(0, 255, black.shape, dtype=np.uint8),
        "rectangle": frame,
        "square": square,
        "bars": bars,
        "a dot": drawn(400, 300, Disc(200, 150, 35)),
        "a speck": drawn(400, 300, Disc(200, 150, 8)),
        "half bright": np.repeat(np.arange(400, dtype=np.uint8)[None, :, None] // 200 * 150, 300, 0).repeat(3, 2),
    }


@pytest.mark.parametrize("case", no_fundus())
def test_frames_without_a_disc_are_refused_by_name(case):
    with pytest.raises(NoFundusError, match="eye_7"):
        find_disc(no_fundus()[case], name="eye_7")


@pytest.mark.parametrize("size", [64, 200, 500])
def test_crop_holds_the_disc_from_side_to_side_and_is_black_beyond_the_photograph(size):
    disc = Disc(300, 200, 240)
    image = drawn(600, 400, disc, surround=0)
    crop = crop_disc(image, disc, size)
    assert crop.shape == (size, size, 3)
    assert crop.dtype == np.uint8
    middle, beyond = crop[size // 2].max(axis=1), crop[: int(size * 0.07)]
    assert (beyond == 0).all()  # the photograph starts 40 of 480 pixels further down
    assert middle[1 : size // 20].mean() > 60
    assert middle[-size // 20 : -1].mean() > 60
    again = find_disc(crop)
    assert error(again, Disc(size / 2, size / 2, size / 2)) < 0.03


def test_prepare_is_find_then_crop():
    image = drawn(600, 400, Disc(300, 200, 240))
    assert (prepare(image, 96) == crop_disc(image, find_disc(image), 96)).all()


def test_reduced_decoding_gives_nearly_the_same_square():
    image = cv2.GaussianBlur(drawn(1200, 800, Disc(600, 400, 450)), (9, 9), 0)
    data = simplejpeg.encode_jpeg(image, 95)
    assert decode_photograph(data, name="eye", target=100).shape[0] == 100  # so there is a reduced path to take
    square = prepare_bytes(data, name="eye", size=100)
    assert np.abs(square.astype(float) - prepare(image, 100).astype(float)).mean() < 2


def test_a_small_disc_is_decoded_with_the_pixels_it_needs():
    """The short side alone allows 1/4, where the disc has 80 pixels and the lines have vanished."""
    image = drawn(1280, 800, Disc(640, 400, 160))
    image[340:460] = np.where(np.arange(120) // 2 % 2, 160, 60)[:, None, None] * (image[340:460] > 20)
    square = prepare_bytes(simplejpeg.encode_jpeg(image, 98), name="eye", size=200)
    lines, reference = square[80:120, 60:140].astype(float), prepare(image, 200)[80:120, 60:140].astype(float)
    assert lines.std() > 0.8 * reference.std() > 10


def test_prepare_bytes_passes_errors_on():
    with pytest.raises(CorruptImageError, match="eye"):
        prepare_bytes(b"", name="eye", size=64)
    with pytest.raises(NoFundusError, match="eye"):
        prepare_bytes(simplejpeg.encode_jpeg(np.zeros((200, 200, 3), np.uint8)), name="eye", size=64)


def disc_of(path: Path, target: int | None = None) -> Disc:
    """The disc in units of the photograph's width."""
    image = decode_photograph(path.read_bytes(), name=path.name, target=target)
    return find_disc(image, name=path.name).scaled(1 / image.shape[1])


def test_every_idrid_photograph_has_its_disc(shared_dir):
    paths = sorted((shared_dir / "data/idrid/images").glob("*.jpg"))
    found = (disc_of(path, target=300) for path in paths)
    discs = np.array([(disc.cx, disc.cy, disc.radius) for disc in found])
    assert len(discs) == 215
    # One camera and field of view: the discs differ by far less than two per cent.
    assert abs(np.median(discs[:, 2]) - 0.399) < 0.002
    assert (np.abs(discs - np.median(discs, axis=0)) < 0.01 * 0.399).all()


def test_idrid_originals_and_their_reductions_agree(shared_dir):
    folder = shared_dir / "data/idrid"
    originals = sorted((folder / "originals").glob("*.jpg"))
    assert len(originals) == 25
    for original in originals[::3]:
        assert error(disc_of(original), disc_of(folder / "images" / original.name)) < 0.02
