"""Recomputed activations: less is kept until the backward pass, and nothing else changes."""

import pytest
import torch

from retina_ray.config import OptimConfig, TrainConfig, override
from retina_ray.errors import ConfigError
from retina_ray.recipes import load_recipe
from retina_ray.training.engine import Engine, build_engine
from retina_ray.training.world import World
from tests.deepmt import a_batch, method_of, step

WIDE = {"method.segmentation.width": 32, "method.segmentation.depth": 2, "method.segmentation.gamma": [0.5, 1.0]}
"""Most of what is kept is then segmentation's, as at the paper's size."""


def an_engine(stage: str, changes: dict[str, object], *, recompute: bool) -> Engine:
    train = TrainConfig(recompute=recompute, global_batch_size=2)
    return build_engine(method_of(stage, {**WIDE, **changes}), optim=OptimConfig(), train=train, seed=0, world=World())


def kept_bytes(engine: Engine) -> int:
    """Make a step with its backward pass; return the size of what lay in memory for the latter."""
    kept: dict[int, int] = {}
    weights = {tensor.data_ptr() for tensor in engine.network.state_dict().values()}

    def note(tensor: torch.Tensor) -> torch.Tensor:
        if tensor.data_ptr() not in weights:
            kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        terms = step(engine.method, engine.model, a_batch(fixed=True))  # type: ignore[arg-type]
    engine.method.total(terms).backward()
    return sum(kept.values())


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("restoration", {}),
        ("grading", {"method.evidence.map": "none"}),
        ("joint", {}),
        ("joint", {"method.segmentation.mode": "independent"}),
    ],
)
def test_a_step_keeps_less_and_computes_the_same(stage: str, changes: dict[str, object]) -> None:
    plain, recomputed = (an_engine(stage, changes, recompute=each) for each in (False, True))
    before, after = kept_bytes(plain), kept_bytes(recomputed)
    if stage != "grading":
        assert after < before / 2
    assert recomputed.network.state_dict().keys() == plain.network.state_dict().keys()
    torch.testing.assert_close(recomputed.network.state_dict(), plain.network.state_dict(), rtol=0, atol=0)
    for (name, ours), theirs in zip(recomputed.network.named_parameters(), plain.network.parameters(), strict=True):
        assert (ours.grad is None) == (theirs.grad is None), name
        if ours.grad is not None and theirs.grad is not None:
            torch.testing.assert_close(ours.grad, theirs.grad, rtol=1e-5, atol=1e-7, msg=name)


def test_compiled_and_recomputed_is_refused() -> None:
    with pytest.raises(ConfigError, match="set compile=false or recompute=false"):
        override(load_recipe("sall_debug"), {"train.compile": True, "train.recompute": True})
