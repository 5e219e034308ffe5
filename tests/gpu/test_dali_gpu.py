"""DALI's GPU path against the reference on the CPU."""

from pathlib import Path

import pytest
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


@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
def test_a_bf16_step_trains_on_the_gpu(tmp_path: Path, name: str) -> None:
    from retina_ray.config import OptimConfig, TrainConfig
    from retina_ray.methods.sall import SallGrader
    from retina_ray.training.engine import build_engine
    from retina_ray.training.step import train_step
    from retina_ray.training.world import World

    dataset = write(tmp_path)
    grades = {task.name: task.num_grades for task in dataset.tasks}
    method = SallGrader(grades, tuple(grades), False, 1.0, {}, {}, name, "none", 0.1)
    world = World(device=GPU)
    engine = build_engine(method, optim=OptimConfig(lr=1e-3), train=TrainConfig(), seed=0, world=world)
    assert engine.bf16
    loader = make(dataset, "dali", device=GPU)
    for step, micro_batches in enumerate(loader.epoch(0)):
        terms = train_step(engine, micro_batches, step=step, lr=1e-3)
        engine.guard.check()
        assert all(torch.isfinite(term) for term in terms.values())
    loader.close()
