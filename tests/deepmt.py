"""What the tests of DeepMT-DR share: a configuration that takes milliseconds, a batch, a step."""

from collections.abc import Iterable

import torch
from torch import Tensor

from retina_ray.config import RunConfig, override
from retina_ray.data.batch import Batch
from retina_ray.data.schema import task_of
from retina_ray.methods import catalogue
from retina_ray.methods.deepmt.graph import StageNetwork
from retina_ray.methods.deepmt.method import DeepMT
from retina_ray.recipes import load_recipe

SIDE = 32
TASKS = {"dr": task_of("dr", 5)}
TINY = {
    "data.image_size": SIDE,
    "method.super_resolution.width": 4,
    "method.super_resolution.blocks": 1,
    "method.segmentation.width": 2,
    "method.segmentation.depth": 3,
    "method.segmentation.gamma": [0.5, 0.5, 1.0],
    "method.grading.hidden": 8,
    "method.grading.weights": "none",
}


def tiny(changes: dict[str, object] | None = None) -> RunConfig:
    return override(load_recipe("deepmt_dr"), {**TINY, **(changes or {})})


def method_of(stage: str, changes: dict[str, object] | None = None) -> DeepMT:
    stages = {each.name: each for each in catalogue.plan(tiny(changes), TASKS).stages}
    method = catalogue.build("deepmt", stages[stage].settings)
    assert isinstance(method, DeepMT)
    return method


def a_batch(
    *, masks: Iterable[bool] = (True, False), grades: Iterable[int] = (2, 0), fixed: bool = False, side: int = SIDE
) -> Batch:
    generator = torch.Generator().manual_seed(3)
    has_mask, truth = torch.tensor(list(masks)), torch.tensor(list(grades))
    count = len(has_mask)
    coarse = torch.rand(count, 3, side // 4, side // 4, generator=generator)
    images = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bilinear") * 2 - 1
    drawn = torch.rand(count, 4, side, side, generator=generator) > 0.8
    return Batch(
        images=images + 0.1 * torch.randn(images.shape, generator=generator),
        grades={"dr": truth},
        soft_logits={},
        masks=drawn & has_mask.view(-1, 1, 1, 1),
        has_mask=has_mask,
        weight=torch.ones(count),
        rows=torch.arange(count),
        fixed_rows=tuple(range(count)) if fixed else None,
    )


def built(method: DeepMT) -> StageNetwork:
    torch.manual_seed(0)
    return method.build_model(initial_weights=False)


def step(method: DeepMT, network: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
    torch.manual_seed(1)  # dropout
    counts = {name: count.clamp(min=1) for name, count in method.counts(batch).items()}
    return method.losses(network, batch, counts)


def gradients(method: DeepMT, terms: dict[str, Tensor], network: torch.nn.Module) -> dict[str, float]:
    """Return the largest gradient of each part of the network."""
    method.total(terms).backward()
    found: dict[str, float] = {}
    for name, parameter in network.named_parameters():
        part = name.split(".")[1] if name.startswith("nets.") else "evidence"
        size = 0.0 if parameter.grad is None else float(parameter.grad.abs().max())
        found[part] = max(found.get(part, 0.0), size)
    return found
