"""Stop a training whose loss or gradient is no longer finite, without waiting for the device each step.

The check happens on the device: the fused optimiser receives a flag and skips the update. The flag stays up,
so no later step updates anything either, and the host, which reads it only now and then, can still name the
step and the term.
"""

from collections.abc import Mapping

import torch
from torch import Tensor
from torch.optim import Optimizer

from retina_ray.errors import NonFiniteLossError


class FiniteGuard:
    """Watches the loss terms and the gradient norm of every step.

    Args:
        device: where the training runs.
    """

    def __init__(self, device: torch.device) -> None:
        self._failed = torch.zeros((), device=device)
        self._failed_step = torch.full((), -1, dtype=torch.int64, device=device)
        self._failed_values: Tensor | None = None
        self._names: tuple[str, ...] = ()

    def watch(self, step: int, terms: Mapping[str, Tensor], grad_norm: Tensor, optimizer: Optimizer) -> None:
        """Make the optimiser skip this update if any value is not finite; values are global, so all ranks agree.

        Args:
            step: the optimiser step, from 0.
            terms: scalar loss terms by name.
            grad_norm: norm of the gradient after its reduction over the ranks.
            optimizer: a fused optimiser, about to step.
        """
        self._names = (*terms, "gradient")
        values = torch.stack([*(term.detach().float() for term in terms.values()), grad_norm.float()])
        bad = 1.0 - torch.isfinite(values).all().float()
        first = bad * (1.0 - self._failed) > 0
        if self._failed_values is None:
            self._failed_values = torch.zeros_like(values)
        self._failed_values = torch.where(first, values, self._failed_values)
        self._failed_step = torch.where(first, step, self._failed_step)
        self._failed = torch.maximum(self._failed, bad)
        optimizer.found_inf = self._failed  # type: ignore[attr-defined]  # read by the fused kernels

    def check(self) -> None:
        """Read the flag; waits for the device.

        Raises:
            NonFiniteLossError: a step so far was not finite; its update and all later ones were skipped.
        """
        if self._failed_values is None or not self._failed.item():
            return
        values = self._failed_values.tolist()
        finite = torch.isfinite(self._failed_values).tolist()
        culprit = finite.index(False)
        raise NonFiniteLossError(int(self._failed_step.item()), self._names[culprit], values[culprit])
