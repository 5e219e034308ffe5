"""What the device can do at most, and what the networks ask of it.

Rates are measured on the device itself: large matrix products, a copy within its memory, an upload from pinned memory.
Operations are counted on the networks themselves, as they run. A roof is the one divided by the other; beside it
stands the anchor, which is the same for an H200 by published or hand-counted numbers.

Letters: FLOP counts a multiplication and an addition as two.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.gpu import networks
from benchmarks.gpu.part import Bench, Figure, Findings, seconds

MATMUL_ANCHOR = 790e12
COPY_ANCHOR = 4.3e12
"""FLOP/s of bf16 matrix products and bytes/s of a copy, read and written, both as seen on an H200."""

OPERATIONS_ANCHOR = {
    "InceptionV3, training step": 34.4e9,
    "InceptionV3, inference": 11.5e9,
    "DeepMT-DR, joint step": 5.9e12,
    "DeepMT-DR, inference": 3.43e12,
}
"""FLOP per image: InceptionV3 by the multiplications of its forward pass, three times in training; DeepMT-DR by the
shapes of its layers, its step with segmentation fixed and after the exact rewrites (10.7e12 before)."""

ROUNDS = 5
IMAGES = 2
"""On which operations are counted."""

_GIB = 2**30


@dataclass(frozen=True)
class Roof:
    """The device's own rates.

    Attributes:
        flops: of bf16 matrix products, per second.
        copied: bytes read and written by a copy within its memory, per second.
        uploaded: bytes from pinned memory of the host, per second.
    """

    flops: float
    copied: float
    uploaded: float


@lru_cache(maxsize=1)
def roof_of(device: torch.device, *, dry: bool) -> Roof:
    """Return the device's rates, measured once in a process, in about a second."""
    return Roof(
        flops=matmul_rate(torch.bfloat16, device, side=256 if dry else 8192, repeats=1 if dry else 20),
        copied=copy_rate(device, num_bytes=2**20 if dry else 4 * _GIB, repeats=1 if dry else 10),
        uploaded=upload_rate(device, num_bytes=2**20 if dry else _GIB, repeats=1 if dry else 5),
    )


def matmul_rate(dtype: torch.dtype, device: torch.device, *, side: int, repeats: int) -> float:
    """Return the operations per second of square matrix products of random numbers; of zeros and ones it is higher."""
    one, other = (torch.randn(side, side, device=device).to(dtype) for _ in range(2))
    product = torch.empty_like(one)
    return repeats * 2 * side**3 / _warm_seconds(lambda: torch.mm(one, other, out=product), repeats, device)


def copy_rate(device: torch.device, *, num_bytes: int, repeats: int) -> float:
    """Return the bytes per second, read and written, of copying a tensor within the device's memory."""
    source = torch.randint(0, 256, (num_bytes,), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return repeats * 2 * num_bytes / _warm_seconds(lambda: target.copy_(source), repeats, device)


def upload_rate(device: torch.device, *, num_bytes: int, repeats: int) -> float:
    """Return the bytes per second of moving a tensor from pinned memory to the device."""
    source = torch.zeros(num_bytes, dtype=torch.uint8, pin_memory=device.type == "cuda")
    target = torch.empty(num_bytes, dtype=torch.uint8, device=device)
    return repeats * num_bytes / _warm_seconds(lambda: target.copy_(source, non_blocking=True), repeats, device)


def _warm_seconds(run: Callable[[], Any], repeats: int, device: torch.device) -> float:
    for _ in range(3):
        run()

    def several() -> None:
        for _ in range(repeats):
            run()

    return seconds(several, device)


def operations(run: Callable[[], Any]) -> int:
    """Return the FLOP of a call's convolutions and matrix products; a compiled one cannot be counted."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def measure(bench: Bench, findings: Findings) -> None:
    """Measure the device's rates and count the networks' operations."""
    repeats = 1 if bench.dry else 20
    side, num_bytes = (256, 2**20) if bench.dry else (8192, 4 * _GIB)
    device = bench.device
    products = [
        matmul_rate(torch.bfloat16, device, side=side, repeats=repeats) / 1e12
        for _ in range(1 if bench.dry else ROUNDS)
    ]
    copies = [copy_rate(device, num_bytes=num_bytes, repeats=repeats) / 1e12 for _ in products]
    uploads = [upload_rate(device, num_bytes=num_bytes // 4, repeats=repeats) / 1e9 for _ in products]
    findings.figures |= {
        "bf16 matrix products": Figure(products, "TFLOP/s", anchor=MATMUL_ANCHOR / 1e12),
        "copy within the memory": Figure(copies, "TB/s", anchor=COPY_ANCHOR / 1e12),
        "upload from pinned memory": Figure(uploads, "GB/s"),
    }
    for name, run in _networks(bench).items():
        with findings.guarded(name):
            run()  # kept from the first one: maps of unchanging images
            per_image = operations(run) / IMAGES
            anchor = OPERATIONS_ANCHOR[name]
            findings.figures[f"{name}, operations"] = Figure([per_image / 1e9], "GFLOP/image", anchor=anchor / 1e9)
            roofs = [product * 1e12 / per_image for product in products]
            findings.figures[f"{name}, roof"] = Figure(roofs, "images/s", anchor=MATMUL_ANCHOR / anchor)


def _networks(bench: Bench) -> dict[str, Callable[[], Any]]:
    """Return what runs each network on a few images, by name."""
    sall, deepmt = networks.sall(bench), networks.deepmt(bench, "independent")
    return {
        "InceptionV3, training step": sall.gradients(IMAGES),
        "InceptionV3, inference": sall.inference(IMAGES),
        "DeepMT-DR, joint step": deepmt.gradients(IMAGES),
        "DeepMT-DR, inference": deepmt.inference(IMAGES),
    }
