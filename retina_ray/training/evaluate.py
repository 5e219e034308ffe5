"""Run a network over a pass of images on all ranks and bring the results together, each image once."""

from collections.abc import Callable, Mapping

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from retina_ray.data.batch import Batch
from retina_ray.data.loader import Loader
from retina_ray.training.engine import Engine
from retina_ray.training.world import World


def run_over(
    loader: Loader, compute: Callable[[Batch], Mapping[str, Tensor]], *, world: World
) -> tuple[np.ndarray, dict[str, np.ndarray]]:
    """Apply a function to every image of a pass; the result does not depend on the number of ranks.

    Args:
        loader: of this rank's share; its padding and damaged images have weight 0.
        compute: maps a batch to tensors (B, ...), called under inference mode.
        world: this rank.

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
    local = (torch.cat(rows).numpy(), {name: torch.cat(values).numpy() for name, values in results.items()})
    shares = world.gather(local)
    all_rows, order = np.unique(np.concatenate([share[0] for share in shares]), return_index=True)
    names = shares[0][1]
    return all_rows, {name: np.concatenate([share[1][name] for share in shares])[order] for name in names}


def validate(engine: Engine, loader: Loader) -> dict[str, float]:
    """Return the method's summary of the validation images, and its ``criterion``."""
    sync_buffers(engine.network, engine.world)
    engine.network.eval()

    def compute(batch: Batch) -> Mapping[str, Tensor]:
        with engine.autocast():
            return engine.method.evaluate(engine.network, batch, final=False).measures

    _, values = run_over(loader, compute, world=engine.world)
    engine.network.train()
    summary = engine.method.summarise(values)
    return {"criterion": engine.method.criterion(summary), **summary}


def sync_buffers(network: nn.Module, world: World) -> None:
    """Give every rank rank 0's buffers: after a training step the ranks' batch statistics differ."""
    if world.size > 1:
        for buffer in network.buffers():
            dist.broadcast(buffer, src=0)
