"""DeepMT-DR's joint training step from 256 px to 1024 px: the product's step, and against the plain one.

By the product's own step, eager and compiled, at several batch sizes, in turn; then what `benchmarks.deepmt_step`
compares, gradients alone at the paper's batch of two, with the step as the paper says it among them. Segmentation is
fixed or trained. Images are the same in every epoch, as the paper does not augment. The roof is that of the operations.
"""

import torch

from benchmarks import deepmt_step
from benchmarks.gpu import networks
from benchmarks.gpu.part import Bench, Figure, Findings, rates
from benchmarks.gpu.roofline import MATMUL_ANCHOR, OPERATIONS_ANCHOR, operations, roof_of

TARGET = 35.0
BATCHES, COMPILED_BATCH, ROUNDS = (2, 8, 16), 8, 3
ANCHOR = MATMUL_ANCHOR / OPERATIONS_ANCHOR["DeepMT-DR, joint step"]


def measure(bench: Bench, findings: Findings) -> None:
    """Measure both modes."""
    findings.facts |= {"side": 1024, "batches": BATCHES}
    for title, mode in deepmt_step.MODES.items():
        per_image = _operations(bench, mode)
        roof = roof_of(bench.device, dry=bench.dry).flops / per_image
        findings.facts[f"GFLOP per image, {title}"] = per_image / 1e9
        for count in (2,) if bench.dry else BATCHES:
            steps = {
                f"{title}, {name}, batch {count}": networks.Step(networks.deepmt(bench, mode), count, changes)
                for name, changes in _ways(bench, count).items()
            }
            with torch._dynamo.config.patch(automatic_dynamic_shapes=False):
                found = rates(steps, count, bench, findings, rounds=ROUNDS, at_least_s=1.0)
            for name, values in found.items():
                findings.figures[name] = Figure(values, "images/s", at_least=TARGET, roof=roof, anchor=ANCHOR)
        if not bench.dry or mode == "independent":
            with findings.guarded(f"{title}, against the plain step"):
                _against_plain(bench, title, findings)


def _ways(bench: Bench, count: int) -> dict[str, networks.Changes]:
    """Return changes to the configuration by name; at the recipe's own batch of two also none, at one size compiled."""
    default: dict[str, networks.Changes] = {"by default": {}} if count == BATCHES[0] and not bench.dry else {}
    compiled = {"compiled": networks.COMPILED} if count == COMPILED_BATCH else {}
    return {"eager": networks.FAST, **default, **compiled}


def _operations(bench: Bench, mode: str) -> float:
    run = networks.deepmt(bench, mode).gradients(2)
    run()  # the maps of unchanging images are kept from the second step on
    return operations(run) / 2


def _against_plain(bench: Bench, title: str, findings: Findings) -> None:
    """Compare with the step that keeps nothing and rearranges nothing; terms must be equal up to rounding."""
    on_gpu = bench.device.type == "cuda" and not bench.dry
    batch = deepmt_step.a_batch(2, 1024 if on_gpu else 64, bench.device)
    runs = deepmt_step.contestants(title, batch, on_gpu=on_gpu)
    apart = deepmt_step.largest_difference(runs["ours"](), runs["plain"]())
    for name, values in rates(runs, 2, bench, findings, rounds=ROUNDS, at_least_s=1.0).items():
        findings.figures[f"{title}, gradients alone, {name}"] = Figure(values, "images/s")
    findings.figures[f"{title}, ours and plain, terms apart"] = Figure([apart], "of plain", at_most=1e-2, must=True)
