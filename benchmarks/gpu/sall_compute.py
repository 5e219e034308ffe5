"""SALL's training step on a batch that stays on the device: what the step from shards can come to at most.

InceptionV3 at 299 px by the product's own step, at several batch sizes, eager and compiled, in turn, and as the recipe
has it by default: deterministic kernels and batches of 32. The roof is that of the operations.
"""

import torch

from benchmarks.gpu import networks
from benchmarks.gpu.part import Bench, Figure, Findings, rates
from benchmarks.gpu.roofline import MATMUL_ANCHOR, OPERATIONS_ANCHOR, operations, roof_of

TARGET, GOAL = 4300.0, 5000.0
"""Images per second from shards: what is asked for, and what is hoped for."""

BATCHES, COMPILED_BATCHES, ROUNDS = (32, 128, 256, 512), (256, 512), 3
DEFAULT_BATCH = 32

ANCHOR = MATMUL_ANCHOR / OPERATIONS_ANCHOR["InceptionV3, training step"]


def measure(bench: Bench, findings: Findings) -> None:
    """Measure every way to train."""
    subject = networks.sall(bench)
    ways = _ways(bench)
    # Each batch size gets kernels of its own, as in a training, which has one.
    with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
        steps = {name: networks.Step(subject, count, changes) for name, (count, changes) in ways.items()}
        images = {name: count for name, (count, _) in ways.items()}
        found = rates(steps, images, bench, findings, rounds=ROUNDS, at_least_s=1.0)
    per_image = operations(subject.gradients(2)) / 2
    roof = roof_of(bench.device, dry=bench.dry).flops / per_image
    findings.facts |= {"goal": GOAL, "GFLOP per image": per_image / 1e9}
    for name, values in found.items():
        findings.figures[name] = Figure(values, "images/s", at_least=TARGET, roof=roof, anchor=ANCHOR)


def _ways(bench: Bench) -> dict[str, tuple[int, networks.Changes]]:
    """Return batch size and changes to the configuration of every contestant, by name."""
    if bench.dry:
        return {"eager, batch 4": (4, networks.FAST), "by default, batch 4": (4, {})}
    return {
        f"by default, batch {DEFAULT_BATCH}": (DEFAULT_BATCH, {}),
        **{f"eager, batch {count}": (count, networks.FAST) for count in BATCHES},
        **{f"compiled, batch {count}": (count, networks.COMPILED) for count in COMPILED_BATCHES},
    }
