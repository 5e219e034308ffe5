"""The networks under measurement, as the product builds and trains them, with batches that stay on the device."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import torch

from benchmarks.deepmt_step import a_batch as smooth_batch
from benchmarks.gpu.part import Bench
from retina_ray.config import RunConfig, override
from retina_ray.data.batch import Batch
from retina_ray.data.schema import KNOWN_TASKS, NO_GRADE
from retina_ray.methods import catalogue
from retina_ray.methods.base import Method
from retina_ray.recipes import load_recipe
from retina_ray.training.engine import Engine, build_engine, choose_kernels
from retina_ray.training.stage import image_dtype
from retina_ray.training.step import train_step
from retina_ray.training.world import World

SMALL_SALL = {"method.backbone": "shufflenet_v2_x0_5", "data.image_size": 64}
SMALL_DEEPMT = {
    "data.image_size": 32,
    "method.super_resolution.width": 4,
    "method.super_resolution.blocks": 1,
    "method.segmentation.width": 2,
    "method.segmentation.depth": 3,
    "method.segmentation.gamma": [0.5, 0.5, 1.0],
    "method.grading.hidden": 8,
}
"""Of dry runs."""

FAST = {"train.deterministic": False}
COMPILED = {**FAST, "train.compile": True}
"""How to train faster than by default."""

Changes = dict[str, Any]


@dataclass(frozen=True)
class Subject:
    """A stage of training on a device.

    Attributes:
        config: of the run.
        method: of its last training stage.
        device: where.
    """

    config: RunConfig
    method: Method
    device: torch.device

    def batch(self, count: int) -> Batch:
        """Return images of the configured size with everything that the method learns from."""
        batch = smooth_batch(count, self.config.data.image_size, self.device)
        if self.method.reads_masks:
            return batch
        generator, numbers = torch.Generator().manual_seed(0), torch.arange(count)
        own = {task: numbers % 2 == place for place, task in enumerate(self.config.method.tasks)}
        grades = {task: (numbers % 3).where(mine, NO_GRADE).to(self.device) for task, mine in own.items()}
        logits = {
            task: torch.randn(count, KNOWN_TASKS[task].num_grades, generator=generator)
            .masked_fill(mine.view(-1, 1), torch.nan)
            .to(self.device)
            for task, mine in own.items()
        }
        return replace(
            batch,
            images=batch.images.to(image_dtype(self.method, self.config.train, self.device)),
            grades=grades,
            soft_logits=logits,
            masks=None,
            has_mask=torch.zeros_like(batch.has_mask),
            fixed_rows=None,
        )

    def engine(self, changes: Changes | None = None) -> Engine:
        """Return what trains it, with changes to its configuration."""
        config = override(self.config, changes or {})
        return build_engine(
            self.method, optim=config.optim, train=config.train, seed=config.seed, world=World(device=self.device)
        )

    def gradients(self, count: int) -> Callable[[], Any]:
        """Return what computes the gradients of a batch, not compiled."""
        engine, batch = self.engine(FAST), self.batch(count)
        counts = {name: number.clamp(min=1) for name, number in self.method.counts(batch).items()}

        def run() -> None:
            with engine.autocast():
                losses = self.method.losses(engine.model, batch, counts)
            self.method.total(losses).backward()
            engine.optimizer.zero_grad(set_to_none=True)

        return run

    def inference(self, count: int) -> Callable[[], Any]:
        """Return what predicts a batch, not compiled."""
        engine, batch = self.engine(FAST), self.batch(count)
        network = engine.network.eval()
        inputs = self.method.inputs(batch.images)

        def run() -> None:
            with torch.inference_mode(), engine.autocast():
                self.method.probabilities(network, inputs)

        return run


class Step:
    """One step of the product's training after another, on the same batch.

    Args:
        subject: what is trained.
        count: images of the batch.
        changes: to its configuration.
    """

    def __init__(self, subject: Subject, count: int, changes: Changes | None = None) -> None:
        self._subject, self._count, self._changes = subject, count, changes
        self._deterministic = override(subject.config, changes or {}).train.deterministic
        self._number = 0

    @cached_property
    def _engine(self) -> Engine:
        return self._subject.engine(self._changes)

    @cached_property
    def _batch(self) -> Batch:
        return self._subject.batch(self._count)

    def __call__(self) -> dict[str, torch.Tensor]:
        """Train, and return the loss terms; the first time, build what is trained."""
        choose_kernels(deterministic=self._deterministic)  # of the whole process, which others share
        self._number += 1
        return train_step(self._engine, [self._batch], step=self._number, lr=1e-5)


def sall(bench: Bench, changes: Changes | None = None) -> Subject:
    """Return SALL's student: the paper's, from random weights, or a small one for a dry run."""
    base = override(load_recipe("sall"), {"method.weights": "none", **(SMALL_SALL if bench.dry else {})})
    return _subject(override(base, changes or {}), bench, stage="student-dr-amd")


def deepmt(bench: Bench, mode: str, changes: Changes | None = None) -> Subject:
    """Return DeepMT-DR's joint stage: the paper's, with random weights, or a small one for a dry run.

    Args:
        bench: where.
        mode: of segmentation, ``joint`` or ``independent``, which is fixed.
        changes: to the configuration.
    """
    scratch = {"method.grading.weights": "none", "method.segmentation.mode": mode}
    base = override(load_recipe("deepmt_dr"), {**scratch, **(SMALL_DEEPMT if bench.dry else {})})
    return _subject(override(base, changes or {}), bench, stage="joint")


def _subject(config: RunConfig, bench: Bench, *, stage: str) -> Subject:
    stages = {each.name: each for each in catalogue.plan(config, KNOWN_TASKS).stages}
    return Subject(config, catalogue.build(config.method.name, stages[stage].settings), bench.device)
