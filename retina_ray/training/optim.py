"""Optimisers and learning-rate schedules from their configuration."""

import math
from collections.abc import Sequence

import torch
from torch import nn
from torch.optim import Optimizer

from retina_ray.config import OptimConfig


def build_optimizer(groups: Sequence[tuple[Sequence[nn.Parameter], float]], config: OptimConfig) -> Optimizer:
    """Return the fused optimiser over groups of parameters; each group keeps its factor as ``lr_factor``.

    The fused kernels skip an update on the device when told that its gradient is not finite, which
    `retina_ray.training.guard` relies on.
    """
    parameters = [
        {"params": list(members), "lr": config.lr * factor, "lr_factor": factor} for members, factor in groups
    ]
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.betas[0], weight_decay=config.weight_decay, fused=True
        )
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )


def learning_rate(config: OptimConfig, *, step: int, steps_per_epoch: int, total_steps: int) -> float:
    """Return the learning rate of an optimiser step, a pure function of its position.

    Args:
        config: peak rate, schedule and warm-up length.
        step: steps done before this one, from 0.
        steps_per_epoch: optimiser steps in an epoch.
        total_steps: steps in the whole training.
    """
    warmup = config.warmup_epochs * steps_per_epoch
    if step < warmup:
        return config.lr * (step + 1) / (warmup + 1)
    if config.schedule == "constant":
        return config.lr
    progress = (step - warmup) / max(1.0, total_steps - warmup)
    return config.lr * 0.5 * (1.0 + math.cos(math.pi * min(1.0, progress)))
