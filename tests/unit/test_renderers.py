"""Pixels: what both renderers draw, and how they are normalised."""

from pathlib import Path

import numpy as np
import pytest
import simplejpeg
import torch

from retina_ray.data.augment import Augmentation, matrices
from retina_ray.data.batch import normalise
from retina_ray.data.dali_loader import DaliRenderer
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.torch_loader import TorchRenderer
from retina_ray.data.warping import warp
from tests.photographs import CPU, NUM_ROWS, SIZE, both_backends, both_encodings, encode, flat, make, photo, write

BLACK = normalise(torch.zeros(1, 1, 1, 3, dtype=torch.uint8)).view(3)


@pytest.fixture(scope="module")
def raw_set(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    return write(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def jpeg_set(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    return write(tmp_path_factory.mktemp("jpeg"), "jpeg")


@both_encodings
@pytest.mark.parametrize("out_size", [32, 48, 65])
@pytest.mark.parametrize("augmentation", [None, Augmentation(), Augmentation(scale=0, skew=0)])
def test_dali_and_torch_render_the_same_pixels(
    raw_set: ShardedDataset, jpeg_set: ShardedDataset, encoding: str, out_size: int, augmentation: Augmentation | None
) -> None:
    """One level apart at most, where the exact value lies at a half; no exception for edges or borders.

    Both resample in floating point from the same matrices and round once, and both decode JPEG by libjpeg-turbo's exact
    IDCT. At a ratio such as 48 / 32 one value in 32 is an exact half, which the two round differently.
    """
    dataset = raw_set if encoding == "raw" else jpeg_set
    rows = np.arange(NUM_ROWS)
    geometry = matrices(augmentation, seed=2, epoch=0, rows=rows, in_size=SIZE, out_size=out_size)
    torch_renderer = TorchRenderer(dataset, image_size=out_size, device=CPU, num_threads=2, prefetch=1)
    dali_renderer = DaliRenderer(
        dataset, image_size=out_size, device=CPU, num_threads=2, prefetch=1, batch_size=NUM_ROWS
    )
    ours, theirs = (
        next(renderer.render([(rows, geometry)])).images.numpy().astype(int)
        for renderer in (torch_renderer, dali_renderer)
    )
    assert ours.shape == theirs.shape == (NUM_ROWS, out_size, out_size, 3)
    assert ours.std() > 30
    difference = abs(ours - theirs)
    assert difference.max() <= 1
    assert difference.mean() < 0.05
    torch_renderer.close()
    dali_renderer.close()


@pytest.mark.parametrize("subsampling", ["444", "422", "420", "Gray"])
def test_both_decode_every_kind_of_jpeg_alike(tmp_path: Path, subsampling: str) -> None:
    image = photo(0)
    if subsampling == "Gray":
        data = bytes(simplejpeg.encode_jpeg(np.ascontiguousarray(image[..., :1]), colorspace="GRAY"))
    else:
        data = encode(image, "jpeg", subsampling)
    dataset = write(tmp_path, "jpeg", {0: data})
    unchanged = Augmentation(scale=0, rotate90=False, flip=False, skew=0)
    pixels = []
    for backend in ("torch", "dali"):
        loader = make(dataset, backend, augmentation=unchanged, image_size=SIZE, shuffle=False)
        pixels.append(next(loader.epoch(0))[0].images[0])
        loader.close()
        assert loader.damaged == []
    assert torch.equal(pixels[0], pixels[1])


@both_backends
def test_flips_and_quarter_turns_move_pixels_exactly(raw_set: ShardedDataset, backend: str) -> None:
    loader = make(raw_set, backend, augmentation=Augmentation(scale=0, skew=0), image_size=SIZE)
    kinds = set()
    for epoch in range(3):
        for batch in flat(loader.epoch(epoch)):
            for image, row in zip(batch.images, batch.rows.tolist(), strict=True):
                original = torch.from_numpy(photo(row))
                moved = [
                    (turn, flip)
                    for turn in range(4)
                    for flip in (False, True)
                    if torch.equal(image, normalise(torch.rot90(original.flip(0) if flip else original, turn)[None])[0])
                ]
                assert len(moved) == 1
                kinds.add(moved[0])
    assert len(kinds) == 8
    loader.close()


@pytest.mark.parametrize("turn", range(4))
@pytest.mark.parametrize("flip", [False, True])
def test_the_shortcut_of_moves_equals_resampling(turn: int, flip: bool) -> None:
    """A hair's breadth of magnification disables the shortcut and changes no pixel."""
    size = 21
    image = photo(1, size)
    cos, sin = [(1, 0), (0, 1), (-1, 0), (0, -1)][turn]
    linear = np.array([[cos, sin], [-sin, cos]]) @ np.diag([-1 if flip else 1, 1])
    centre = np.full(2, size / 2)
    exact = np.column_stack([linear, centre - linear @ centre]).astype(np.float32)
    nearly = np.column_stack([linear * (1 - 1e-6), centre - linear * (1 - 1e-6) @ centre]).astype(np.float32)
    moved = warp(image, exact, size)
    np.testing.assert_array_equal(moved, warp(image, nearly, size))
    assert np.shares_memory(moved, image)


def test_a_half_pixel_shift_averages_neighbours() -> None:
    image = np.zeros((4, 4, 3), np.uint8)
    image[1, 1] = 200
    shifted = warp(image, np.array([[1, 0, 0.5], [0, 1, 0]], np.float32), 4)
    assert shifted[1, :, 0].tolist() == [100, 100, 0, 0]


def test_beyond_the_border_is_black() -> None:
    white = np.full((8, 8, 3), 255, np.uint8)
    shifted = warp(white, np.array([[1, 0, -3], [0, 1, 0]], np.float32), 8)
    assert shifted[0, :, 0].tolist() == [0, 0, 0, 255, 255, 255, 255, 255]


def test_normalise_takes_both_layouts_and_is_imagenet_s() -> None:
    images = torch.randint(0, 256, (2, 5, 7, 3), dtype=torch.uint8)
    expected = (images.double() / 255 - torch.tensor([0.485, 0.456, 0.406])) / torch.tensor([0.229, 0.224, 0.225])
    normalised = normalise(images)
    assert normalised.dtype == torch.float32
    assert normalised.is_contiguous(memory_format=torch.channels_last)
    np.testing.assert_allclose(normalised, expected.permute(0, 3, 1, 2), rtol=1e-5, atol=1e-6)
    assert torch.equal(normalise(images.permute(0, 3, 1, 2).contiguous()), normalised)


@pytest.mark.parametrize(
    "wrong", [torch.zeros(1, 4, 4, 3), torch.zeros(4, 4, 3).byte(), torch.zeros(1, 4, 4, 4).byte()]
)
def test_normalise_refuses_what_is_no_batch_of_images(wrong: torch.Tensor) -> None:
    with pytest.raises(ValueError, match="images are uint8"):
        normalise(wrong)
