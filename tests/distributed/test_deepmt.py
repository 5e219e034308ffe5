"""DeepMT-DR's stages over several ranks: every parameter takes part on each, and the ranks stay alike."""

from typing import Any

import pytest
import torch
from torch import Tensor

from retina_ray.config import override
from retina_ray.training.engine import build_engine
from retina_ray.training.step import train_step
from retina_ray.training.world import World
from tests.deepmt import a_batch, method_of, tiny
from tests.helpers import Ranks, same_state

CPU = {"train.precision": "fp32", "train.batch_norm": "local", "train.compile": False}


def two_steps(
    world: World, stage: str, changes: dict[str, object]
) -> tuple[dict[str, Tensor], dict[str, Tensor], list[dict[str, float]]]:
    """Train two steps of two images a rank, one of the four with a mask; return weights before and after, and terms."""
    config = override(tiny(changes), CPU)
    engine = build_engine(
        method_of(stage, changes), optim=config.optim, train=config.train, seed=config.seed, world=world
    )
    before = weights_of(engine.network)
    batch = a_batch(masks=(world.rank == 0, False), grades=(2 - world.rank, world.rank))
    terms = [train_step(engine, [batch], step=step, lr=1e-2) for step in range(2)]
    engine.guard.check()
    return before, weights_of(engine.network), [{name: float(term) for name, term in each.items()} for each in terms]


def weights_of(network: torch.nn.Module) -> dict[str, Tensor]:
    return {name: weight.detach().clone() for name, weight in network.named_parameters() if weight.requires_grad}


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("restoration", {}),
        ("grading", {}),
        ("joint", {}),
        ("joint", {"method.evidence.fusion": "learned", "method.evidence.step": "hard"}),
        ("joint", {"method.evidence.map": "none"}),
    ],
)
def test_every_rank_takes_part_in_every_parameter(ranks: Ranks, stage: str, changes: dict[str, object]) -> None:
    answers: list[Any] = ranks.run(2, two_steps, stage, changes)
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    (before, after, terms), (_, other, other_terms) = answers
    assert same_state(after, other), "ranks agree bit for bit"
    assert terms == other_terms
    parts = {name.split(".")[1] for name in after if name.startswith("nets.")}
    changed = {name.split(".")[1] for name in after if not torch.equal(before[name], after[name])}
    assert parts <= changed
