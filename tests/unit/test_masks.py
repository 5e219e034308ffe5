"""The stored form of lesion masks."""

import zlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from retina_ray.data.masks import decode_mask, encode_mask
from retina_ray.errors import DataError


@given(st.integers(1, 37), st.integers(1, 37), st.integers(0, 2**32 - 1))
def test_a_mask_survives_storage(height: int, width: int, seed: int) -> None:
    planes = np.random.default_rng(seed).random((4, height, width)) < 0.2
    decoded = decode_mask(encode_mask(planes), height, width)
    assert decoded.dtype == np.bool_
    np.testing.assert_array_equal(decoded, planes)


def test_sparse_masks_are_small() -> None:
    planes = np.zeros((4, 512, 512), bool)
    planes[0, 100:110, 200:210] = True
    assert len(encode_mask(planes)) < 1000


@pytest.mark.parametrize("shape", [(3, 8, 8), (8, 8), (4, 8, 8, 1)])
def test_only_four_planes_are_a_mask(shape: tuple[int, ...]) -> None:
    with pytest.raises(ValueError, match="mask is bool"):
        encode_mask(np.zeros(shape, bool))


def test_only_bool_is_a_mask() -> None:
    with pytest.raises(ValueError, match="uint8"):
        encode_mask(np.zeros((4, 8, 8), np.uint8))


@given(st.integers(0, 10_000), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_harmless(position: int, change: int) -> None:
    planes = np.random.default_rng(0).random((4, 16, 16)) < 0.5
    data = bytearray(encode_mask(planes))
    data[position % len(data)] ^= change
    try:
        decoded = decode_mask(bytes(data), 16, 16)
    except DataError:
        return
    np.testing.assert_array_equal(decoded, planes)


@pytest.mark.parametrize(("height", "width"), [(15, 16), (17, 16), (1000, 1000)])
def test_another_size_is_refused(height: int, width: int) -> None:
    with pytest.raises(DataError, match="another size"):
        decode_mask(encode_mask(np.zeros((4, 16, 16), bool)), height, width)


def test_a_truncated_mask_is_refused() -> None:
    with pytest.raises(DataError):
        decode_mask(encode_mask(np.ones((4, 16, 16), bool))[:-1], 16, 16)


def test_a_bomb_is_not_inflated() -> None:
    bomb = zlib.compress(bytes(1 << 24))
    with pytest.raises(DataError, match="another size"):
        decode_mask(bomb, 16, 16)
