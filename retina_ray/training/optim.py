"""Optimisers and learning-rate schedules from their configuration."""

import math
from collections.abc import Sequence

import torch
from torch.optim import Optimizer

from retina_ray.config import OptimConfig
from retina_ray.methods.base import ParameterGroup


def build_optimizer(groups: Sequence[ParameterGroup], config: OptimConfig) -> Optimizer:
    """Return the fused optimiser over groups of parameters, in the first epoch.

    Each group keeps the factor on the rate that its steps take as ``lr_factor``; see `enter_epoch`.

    The fused kernels skip an update on the device when told that its gradient is not finite, which
    `retina_ray.training.guard` relies on.
    """
    parameters = [
        {
            "params": group.parameters,
            "lr": config.lr * group.factor,
            "lr_factor": group.factor,
            "lr_first_factor": group.factor,
            "lr_change": group.change,
            "lr_change_epoch": group.change_epoch,
        }
        for group in groups
    ]
    if config.name == "sgd":
        return torch.optim.SGD(
            parameters, lr=config.lr, momentum=config.betas[0], weight_decay=config.weight_decay, fused=True
        )
    kind = torch.optim.Adam if config.name == "adam" else torch.optim.AdamW
    return kind(
        parameters, lr=config.lr, betas=config.betas, eps=config.eps, weight_decay=config.weight_decay, fused=True
    )


def enter_epoch(optimizer: Optimizer, epoch: int) -> None:
    """Give each group the factor that it has in an epoch, counted from 0."""
    for group in optimizer.param_groups:
        changed = group["lr_change_epoch"] is not None and epoch >= group["lr_change_epoch"]
        group["lr_factor"] = group["lr_first_factor"] * (group["lr_change"] if changed else 1.0)


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
