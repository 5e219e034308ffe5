"""The training step as GPUs run it: bf16 autocast, batches from DALI, compiled, with synchronised batch statistics."""

from pathlib import Path
from typing import Any

import pytest
import torch

from retina_ray.config import OptimConfig, TrainConfig
from retina_ray.methods.sall import SallGrader
from retina_ray.training.engine import build_engine
from retina_ray.training.step import train_step
from retina_ray.training.world import World
from tests.photographs import make, write

GPU = torch.device("cuda")


@pytest.mark.timeout(400)
@pytest.mark.parametrize("name", ["resnet18", "mobilenet_v3_small"])
@pytest.mark.parametrize("switches", [{}, {"compile": True}, {"batch_norm": "sync"}], ids=["plain", "compile", "sync"])
def test_a_bf16_step_trains_on_the_gpu(tmp_path: Path, name: str, switches: dict[str, Any]) -> None:
    dataset = write(tmp_path)
    grades = {task.name: task.num_grades for task in dataset.tasks}
    method = SallGrader(grades, tuple(grades), False, 1.0, {}, {}, name, "none", 0.1)
    engine = build_engine(
        method, optim=OptimConfig(lr=1e-3), train=TrainConfig(**switches), seed=0, world=World(device=GPU)
    )
    assert engine.bf16
    before = {key: value.clone() for key, value in engine.network.state_dict().items()}
    loader = make(dataset, "dali", device=GPU)
    for step, micro_batches in enumerate(loader.epoch(0)):
        terms = train_step(engine, micro_batches, step=step, lr=1e-3)
        engine.guard.check()
        assert all(torch.isfinite(term) for term in terms.values())
    loader.close()
    assert any(not torch.equal(value, before[key]) for key, value in engine.network.state_dict().items())
