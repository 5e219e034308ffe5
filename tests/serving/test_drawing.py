"""Drawings show the heat and, under it, the fundus; masks and areas count the pixels of the fundus disc."""

import cv2
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra import numpy as of_numpy

from retina_ray.data.synthetic import draw
from retina_ray.serving.drawing import area, lesion_mask, mask_png, overlay_png, picture_png

SIDE = 96


def read(file: bytes) -> np.ndarray:
    """Return the pixels of a PNG file, colours as RGB or RGBA."""
    assert file.startswith(b"\x89PNG\r\n\x1a\n")
    pixels = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_UNCHANGED)
    assert pixels is not None
    if pixels.ndim == 3:
        pixels[..., :3] = pixels[..., 2::-1].copy()
    return np.asarray(pixels)


def fundus() -> np.ndarray:
    return draw(size=SIDE, task="dr", grade=3, seed=0, index=1).image


def spot(side: int = SIDE) -> np.ndarray:
    """Return a map that is hot at a quarter of the height and three quarters of the width."""
    rows, columns = np.mgrid[:side, :side] / side
    return np.exp(-((rows - 0.25) ** 2 + (columns - 0.75) ** 2) / 0.01).astype(np.float32)


def test_without_heat_the_square_is_what_it_was() -> None:
    square = fundus()
    np.testing.assert_array_equal(read(overlay_png(square, np.zeros((SIDE, SIDE), np.float32))), square)


def test_the_heat_is_where_the_map_says() -> None:
    square = fundus()
    change = np.abs(read(overlay_png(square, spot())).astype(int) - square).sum(axis=2)
    assert np.unravel_index(cv2.blur(change.astype(np.float32), (9, 9)).argmax(), change.shape) == pytest.approx(
        (SIDE // 4, 3 * SIDE // 4), abs=6
    )
    assert change[3 * SIDE // 4, SIDE // 4] == 0


def test_the_fundus_shows_through_the_hottest_heat() -> None:
    """Half of the contrast between two pixels is what vessels and lesions need to be seen."""
    square = fundus()
    hot = read(overlay_png(square, np.ones((SIDE, SIDE), np.float32))).astype(float)
    slope, _ = np.polyfit(square[..., 1].ravel().astype(float), hot[..., 1].ravel(), 1)
    assert 0.35 < slope < 0.65
    assert np.corrcoef(square[..., 1].ravel(), hot[..., 1].ravel())[0, 1] > 0.99


def test_more_heat_is_lighter_and_more_opaque() -> None:
    ramp = np.tile(np.linspace(0, 1, SIDE, dtype=np.float32), (SIDE, 1))
    black, white = (np.full((SIDE, SIDE, 3), level, np.uint8) for level in (0, 255))
    on_black, on_white = (read(overlay_png(square, ramp))[0].astype(float) for square in (black, white))
    opacity = 1 - (on_white - on_black).mean(axis=1) / 255
    lightness = on_black @ [0.2126, 0.7152, 0.0722]
    assert opacity[0] == pytest.approx(0, abs=0.01)
    assert (np.diff(opacity) >= -0.01).all()
    assert 0.5 < opacity[-1] < 0.7
    assert lightness[-1] > 100


def test_maps_and_squares_of_other_sizes_are_brought_together() -> None:
    square = fundus()
    assert read(overlay_png(square, spot(24))).shape == (SIDE, SIDE, 3)
    assert read(overlay_png(square[::4, ::4].copy(), spot())).shape == (SIDE, SIDE, 3)
    changed = np.abs(read(overlay_png(square, spot(24))).astype(float) - square).sum(axis=2)
    hottest = cv2.GaussianBlur(changed, (0, 0), SIDE / 24)
    assert np.unravel_index(hottest.argmax(), hottest.shape) == pytest.approx((SIDE // 4, 3 * SIDE // 4), abs=6)


def test_a_picture_keeps_its_pixels() -> None:
    np.testing.assert_array_equal(read(picture_png(fundus())), fundus())


@given(of_numpy.arrays(np.bool_, st.integers(1, 24).map(lambda side: (side, side))))
def test_a_mask_keeps_its_pixels(mask: np.ndarray) -> None:
    np.testing.assert_array_equal(read(mask_png(mask)), 255 * mask.astype(np.uint8))


@given(
    of_numpy.arrays(np.float32, st.integers(1, 24).map(lambda side: (side, side)), elements=st.floats(0, 1, width=32))
)
def test_an_area_is_a_share_of_the_disc(probabilities: np.ndarray) -> None:
    mask = lesion_mask(probabilities)
    assert 0 <= area(mask) <= 1
    assert not (mask & (probabilities <= 0.5)).any()
    assert area(lesion_mask(probabilities / 2)) == 0


def test_the_corners_do_not_count() -> None:
    everywhere = np.ones((64, 64), np.float32)
    mask = lesion_mask(everywhere)
    assert area(mask) == 1.0
    assert not mask[0, 0]
    assert mask[32, 0]
    assert mask.mean() == pytest.approx(np.pi / 4, abs=0.01)
    corners = ~mask
    assert area(corners) == 0.0
    left = np.zeros((64, 64), bool)
    left[:, :32] = True
    assert area(left) == pytest.approx(0.5)
