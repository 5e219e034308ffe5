"""DeepMT-DR's joint training step against the plain one, at equal outputs: float32 on the CPU, and what a GPU adds.

A GPU adds bfloat16 and compilation, each contestant's memory, and its share of what matrix products reach.

Run with ``python -m benchmarks.deepmt_step``. On a CPU the nets are narrow and the images small; on a GPU they are the
paper's. Writes ``benchmarks/results/deepmt-step.json`` and ``.md`` (on a GPU ``deepmt-step-gpu``).
"""

import copy
import statistics
import time
from collections.abc import Callable, Mapping
from functools import partial
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.in_turn import in_turn, table, write
from retina_ray.config import override
from retina_ray.data.batch import Batch, from_unit_range
from retina_ray.data.schema import task_of
from retina_ray.methods import catalogue
from retina_ray.methods.deepmt.graph import StageNetwork
from retina_ray.methods.deepmt.method import DeepMT
from retina_ray.recipes import load_recipe
from tests.deepmt_reference import plain, reference_terms

ROUNDS = 5
SMALL = {
    "data.image_size": 256,
    "method.segmentation.width": 32,
    "method.grading.weights": "none",
}
"""Half the paper's width, so that segmentation is nine tenths of the multiplications; in the paper it is 97 %."""
MODES = {"segmentation fixed": "independent", "segmentation trained": "joint"}


def method_of(mode: str, *, on_gpu: bool) -> DeepMT:
    """Return the joint stage with the segmentation net fixed or not; without dropout, so that outputs are equal."""
    small = {"method.grading.weights": "none"} if on_gpu else SMALL
    config = override(
        load_recipe("deepmt_dr"), {**small, "method.segmentation.mode": mode, "method.grading.dropout": 0.0}
    )
    (stage,) = [each for each in catalogue.plan(config, {"dr": task_of("dr", 5)}).stages if each.name == "joint"]
    method = catalogue.build("deepmt", stage.settings)
    assert isinstance(method, DeepMT)
    return method


def a_batch(count: int, side: int, device: torch.device) -> Batch:
    """Return smooth random images, half of them with a mask, that are the same in every epoch."""
    generator = torch.Generator().manual_seed(0)
    coarse = torch.rand(count, 3, side // 8, side // 8, generator=generator)
    colours = torch.nn.functional.interpolate(coarse, size=(side, side), mode="bicubic").clamp(0, 1)
    has_mask = torch.arange(count) % 2 == 0
    masks = (torch.rand(count, 4, side, side, generator=generator) > 0.9) & has_mask.view(-1, 1, 1, 1)
    return Batch(
        images=from_unit_range(colours).to(device, memory_format=torch.channels_last),
        grades={"dr": (torch.arange(count) % 5).to(device)},
        soft_logits={},
        masks=masks.to(device),
        has_mask=has_mask.to(device),
        weight=torch.ones(count, device=device),
        rows=torch.arange(count, device=device),
        fixed_rows=tuple(range(count)),
    )


Terms = Callable[[DeepMT, StageNetwork, Batch], Mapping[str, Tensor]]


def ours(method: DeepMT, network: StageNetwork, batch: Batch) -> dict[str, Tensor]:
    """Return the product's terms."""
    counts = {name: count.clamp(min=1) for name, count in method.counts(batch).items()}
    return method.losses(network, batch, counts)


def step(terms: Terms, method: DeepMT, network: StageNetwork, batch: Batch, *, bf16: bool = False) -> dict[str, float]:
    """Compute gradients once and return the terms."""
    network.zero_grad(set_to_none=True)
    with torch.autocast(batch.images.device.type, dtype=torch.bfloat16, enabled=bf16):
        found = dict(terms(method, network, batch))
    method.total(found).backward()
    return {name: float(term.detach()) for name, term in found.items()}


def rate(run: Callable[[], Any], batch: Batch) -> float:
    """Return images per second of one step."""
    begin = time.perf_counter()
    run()
    if batch.images.is_cuda:
        torch.cuda.synchronize()
    return len(batch.rows) / (time.perf_counter() - begin)


def largest_difference(one: Mapping[str, float], other: Mapping[str, float]) -> float:
    """Return the largest difference of a term relative to its size."""
    return max(abs(one[name] - other[name]) / max(abs(other[name]), 1e-12) for name in other)


Runs = dict[str, Callable[[], dict[str, float]]]


def contestants(mode: str, batch: Batch, *, on_gpu: bool) -> Runs:
    """Return what takes one step, by name; each has a network of its own."""
    torch.manual_seed(0)
    method = method_of(MODES[mode], on_gpu=on_gpu)
    network = method.build_model(initial_weights=False).to(batch.images.device, memory_format=torch.channels_last)
    runs: Runs = {
        "ours": partial(step, ours, method, network, batch),
        "plain": partial(step, reference_terms, method, plain(network), batch),
    }
    if on_gpu:
        half, compiled = copy.deepcopy(network), copy.deepcopy(network)
        for part in method.differentiated_once(compiled):
            part.compile()
        runs["ours, bf16"] = partial(step, ours, method, half, batch, bf16=True)
        runs["ours, bf16, compiled"] = partial(step, ours, method, compiled, batch, bf16=True)
    return runs


def working_memory(run: Callable[[], Any]) -> int:
    """Return the bytes that a step takes on the GPU at most, beyond what is there before it."""
    torch.cuda.reset_peak_memory_stats()
    before = torch.cuda.memory_allocated()
    run()
    return torch.cuda.max_memory_allocated() - before


def operations(run: Callable[[], Any]) -> int:
    """Return the multiplications and additions of one step; a compiled one cannot be counted."""
    with FlopCounterMode(display=False) as counter:
        run()
    return counter.get_total_flops()


def matmul_peak(dtype: torch.dtype, device: torch.device, *, side: int = 8192, repeats: int = 20) -> float:
    """Return the operations per second of large matrix products; float32 ones in TF32, as convolutions on GPUs."""
    before = torch.get_float32_matmul_precision()
    torch.set_float32_matmul_precision("high")
    factor = torch.ones(side, side, dtype=dtype, device=device)
    for count in (3, repeats):  # the first ones choose their kernels
        begin = time.perf_counter()
        for _ in range(count):
            product = factor @ factor
        float(product[0, 0])  # waits for the GPU
        seconds = time.perf_counter() - begin
    torch.set_float32_matmul_precision(before)
    return 2 * side**3 * repeats / seconds


def gpu_figures(runs: Runs, rates: Mapping[str, list[float]], batch: Batch) -> dict[str, dict[str, float]]:
    """Return each contestant's working memory and its share of the matrix products' peak at its precision."""
    device = batch.images.device
    peaks = {half: matmul_peak(torch.bfloat16 if half else torch.float32, device) for half in (False, True)}
    counts = {name: operations(runs[name]) for name in ("ours", "plain")}
    found: dict[str, dict[str, float]] = {}
    for name, run in runs.items():
        per_second = counts.get(name, counts["ours"]) * statistics.median(rates[name]) / len(batch.rows)
        share = per_second / peaks["bf16" in name]
        found[name] = {"working_memory_bytes": working_memory(run), "share_of_matmul_peak": share}
    return found


def gpu_table(figures: Mapping[str, Mapping[str, float]]) -> str:
    """Return a Markdown table of `gpu_figures`."""
    lines = ["| | working memory, GiB | share of the matrix products' peak |", "|---|---|---|"]
    for name, found in figures.items():
        memory, share = found["working_memory_bytes"] / 2**30, found["share_of_matmul_peak"]
        lines.append(f"| {name} | {memory:.1f} | {share:.0%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure both modes."""
    on_gpu = torch.cuda.is_available()
    device = torch.device("cuda" if on_gpu else "cpu")
    side, count = (1024, 2) if on_gpu else (SMALL["data.image_size"], 2)
    assert isinstance(side, int)
    batch = a_batch(count, side, device)
    record: dict[str, Any] = {"side": side, "batch": count, "threads": torch.get_num_threads()}
    tables = {}
    for mode in MODES:
        runs = contestants(mode, batch, on_gpu=on_gpu)
        apart = largest_difference(runs["ours"](), runs["plain"]())
        rates = in_turn({name: partial(rate, run, batch) for name, run in runs.items()}, ROUNDS)
        record[mode] = {"images_per_second": rates, "largest_relative_difference": apart}
        ratio = statistics.median(one / other for one, other in zip(rates["ours"], rates["plain"], strict=True))
        note = f"\nEqual terms to {apart:.1e}; ours / plain {ratio:.2f}.\n"
        tables[f"Joint step, {mode}, {side} px, batch of {count}"] = table(rates, ours="ours", unit="images/s") + note
        if on_gpu:
            record[mode]["gpu"] = gpu_figures(runs, rates, batch)
            tables[f"On the GPU, {mode}"] = gpu_table(record[mode]["gpu"])
    write("deepmt-step-gpu" if on_gpu else "deepmt-step", record, tables)


if __name__ == "__main__":
    main()
