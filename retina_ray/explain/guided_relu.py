"""Guided backpropagation: ReLUs that hand back positive gradients only (Springenberg et al. 2015).

What lives here: the switch between the true and the guided gradient of a network's ReLUs. What does not: the map
(``explain/evidence.py``).
"""

import contextlib
from collections.abc import Iterator

from torch import Tensor, nn


class GuidedRelus:
    """The ReLUs of a network, whose gradient can be guided during one backward pass and true in all others.

    A forward pass inside ``watched()`` is an ordinary one. A backward pass through its graph inside ``guided()`` cuts
    the gradient off at zero wherever it enters a ReLU; outside it is the true one. So loss and map share a forward
    pass, and differentiating the map, which goes back through the same ReLUs, is exact.

    Args:
        network: holds the ``nn.ReLU`` modules; the functional form cannot be found and stays as it is.

    Raises:
        ValueError: the network has no ReLU.
    """

    def __init__(self, network: nn.Module) -> None:
        self._relus = [module for module in network.modules() if isinstance(module, nn.ReLU)]
        if not self._relus:
            raise ValueError(f"{type(network).__name__} has no nn.ReLU to guide; choose another map")
        self._guiding = False

    @contextlib.contextmanager
    def watched(self) -> Iterator[None]:
        """Let forward passes in here build graphs that can be guided."""
        handles = [relu.register_forward_hook(self._watch) for relu in self._relus]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()

    @contextlib.contextmanager
    def guided(self) -> Iterator[None]:
        """Let backward passes in here be guided."""
        self._guiding = True
        try:
            yield
        finally:
            self._guiding = False

    def _watch(self, relu: nn.Module, inputs: tuple[Tensor, ...], output: Tensor) -> None:
        # A hook on the tensor, not a function of our own: autograd records what it does, so it differentiates again.
        if output.requires_grad:
            output.register_hook(self._guide)  # type: ignore[no-untyped-call]

    def _guide(self, gradient: Tensor | None) -> Tensor | None:
        # None is how autograd passes on a zero that no one computed.
        return gradient.clamp(min=0) if self._guiding and gradient is not None else gradient
