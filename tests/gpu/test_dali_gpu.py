"""DALI's GPU path against the reference on the CPU."""

import io
from pathlib import Path

import numpy as np
import torch
from PIL import Image

from retina_ray.data.dali_loader import HARDWARE_SHARES, fastest_share
from tests.photographs import CPU, both_encodings, flat, make, photo, write

GPU = torch.device("cuda")


@both_encodings
def test_the_gpu_loader_gives_the_pixels_of_the_reference(tmp_path: Path, encoding: str) -> None:
    dataset = write(tmp_path, encoding)
    on_gpu = make(dataset, "dali", device=GPU)
    reference = make(dataset, "torch", device=CPU)
    for ours, theirs in zip(flat(on_gpu.epoch(0)), flat(reference.epoch(0)), strict=True):
        assert ours.images.device.type == "cuda"
        torch.testing.assert_close(ours.rows.cpu(), theirs.rows)
        # nvJPEG's inverse transform rounds differently: a few grey levels, in units of the normalisation
        difference = (ours.images.cpu() - theirs.images).abs()
        assert float(difference.mean()) < 0.02
        assert float(difference.quantile(0.999)) < 0.15
    on_gpu.close()
    reference.close()


def test_bfloat16_is_what_autocast_makes_of_float32(tmp_path: Path) -> None:
    dataset = write(tmp_path, "raw")
    half, full = (make(dataset, "dali", device=GPU, dtype=dtype) for dtype in (torch.bfloat16, torch.float32))
    for ours, theirs in zip(flat(half.epoch(0)), flat(full.epoch(0)), strict=True):
        assert ours.images.is_contiguous(memory_format=torch.channels_last)
        torch.testing.assert_close(ours.images, theirs.images.bfloat16(), rtol=0, atol=0)


def test_the_share_of_the_engine_is_tried_out(tmp_path: Path) -> None:
    dataset = write(tmp_path, "jpeg")
    files = [np.frombuffer(dataset.image(row), np.uint8) for row in range(len(dataset))]
    assert fastest_share(files, device_id=0, num_threads=2) in HARDWARE_SHARES


def test_a_progressive_file_among_others_is_decoded(tmp_path: Path) -> None:
    buffer = io.BytesIO()
    Image.fromarray(photo(3)).save(buffer, "JPEG", quality=92, progressive=True)
    dataset = write(tmp_path, "jpeg", {3: buffer.getvalue()})
    on_gpu, reference = make(dataset, "dali", device=GPU), make(dataset, "torch", device=CPU)
    for ours, theirs in zip(flat(on_gpu.epoch(0)), flat(reference.epoch(0)), strict=True):
        assert float((ours.images.cpu() - theirs.images).abs().mean()) < 0.02
    assert on_gpu.damaged == []


def test_an_epoch_can_be_resumed_and_abandoned(tmp_path: Path) -> None:
    loader = make(write(tmp_path), "dali", device=GPU)
    whole = flat(loader.epoch(1))
    next(iter(loader.epoch(0)))
    rest = flat(loader.epoch(1, start=1))
    torch.testing.assert_close(rest[-1].images, whole[-1].images)
    loader.close()
