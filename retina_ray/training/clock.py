"""Where the time of a training goes."""

import time
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TypeVar

from torch import nn

_T = TypeVar("_T")


class Clock:
    """Adds up wall time by phase, in seconds.

    Phases: ``first_batch`` (until the first batch is there), ``data_wait`` (waiting for each later one),
    ``compute``, ``validation``, ``checkpoint``, ``restore``; ``forward`` is a part of ``compute``, on a GPU that of
    queueing its kernels.
    """

    def __init__(self) -> None:
        self.seconds: dict[str, float] = {}
        self.images = 0

    @contextmanager
    def phase(self, name: str) -> Iterator[None]:
        """Count the time of a block."""
        start = time.perf_counter()
        try:
            yield
        finally:
            self.seconds[name] = self.seconds.get(name, 0.0) + time.perf_counter() - start

    def waiting(self, items: Iterable[_T]) -> Iterator[_T]:
        """Yield the items, counting the time spent waiting for them."""
        iterator = iter(items)
        while True:
            with self.phase("data_wait" if "first_batch" in self.seconds else "first_batch"):
                try:
                    item = next(iterator)
                except StopIteration:
                    return
            yield item

    def time_forward(self, network: nn.Module) -> None:
        """Count a network's forward passes in training from now on."""
        begun = 0.0

        def begin(*_: object) -> None:
            nonlocal begun
            begun = time.perf_counter()

        def end(*_: object) -> None:
            if network.training:
                self.seconds["forward"] = self.seconds.get("forward", 0.0) + time.perf_counter() - begun

        network.register_forward_pre_hook(begin)
        network.register_forward_hook(end)

    def summary(self) -> dict[str, float]:
        """Return the seconds by phase, the images per second of training and the share of it spent waiting for data."""
        working = self.seconds.get("compute", 0.0) + self.seconds.get("data_wait", 0.0)
        rates = {
            "images_per_second": self.images / working if working else 0.0,
            "data_wait_share": self.seconds.get("data_wait", 0.0) / working if working else 0.0,
        }
        return {**{f"{name}_s": value for name, value in self.seconds.items()}, **rates}
