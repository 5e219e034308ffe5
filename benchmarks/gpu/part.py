"""What every part of the GPU benchmark is given, and what it gives back."""

import importlib.util
import statistics
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.in_turn import in_turn


@dataclass(frozen=True)
class Bench:
    """Where a part runs.

    Attributes:
        device: what is measured.
        dry: whether this only shows that the part runs, at sizes that say nothing about speed.
        work: folder for what it writes.
    """

    device: torch.device
    dry: bool
    work: Path


class LeftOut(Exception):  # noqa: N818  # what it says is no error
    """A part, or a contestant in it, cannot run here, such as without Ray."""


@dataclass(frozen=True)
class Figure:
    """Something that was measured, beside what it is held against.

    Attributes:
        values: one for each round, at least one.
        unit: of the values and of everything below.
        at_least: target from below, if it has one.
        at_most: target from above, if it has one.
        must: whether missing the target makes the part a failure, as wrong numbers do and slow ones do not.
        roof: what the device could do at most by its own measured rates, if that is known.
        anchor: the same as published or derived elsewhere, if it is.
    """

    values: Sequence[float]
    unit: str
    at_least: float | None = None
    at_most: float | None = None
    must: bool = False
    roof: float | None = None
    anchor: float | None = None

    @property
    def median(self) -> float:
        """The figure."""
        return statistics.median(self.values)

    @property
    def meets(self) -> bool | None:
        """Whether the median reaches the target; None without one. NaN reaches none."""
        reached = [self.median >= self.at_least] if self.at_least is not None else []
        reached += [self.median <= self.at_most] if self.at_most is not None else []
        return all(reached) if reached else None

    def described(self) -> dict[str, Any]:
        """Return the same for a record."""
        return {
            "median": self.median,
            "lowest": min(self.values),
            "highest": max(self.values),
            "rounds": len(self.values),
            "unit": self.unit,
            "at_least": self.at_least,
            "at_most": self.at_most,
            "meets": self.meets,
            "roof": self.roof,
            "share_of_roof": self.median / self.roof if self.roof else None,
            "anchor": self.anchor,
        }


@dataclass
class Findings:
    """What a part gives back.

    Attributes:
        figures: by name.
        facts: sizes, settings and whatever else explains the figures; JSON-like.
        left_out: what was not measured, by name, and why.
        failures: the traceback of what failed, by name.
    """

    figures: dict[str, Figure] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)
    left_out: dict[str, str] = field(default_factory=dict)
    failures: dict[str, str] = field(default_factory=dict)

    @contextmanager
    def guarded(self, name: str) -> Iterator[None]:
        """Note what keeps a block from its end, and go on behind it; too little memory is no failure."""
        try:
            yield
        except LeftOut as why:
            self.left_out[name] = str(why)
        except torch.OutOfMemoryError as error:
            self.left_out[name] = str(error).partition("\n")[0]
        except Exception:  # whatever it is, other figures are worth having
            self.failures[name] = traceback.format_exc()

    @property
    def wrong(self) -> list[str]:
        """Names of the figures whose target must be met and is not."""
        return [name for name, figure in self.figures.items() if figure.must and not figure.meets]


def require(*packages: str) -> None:
    """Check that packages are installed.

    Raises:
        LeftOut: one is not.
    """
    for name in packages:
        if not installed(name):
            raise LeftOut(f"no {name}")


def installed(package: str) -> bool:
    """Tell whether a package, such as ``nvidia.dali``, is installed."""
    try:
        return importlib.util.find_spec(package) is not None
    except ModuleNotFoundError:  # of what it lies in
        return False


def seconds(run: Callable[[], Any], device: torch.device) -> float:
    """Return how long a call takes, the work that it leaves on a GPU included, on whatever streams."""
    finish(device)
    begin = time.perf_counter()
    run()
    finish(device)
    return time.perf_counter() - begin


def finish(device: torch.device) -> None:
    """Wait for the work of a GPU."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def rates(
    runs: Mapping[str, Callable[[], Any]],
    images: Mapping[str, int] | int,
    bench: Bench,
    findings: Findings,
    *,
    rounds: int,
    at_least_s: float,
) -> dict[str, list[float]]:
    """Return images per second of contestants, in turn, after warming up; without those that fail then.

    Args:
        runs: by name; what is measured once or several times in a round.
        images: of one call; the same for all, or by name.
        bench: where.
        findings: is told of those that fail.
        rounds: in which each contestant has its turn; a dry run has one.
        at_least_s: how long a turn lasts at least, by the time that a warm call takes.
    """
    turns: dict[str, Callable[[], float]] = {}
    for name, run in runs.items():
        with findings.guarded(name):
            for _ in range(1 if bench.dry else 3):  # the first ones choose kernels, compile and reserve memory
                run()
            calls = 1 if bench.dry else max(1, round(at_least_s / seconds(run, bench.device)))
            number = calls * (images if isinstance(images, int) else images[name])
            turns[name] = partial(_rate, partial(_several, run, calls), number, bench.device)
    return in_turn(turns, 1 if bench.dry else rounds)


def _several(run: Callable[[], Any], calls: int) -> None:
    for _ in range(calls):
        run()


def _rate(run: Callable[[], Any], number: int, device: torch.device) -> float:
    return number / seconds(run, device)
