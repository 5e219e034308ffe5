"""DALI's GPU path against the reference on the CPU."""

from pathlib import Path

import torch

from tests.photographs import CPU, both_encodings, flat, make, write

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


def test_an_epoch_can_be_resumed_and_abandoned(tmp_path: Path) -> None:
    loader = make(write(tmp_path), "dali", device=GPU)
    whole = flat(loader.epoch(1))
    next(iter(loader.epoch(0)))
    rest = flat(loader.epoch(1, start=1))
    torch.testing.assert_close(rest[-1].images, whole[-1].images)
    loader.close()
