"""From a data set to batches, with both backends: order, resuming, damage, masks, threads."""

import threading
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch

from retina_ray.data.augment import Augmentation
from retina_ray.data.batch import denormalise, from_unit_range, normalise, to_unit_range
from retina_ray.data.decode import decode_image
from retina_ray.data.loader import Loader, Samples
from retina_ray.data.order import Share
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.warping import warp_mask
from retina_ray.errors import DataError
from tests.photographs import CPU, NUM_ROWS, SIZE, both_backends, both_encodings, encode, flat, make, photo, write

BLACK = normalise(torch.zeros(1, 1, 1, 3, dtype=torch.uint8)).view(3)


@pytest.fixture(scope="module")
def raw_set(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    return write(tmp_path_factory.mktemp("raw"))


@pytest.fixture(scope="module")
def jpeg_set(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    return write(tmp_path_factory.mktemp("jpeg"), "jpeg")


@both_backends
@pytest.mark.parametrize("shuffle", [True, False])
def test_every_row_of_the_pass_counts_once_over_all_ranks(raw_set: ShardedDataset, backend: str, shuffle: bool) -> None:
    chosen = np.array([20, 3, 5, 7, 11, 0, 1])
    counted: list[int] = []
    for rank in range(2):
        loader = make(raw_set, backend, rows=chosen, share=Share(rank, 2, 8, 2), shuffle=shuffle)
        steps = list(loader.epoch(0))
        assert len(steps) == loader.steps_per_epoch == 1
        assert [len(batch.rows) for step in steps for batch in step] == [2, 2]
        for batch in flat(iter(steps)):
            counted += batch.rows[batch.weight == 1].tolist()
        loader.close()
    assert sorted(counted) == sorted(chosen.tolist())


@both_backends
def test_resuming_equals_not_having_stopped(jpeg_set: ShardedDataset, backend: str) -> None:
    loader = make(jpeg_set, backend)
    whole = list(loader.epoch(1))
    abandoned = loader.epoch(1)
    next(abandoned)
    abandoned.close()
    tail = list(loader.epoch(1, start=1))
    fresh = make(jpeg_set, backend)
    again = list(fresh.epoch(1, start=1))
    assert len(whole) == 3
    assert len(tail) == len(again) == 2
    for kept, resumed, restarted in zip(flat(iter(whole[1:])), flat(iter(tail)), flat(iter(again)), strict=True):
        assert torch.equal(kept.rows, resumed.rows)
        assert torch.equal(kept.images, resumed.images)
        assert torch.equal(kept.images, restarted.images)
        assert torch.equal(kept.weight, resumed.weight)
    loader.close()
    fresh.close()


@both_backends
def test_two_passes_at_once_do_not_mix(raw_set: ShardedDataset, backend: str) -> None:
    loader = make(raw_set, backend)
    expected = [[batch.images for batch in flat(loader.epoch(epoch))] for epoch in (0, 1)]
    pairs = list(zip(loader.epoch(0), loader.epoch(1), strict=True))
    for epoch in (0, 1):
        found = [batch.images for pair in pairs for batch in pair[epoch]]
        assert all(torch.equal(a, b) for a, b in zip(found, expected[epoch], strict=True))
    loader.close()


@both_backends
def test_pixels_do_not_depend_on_ranks_or_micro_batches(raw_set: ShardedDataset, backend: str) -> None:
    def images(share: Share) -> dict[int, torch.Tensor]:
        loader = make(raw_set, backend, share=share)
        found = {
            row: image
            for batch in flat(loader.epoch(2))
            for row, image in zip(batch.rows.tolist(), batch.images, strict=True)
        }
        loader.close()
        return found

    alone = images(Share(0, 1, 8))
    together = images(Share(0, 2, 8, 2)) | images(Share(1, 2, 8, 2))
    assert alone.keys() == together.keys() == set(range(NUM_ROWS))
    assert all(torch.equal(alone[row], together[row]) for row in alone)


@both_backends
def test_evaluation_is_the_same_in_every_epoch(raw_set: ShardedDataset, backend: str) -> None:
    loader = make(raw_set, backend, augmentation=None, shuffle=False)
    first, second = flat(loader.epoch(0)), flat(loader.epoch(1))
    assert torch.cat([batch.rows for batch in first])[:NUM_ROWS].tolist() == list(range(NUM_ROWS))
    assert all(torch.equal(a.images, b.images) for a, b in zip(first, second, strict=True))
    loader.close()


def test_targets_belong_to_their_rows(raw_set: ShardedDataset) -> None:
    logits = np.random.default_rng(0).normal(size=(NUM_ROWS, 5)).astype(np.float32)
    logits[::2] = np.nan
    samples = Samples(raw_set, np.arange(NUM_ROWS), raw_set.grades, {"dr": logits})
    loader = Loader(
        samples,
        share=Share(0, 1, 8),
        augmentation=None,
        image_size=32,
        backend="torch",
        device=CPU,
        seed=0,
        num_threads=1,
        shuffle=True,
    )
    for batch in flat(loader.epoch(0)):
        rows = batch.rows.numpy()
        assert batch.grades["dr"].dtype == torch.int64
        assert batch.grades["dr"].tolist() == [row % 5 if row % 2 else -1 for row in rows]
        assert batch.grades["amd"].tolist() == [-1 if row % 2 else row % 4 for row in rows]
        np.testing.assert_array_equal(batch.soft_logits["dr"].numpy(), logits[rows])
        assert batch.masks is None
        assert not batch.has_mask.any()
    loader.close()


@both_backends
def test_masks_follow_their_images(raw_set: ShardedDataset, backend: str) -> None:
    """With moves alone the mask is exactly where the image is bright; with resampling, nearly so."""
    for augmentation, tolerance in ((Augmentation(scale=0, skew=0), 0.0), (Augmentation(), 0.05)):
        loader = make(raw_set, backend, augmentation=augmentation, image_size=SIZE, with_masks=True)
        for batch in flat(loader.epoch(0)):
            assert batch.masks is not None
            assert batch.masks.shape == (len(batch.rows), 4, SIZE, SIZE)
            assert batch.masks.dtype == torch.bool
            assert batch.has_mask.tolist() == [row % 2 == 0 for row in batch.rows.tolist()]
            assert not batch.masks[~batch.has_mask].any()
            bright = batch.images[:, 0] >= (127.5 / 255 - 0.485) / 0.229
            wrong = (batch.masks[:, 0] != bright)[batch.has_mask]
            assert wrong.float().mean() <= tolerance
        loader.close()


def test_a_mask_that_is_not_to_be_used_is_not_there(raw_set: ShardedDataset) -> None:
    used = raw_set.has_mask & (np.arange(len(raw_set)) < 6)
    loader = Loader(
        Samples(raw_set, np.arange(len(raw_set)), raw_set.grades, has_mask=used),
        share=Share(rank=0, world=1, global_batch=4, accumulate=1),
        augmentation=None,
        image_size=SIZE,
        backend="torch",
        device=torch.device("cpu"),
        seed=0,
        num_threads=1,
        with_masks=True,
        shuffle=False,
    )
    for batch in flat(loader.epoch(0)):
        assert batch.masks is not None
        assert batch.has_mask.tolist() == used[batch.rows.numpy()].tolist()
        assert not batch.masks[~batch.has_mask].any()
    loader.close()


@pytest.mark.parametrize(
    ("augmentation", "fixed"),
    [(None, True), (Augmentation(scale=0, rotate90=False, flip=False, skew=0), True), (Augmentation(scale=0), False)],
)
def test_rows_are_fixed_where_nothing_changes_them(
    raw_set: ShardedDataset, augmentation: Augmentation | None, fixed: bool
) -> None:
    loader = make(raw_set, "torch", augmentation=augmentation)
    for batch in flat(loader.epoch(0)):
        assert batch.fixed_rows == (tuple(batch.rows.tolist()) if fixed else None)
    loader.close()


def test_the_unit_range_is_the_colours_and_back(raw_set: ShardedDataset) -> None:
    loader = make(raw_set, "torch")
    for batch in flat(loader.epoch(0)):
        colours = to_unit_range(batch.images)
        pixels = torch.from_numpy(denormalise(batch.images)).permute(0, 3, 1, 2) / 255
        torch.testing.assert_close(colours, pixels, rtol=0, atol=1e-6)
        torch.testing.assert_close(from_unit_range(colours), batch.images.float(), rtol=0, atol=1e-5)
    loader.close()


def test_images_come_in_the_type_that_is_asked_for(raw_set: ShardedDataset) -> None:
    half, full = (flat(make(raw_set, "torch", dtype=dtype).epoch(0)) for dtype in (torch.bfloat16, torch.float32))
    for ours, theirs in zip(half, full, strict=True):
        assert ours.images.is_contiguous(memory_format=torch.channels_last)
        assert torch.equal(ours.images, theirs.images.bfloat16())


def test_a_mask_pixel_needs_half_of_the_weight() -> None:
    planes = np.zeros((4, 4, 4), bool)
    planes[0, :, 0] = True
    halved = warp_mask(planes, np.array([[2, 0, 0], [0, 2, 0]], np.float32), 2)
    assert halved[0].tolist() == [[True, False], [True, False]]
    assert not halved[1:].any()


def rot(dataset_folder: Path, rows: list[int]) -> ShardedDataset:
    """Flip a bit in the middle of each of these images, as a disk might."""
    dataset = ShardedDataset.open(str(dataset_folder))
    stored = [bytes(dataset.image(row)) for row in rows]
    (path,) = (dataset_folder / "shards").iterdir()
    shard = bytearray(path.read_bytes())
    for data in stored:
        shard[shard.index(data) + len(data) // 2] ^= 1
    path.write_bytes(bytes(shard))
    return ShardedDataset.open(str(dataset_folder))


@both_backends
@both_encodings
def test_rotten_images_are_named_black_and_weightless(
    tmp_path: Path, backend: str, encoding: Literal["jpeg", "raw"]
) -> None:
    write(tmp_path, encoding)
    loader = make(rot(tmp_path, [4, 9]), backend)
    for _ in range(2):
        batches = flat(loader.epoch(0))
        assert len(batches) == 6
        counted = [row for batch in batches for row in batch.rows[batch.weight == 1].tolist()]
        assert sorted(counted) == sorted(set(range(NUM_ROWS)) - {4, 9})
        for batch in batches:
            for row, image in zip(batch.rows.tolist(), batch.images, strict=True):
                assert torch.equal(image, BLACK.view(3, 1, 1).expand_as(image)) == (row in (4, 9))
    assert sorted(loader.damaged) == ["image-4", "image-9"]
    loader.close()


@both_backends
def test_what_passes_the_checksum_and_cannot_be_decoded_spoils_no_other_image(tmp_path: Path, backend: str) -> None:
    """The truncated file fails DALI's whole batch; the others have to come out as if nothing were."""
    truncated = encode(photo(6), "jpeg")[:-200]
    loader = make(write(tmp_path, "jpeg", {6: truncated}), backend)
    sound = make(write(tmp_path / "sound", "jpeg"), backend)
    for _ in range(2):
        for batch, expected in zip(flat(loader.epoch(0)), flat(sound.epoch(0)), strict=True):
            assert torch.equal(batch.rows, expected.rows)
            good = batch.rows != 6
            assert torch.equal(batch.images[good], expected.images[good])
            assert torch.equal(batch.weight, expected.weight * good)
    assert loader.damaged == ["image-6"]
    loader.close()
    sound.close()


@both_backends
def test_a_pass_may_be_abandoned_with_a_bad_image_in_work(tmp_path: Path, backend: str) -> None:
    loader = make(write(tmp_path, "jpeg", {6: encode(photo(6), "jpeg")[:-200]}), backend, shuffle=False)
    abandoned = loader.epoch(0)
    assert next(abandoned)[0].rows.tolist() == [0, 1, 2, 3]  # row 6 is in the next micro-batch
    abandoned.close()
    counted = [row for batch in flat(loader.epoch(0)) for row in batch.rows[batch.weight == 1].tolist()]
    assert counted == [row for row in range(NUM_ROWS) if row != 6]
    loader.close()


@both_backends
def test_too_many_damaged_images_stop_the_run(tmp_path: Path, backend: str) -> None:
    write(tmp_path)
    loader = make(rot(tmp_path, [1, 2, 3, 4]), backend)
    with pytest.raises(DataError, match=r"more than 3 of 22 images are damaged.*image-.* in 00000.arrow"):
        list(loader.epoch(0))
    loader.close()


def test_a_rotten_mask_takes_its_row_out(tmp_path: Path) -> None:
    dataset = write(tmp_path)
    stored = dataset.mask(2)
    assert stored is not None
    (path,) = (tmp_path / "shards").iterdir()
    shard = bytearray(path.read_bytes())
    shard[shard.index(stored) + len(stored) - 1] ^= 1
    path.write_bytes(bytes(shard))
    loader = make(ShardedDataset.open(str(tmp_path)), "torch", with_masks=True)
    batches = flat(loader.epoch(0))
    assert loader.damaged == ["image-2"]
    assert all(batch.weight[batch.rows == 2].sum() == 0 for batch in batches)
    assert not any(batch.has_mask[batch.rows == 2].any() for batch in batches)
    loader.close()


def test_a_jpeg_that_promises_another_size_is_not_decoded() -> None:
    with pytest.raises(ValueError, match="48 x 48 pixels, not 16 x 16"):
        decode_image(encode(photo(0), "jpeg"), encoding="jpeg", size=16)


def test_a_pass_without_rows_is_refused(raw_set: ShardedDataset) -> None:
    with pytest.raises(DataError, match="no images"):
        Samples(raw_set, np.array([], np.int64), raw_set.grades)


@both_backends
def test_closing_ends_all_threads(raw_set: ShardedDataset, backend: str) -> None:
    before = threading.active_count()
    loader = make(raw_set, backend, with_masks=True)
    for epoch in range(3):
        next(loader.epoch(epoch))
    loader.close()
    assert threading.active_count() == before
