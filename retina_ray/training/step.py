"""One optimiser step, in the order in which it happens."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext

import numpy as np
import torch
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from retina_ray.data.batch import Batch
from retina_ray.training.engine import Engine


def train_step(engine: Engine, micro_batches: Sequence[Batch], *, step: int, lr: float) -> dict[str, Tensor]:
    """Update the network once from this rank's micro-batches of one global batch.

    The result is that of a single batch over all ranks and micro-batches: each term is divided by its global count.

    Returns:
        The loss terms over the global batch, scalars on the device.
    """
    world, method = engine.world, engine.method
    torch.manual_seed(int(np.random.SeedSequence([engine.seed, step, world.rank]).generate_state(1)[0]))  # dropout
    counts = _global_counts(engine, micro_batches)
    parts = []
    for position, batch in enumerate(micro_batches, start=1):
        with _gradient_sync(engine, last=position == len(micro_batches)):
            with engine.autocast():
                losses = method.losses(engine.model, batch, counts)
            total = method.total(losses) * world.size  # the ranks' gradients are averaged: undo the division
            total.backward()  # type: ignore[no-untyped-call]  # no stubs
        parts.append(torch.stack([loss.detach().float() for loss in losses.values()]))
    terms = dict(zip(losses, world.sum_(torch.stack(parts).sum(dim=0)), strict=True))
    parameters = [parameter for parameter in engine.network.parameters() if parameter.grad is not None]
    norm = get_total_norm([parameter.grad for parameter in parameters if parameter.grad is not None])
    if engine.clip_norm is not None:
        clip_grads_with_norm_(parameters, engine.clip_norm, norm)
    engine.guard.watch(step, terms, norm, engine.optimizer)
    for group in engine.optimizer.param_groups:
        group["lr"] = lr * group["lr_factor"]
    engine.optimizer.step()
    engine.optimizer.zero_grad(set_to_none=True)
    return terms


def _global_counts(engine: Engine, micro_batches: Sequence[Batch]) -> Mapping[str, Tensor]:
    counts = [engine.method.counts(batch) for batch in micro_batches]
    local = torch.stack([torch.stack(list(count.values())) for count in counts]).sum(dim=0)
    return dict(zip(counts[0], engine.world.sum_(local).clamp(min=1.0), strict=True))


def _gradient_sync(engine: Engine, *, last: bool) -> AbstractContextManager[object]:
    """Reduce gradients over the ranks only after the last micro-batch."""
    if last or not isinstance(engine.model, DistributedDataParallel):
        return nullcontext()
    return engine.model.no_sync()
