"""Augmentation matrices: drawn per row, and right by hand."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retina_ray.data.augment import Augmentation, _draws, matrices, to_pixel_centres

MOVES_ONLY = Augmentation(scale=0, skew=0)


def draw(augmentation: Augmentation | None, rows: list[int], **changes: int) -> NDArray[np.float32]:
    arguments = {"seed": 3, "epoch": 1, "in_size": 64, "out_size": 48} | changes
    return matrices(augmentation, rows=np.array(rows), **arguments)


@settings(deadline=None)
@given(st.lists(st.integers(0, 2**40), min_size=1, max_size=20))
def test_a_row_draws_the_same_in_every_batch(rows: list[int]) -> None:
    together = draw(Augmentation(), rows)
    assert together.dtype == np.float32
    assert together.shape == (len(rows), 2, 3)
    np.testing.assert_array_equal(together[-1:], draw(Augmentation(), rows[-1:]))


def test_row_epoch_and_seed_each_change_the_draw() -> None:
    base = draw(Augmentation(), [5])
    for other in (draw(Augmentation(), [6]), draw(Augmentation(), [5], epoch=2), draw(Augmentation(), [5], seed=4)):
        assert not np.allclose(base, other)


def test_the_draw_is_the_same_for_ever() -> None:
    expected = [[-0.1967746, 1.4569173, 1.7565758], [-1.4569173, 0.0, 66.966011]]
    np.testing.assert_allclose(draw(Augmentation(), [5])[0], expected, rtol=1e-6)


def test_none_only_resizes() -> None:
    np.testing.assert_allclose(draw(None, [0])[0], [[64 / 48, 0, 0], [0, 64 / 48, 0]])
    np.testing.assert_array_equal(draw(None, [0], out_size=64)[0], [[1, 0, 0], [0, 1, 0]])


@settings(deadline=None)
@given(st.integers(0, 2**40), st.integers(8, 600), st.integers(8, 600))
def test_the_centre_stays_the_centre(row: int, in_size: int, out_size: int) -> None:
    matrix = draw(Augmentation(), [row], in_size=in_size, out_size=out_size)[0].astype(np.float64)
    np.testing.assert_allclose(matrix @ [out_size / 2, out_size / 2, 1], [in_size / 2, in_size / 2], atol=1e-3)


def test_a_point_by_hand() -> None:
    """Undo magnification, then shear, then flips, then the quarter turn, from the draws themselves."""
    augmentation, rows = Augmentation(), np.arange(200)
    drawn = _draws(3, 1, rows)
    for (magnify, turn, flip_x, flip_y, skew), matrix in zip(drawn, draw(augmentation, list(rows)), strict=True):
        point = np.array([5.0, -7.0])  # from the centre of the input
        x, y = point * (0.9 + 0.2 * magnify)
        x += (0.4 * skew - 0.2) * y
        x, y = (-x if flip_x < 0.5 else x), (-y if flip_y < 0.5 else y)
        for _ in range(int(4 * turn)):
            x, y = -y, x
        in_output = np.array([x, y]) * 48 / 64 + 24
        np.testing.assert_allclose(matrix @ [*in_output, 1], point + 32, atol=1e-3)


def test_moves_are_the_eight_symmetries_of_a_square_and_all_occur() -> None:
    found = draw(MOVES_ONLY, list(range(400)), in_size=63, out_size=63)
    kinds, counts = np.unique(found.reshape(-1, 6), axis=0, return_counts=True)
    assert len(kinds) == 8
    assert set(np.unique(kinds)) == {-1.0, 0.0, 1.0, 63.0}
    assert counts.min() > 25  # 50 expected each


@pytest.mark.parametrize(
    ("augmentation", "num_kinds"),
    [
        (Augmentation(scale=0, skew=0, rotate90=False), 4),
        (Augmentation(scale=0, skew=0, flip=False), 4),
        (Augmentation(scale=0, skew=0, rotate90=False, flip=False), 1),
    ],
)
def test_each_part_can_be_switched_off(augmentation: Augmentation, num_kinds: int) -> None:
    assert len(np.unique(draw(augmentation, list(range(100))).reshape(-1, 6), axis=0)) == num_kinds


def test_magnification_and_shear_fill_their_ranges() -> None:
    rows = list(range(2000))
    scaled = draw(Augmentation(rotate90=False, flip=False, skew=0), rows, out_size=64)
    magnification = 1 / scaled[:, 0, 0]
    assert 0.9 <= magnification.min() < 0.905
    assert 1.095 < magnification.max() <= 1.1
    sheared = draw(Augmentation(scale=0, rotate90=False, flip=False), rows, out_size=64)
    shear = -sheared[:, 0, 1]
    assert -0.2 <= shear.min() < -0.195
    assert 0.195 < shear.max() <= 0.2
    np.testing.assert_array_equal(sheared[:, 1, :2], np.tile([0, 1], (2000, 1)))


def test_switching_a_part_off_shifts_no_other_draw() -> None:
    rows = list(range(50))
    with_flips = draw(Augmentation(skew=0, rotate90=False), rows)
    without = draw(Augmentation(skew=0, rotate90=False, flip=False), rows)
    np.testing.assert_allclose(abs(with_flips[:, 0, 0]), without[:, 0, 0], rtol=1e-6)


def test_pixel_centres_follow_the_same_points() -> None:
    matrix = draw(Augmentation(), [9])
    exact = to_pixel_centres(matrix)[0]
    pixel = np.array([11.0, 30.0])
    expected = matrix[0].astype(np.float64) @ [*(pixel + 0.5), 1] - 0.5
    np.testing.assert_allclose(exact @ [*pixel, 1], expected, atol=1e-9)


@pytest.mark.parametrize("wrong", [{"scale": 1.0}, {"scale": -0.1}, {"skew": -0.1}])
def test_impossible_ranges_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(ValueError, match="scale"):
        Augmentation(**wrong)
