"""Which photographs show one picture: copies that were changed on the way, and none of different eyes."""

import cv2
import numpy as np
import pytest
import simplejpeg

from retina_ray.data.fundus import prepare_bytes
from retina_ray.data.lookalikes import ALIKE, LOOK_BYTES, alike, look_of

SIZE = 128


def looks(squares: list[np.ndarray]) -> np.ndarray:
    return np.stack([np.frombuffer(look_of(square), np.int8) for square in squares])


@pytest.fixture(scope="module")
def photographs(shared_dir) -> list[bytes]:
    """Sixty real photographs of different eyes."""
    return [path.read_bytes() for path in sorted((shared_dir / "data/idrid/images").iterdir())[:60]]


@pytest.fixture(scope="module")
def squares(photographs) -> list[np.ndarray]:
    return [prepare_bytes(data, name="eye", size=SIZE) for data in photographs]


def test_different_eyes_are_not_alike(squares):
    assert alike(looks(squares)) == []


@pytest.mark.parametrize("change", ["quality", "size", "brightness", "all"])
def test_changed_copies_are_alike(photographs, squares, change):
    copies = []
    for data in photographs[:12]:
        image = simplejpeg.decode_jpeg(data)
        if change in ("size", "all"):
            image = cv2.resize(image, None, fx=0.6, fy=0.6, interpolation=cv2.INTER_AREA)
        if change in ("brightness", "all"):
            image = np.clip(image * 1.15 + 4, 0, 255).astype(np.uint8)
        quality = 40 if change in ("quality", "all") else 95
        copies.append(prepare_bytes(simplejpeg.encode_jpeg(image, quality), name="copy", size=SIZE))
    assert alike(looks([*squares[:12], *copies])) == [(number, number + 12) for number in range(12)]


def test_all_pairs_are_found_across_blocks(monkeypatch):
    monkeypatch.setattr("retina_ray.data.lookalikes._BLOCK", 5)
    rng = np.random.default_rng(0)
    drawn = rng.integers(-127, 128, (23, LOOK_BYTES), dtype=np.int8)
    drawn[17], drawn[4], drawn[22] = drawn[3], drawn[3], drawn[0]
    assert alike(drawn) == [(0, 22), (3, 4), (3, 17), (4, 17)]


def test_the_threshold_is_a_correlation():
    rng = np.random.default_rng(1)
    one, other = (vector - vector.mean() for vector in rng.normal(size=(2, LOOK_BYTES)))
    other -= one * (one @ other) / (one @ one)
    other *= np.linalg.norm(one) / np.linalg.norm(other)
    for correlation in (ALIKE - 0.01, ALIKE + 0.01):
        mixed = correlation * one + np.sqrt(1 - correlation**2) * other
        pair = np.stack([vector * 127 / np.abs(vector).max() for vector in (one, mixed)]).round().astype(np.int8)
        assert alike(pair) == ([(0, 1)] if correlation > ALIKE else [])


def test_uniform_squares_look_like_nothing():
    flat = np.full((SIZE, SIZE, 3), 90, np.uint8)
    assert look_of(flat) == bytes(LOOK_BYTES)
    assert alike(looks([flat, flat])) == []
