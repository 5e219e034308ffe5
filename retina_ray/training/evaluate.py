"""Run a network over a pass of images on all ranks and bring the results together, each image once."""

import math
from collections.abc import Callable, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from retina_ray.data.batch import Batch
from retina_ray.data.loader import Loader
from retina_ray.data.schema import NO_GRADE
from retina_ray.methods.base import Method
from retina_ray.metrics.grading import grading_metrics
from retina_ray.training.engine import Engine
from retina_ray.training.world import World

GRADING = ("kappa", "kappa_quadratic", "auroc", "ece")
"""Figures of `grading_metrics` that every validation reports."""


def run_over(
    loader: Loader,
    compute: Callable[[Batch], Mapping[str, Tensor]],
    *,
    world: World,
    between: Callable[[], None] = lambda: None,
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Apply a function to every image of a pass; the result does not depend on the number of ranks.

    Args:
        loader: of this rank's share; its padding and damaged images have weight 0.
        compute: maps a batch to tensors (B, ...), called under inference mode.
        world: this rank.
        between: called after each batch, by all ranks equally often.

    Returns:
        The data set rows (n,) in ascending order, and each result (n, ...) in that order, on every rank.
    """
    rows: list[Tensor] = []
    results: dict[str, list[Tensor]] = {}
    with torch.inference_mode():
        for batches in loader.epoch(0):
            for batch in batches:
                kept = batch.weight > 0
                rows.append(batch.rows[kept].cpu())
                for name, values in compute(batch).items():
                    results.setdefault(name, []).append(values[kept].float().cpu())
            between()
    local = (torch.cat(rows).numpy(), {name: torch.cat(values).numpy() for name, values in results.items()})
    shares = world.gather(local)
    all_rows, order = np.unique(np.concatenate([share[0] for share in shares]), return_index=True)
    names = shares[0][1]
    return all_rows, {name: np.concatenate([share[1][name] for share in shares])[order] for name in names}


@dataclass(frozen=True)
class Evaluated:
    """What a network makes of the images of a pass, on every rank.

    Attributes:
        rows: of the data set (n,), ascending.
        probabilities: (n, K) by task.
        truth: grades (n,) int64 by task, -1 where there is none.
        measures: (n, ...) by name.
    """

    rows: np.ndarray
    probabilities: dict[str, np.ndarray]
    truth: dict[str, np.ndarray]
    measures: dict[str, np.ndarray]


def evaluate(
    method: Method,
    network: nn.Module,
    loader: Loader,
    *,
    world: World,
    autocast: Callable[[], AbstractContextManager[object]],
    final: bool,
    between: Callable[[], None] = lambda: None,
) -> Evaluated:
    """Run a bare network in evaluation mode over a pass.

    Args:
        method: what it belongs to.
        network: in evaluation mode.
        loader: of this rank's share.
        world: this rank.
        autocast: returns the context of the forward passes.
        final: whether this is the test after training; see `Method.evaluate`.
        between: called after each batch.
    """

    def compute(batch: Batch) -> dict[str, Tensor]:
        with autocast():
            found = method.evaluate(network, batch, final=final)
        return {
            **{f"probability/{task}": values for task, values in found.probabilities.items()},
            **{f"truth/{task}": batch.grades[task] for task in found.probabilities},
            **{f"measure/{name}": values for name, values in found.measures.items()},
        }

    rows, values = run_over(loader, compute, world=world, between=between)

    def those_of(kind: str) -> dict[str, np.ndarray]:
        return {name.removeprefix(kind): value for name, value in values.items() if name.startswith(kind)}

    truth = {task: grades.astype(np.int64) for task, grades in those_of("truth/").items()}
    return Evaluated(rows, those_of("probability/"), truth, those_of("measure/"))


def validate(engine: Engine, loader: Loader, between: Callable[[], None] = lambda: None) -> dict[str, float]:
    """Return the method's summary of the validation images, its ``criterion``, and how well each task is graded.

    The latter are those of `GRADING`, as ``kappa_dr``; ``between`` is called after each batch.
    """
    sync_buffers(engine.network, engine.world)
    engine.network.eval()
    found = evaluate(
        engine.method,
        engine.network,
        loader,
        world=engine.world,
        autocast=engine.autocast,
        final=False,
        between=between,
    )
    engine.network.train()
    summary = engine.method.summarise(found.measures)
    graded = {
        f"{name}_{task}": value
        for task, probabilities in found.probabilities.items()
        for name, value in _grading(probabilities, found.truth[task]).items()
    }
    return {"criterion": engine.method.criterion(summary), **summary, **graded}


def _grading(probabilities: np.ndarray, truth: np.ndarray) -> dict[str, float]:
    """Return the figures of `GRADING` over the images that have a grade; nan where they cannot be told."""
    graded = truth != NO_GRADE
    if not graded.any() or not np.isfinite(probabilities).all():
        return dict.fromkeys(GRADING, math.nan)
    figures = grading_metrics(probabilities[graded], truth[graded])
    return {name: figures[name] for name in GRADING}


def sync_buffers(network: nn.Module, world: World) -> None:
    """Give every rank rank 0's buffers: after a training step the ranks' batch statistics differ."""
    if world.size > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)
