"""Recomputed activations: a step needs less memory at its peak, and nothing else changes."""

from dataclasses import replace

import pytest
import torch

from retina_ray.config import OptimConfig, TrainConfig, override
from retina_ray.data.batch import Batch
from retina_ray.data.schema import task_of
from retina_ray.errors import ConfigError
from retina_ray.methods import catalogue
from retina_ray.methods.base import Method
from retina_ray.recipes import load_recipe
from retina_ray.training.engine import Engine, build_engine
from retina_ray.training.world import World
from tests.deepmt import a_batch, method_of
from tests.peak_memory import PeakMemory

BOTH = (False, True)
WIDE = {
    "method.super_resolution.width": 16,
    "method.super_resolution.blocks": 2,
    "method.segmentation.width": 32,
    "method.segmentation.depth": 4,
    "method.segmentation.gamma": [0.4, 0.2, 0.2, 1.0],
}
"""Most of what is kept is then segmentation's, as at the paper's size."""


def an_engine(method: Method, *, recompute: bool) -> Engine:
    train = TrainConfig(recompute=recompute, global_batch_size=2)
    return build_engine(method, optim=OptimConfig(), train=train, seed=0, world=World())


def sall(backbone: str) -> Method:
    config = override(load_recipe("sall_debug"), {"method.backbone": backbone, "method.dropout": 0.5})
    tasks = {"dr": task_of("dr", 5), "amd": task_of("amd", 2)}
    (stage,) = (each for each in catalogue.plan(config, tasks).stages if each.name == "teacher-dr")
    return catalogue.build("sall", stage.settings)


def peak_of_a_step(engine: Engine, batch: Batch) -> int:
    """Return the bytes that a step, its backward pass included, has at most beside weights and gradients."""
    network = engine.network.train()
    there = [*network.parameters(), *network.buffers()]
    for parameter in network.parameters():
        parameter.grad = torch.zeros_like(parameter)
        there.append(parameter.grad)
    torch.manual_seed(1)  # dropout
    with PeakMemory(there) as memory:
        counts = engine.method.counts(batch)
        engine.method.total(engine.method.losses(engine.model, batch, counts)).backward()
    return memory.peak_bytes


def photographs(count: int, *, side: int) -> Batch:
    images = torch.randn(count, 3, side, side, generator=torch.Generator().manual_seed(0))
    return replace(a_batch(masks=[False] * count, grades=[0, 1] * (count // 2)), images=images)


def check_the_same(recomputed: torch.nn.Module, plain: torch.nn.Module) -> None:
    """Check that running statistics and gradients are equal to the last bit."""
    torch.testing.assert_close(recomputed.state_dict(), plain.state_dict(), rtol=0, atol=0)
    ours, theirs = ({name: each.grad for name, each in network.named_parameters()} for network in (recomputed, plain))
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)


@pytest.mark.parametrize(
    ("stage", "changes", "share"),
    [
        ("restoration", {}, 0.6),
        ("joint", {}, 0.7),
        ("joint", {"method.segmentation.mode": "independent", "method.evidence.map": "none"}, 0.6),
        ("grading", {"method.evidence.map": "none", "method.grading.backbone": "densenet121"}, 0.6),
    ],
)
def test_a_step_of_deepmt_takes_less_memory_and_computes_the_same(
    stage: str, changes: dict[str, object], share: float
) -> None:
    side = 96
    method = method_of(stage, {**WIDE, "data.image_size": side, **changes})
    plain, recomputed = (an_engine(method, recompute=each) for each in BOTH)
    before, after = (peak_of_a_step(each, a_batch(side=side)) for each in (plain, recomputed))
    assert after < share * before
    check_the_same(recomputed.network, plain.network)


@pytest.mark.parametrize(("backbone", "share"), [("resnet18", 0.8), ("mobilenet_v3_small", 0.5), ("inception_v3", 0.7)])
def test_a_step_of_sall_takes_less_memory_and_computes_the_same(backbone: str, share: float) -> None:
    method = sall(backbone)
    plain, recomputed = (an_engine(method, recompute=each) for each in BOTH)  # 1.0 with the network as one part
    before, after = (peak_of_a_step(each, photographs(4, side=96)) for each in (plain, recomputed))
    assert after < share * before
    check_the_same(recomputed.network, plain.network)


def test_compiled_and_recomputed_is_refused() -> None:
    with pytest.raises(ConfigError, match="set compile=false or recompute=false"):
        override(load_recipe("sall_debug"), {"train.compile": True, "train.recompute": True})
