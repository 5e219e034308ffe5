"""A served network as trained and as rewritten, on one CPU thread, A B A B.

Run with ``python -m benchmarks.serving_networks``; ``--compiled`` adds what torch.compile makes of both. The networks
have random weights, which change no time, and get their pixels as the predictor gives them. It is processor time, since
one thread is what is compared and a machine may be busy. Also what each way costs until it has answered for the first
time. Writes ``benchmarks/results/serving-networks.json`` and ``.md``.
"""

import argparse
import copy
import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn

from benchmarks.in_turn import in_turn, table, write
from retina_ray.config import RunConfig, override
from retina_ray.data.batch import normalise
from retina_ray.data.schema import KNOWN_TASKS
from retina_ray.methods import catalogue
from retina_ray.methods.base import Method
from retina_ray.serving.acceleration import accelerate

CASES = (("inception_v3", 299), ("resnet18", 224))
"""Backbone and side of its images, pixels."""
BATCHES = (1, 8)
ROUNDS, REPEATS = 7, 3


def grader(config: RunConfig) -> tuple[Method, nn.Module]:
    """Return a run's final network with random weights, and the method that reads it."""
    plan = catalogue.plan(config, KNOWN_TASKS)
    stage = next(each for each in plan.stages if each.name in plan.finals)
    method = catalogue.build(config.method.name, stage.settings)
    return method, method.build_model().eval()


def compiled(network: nn.Module) -> nn.Module:
    """Return a compiled copy, whose weights are packed beforehand."""
    copied = copy.deepcopy(network)
    copied.compile(options={"freezing": True})
    return copied


def grade(method: Method, network: nn.Module, images: Tensor) -> dict[str, Tensor]:
    """Return what the predictor makes of images."""
    with torch.inference_mode():
        return method.probabilities(network, images)


def rate(method: Method, network: nn.Module, images: Tensor) -> float:
    """Return images per second of processor time."""
    begin = time.process_time()
    for _ in range(REPEATS):
        grade(method, network, images)
    return REPEATS * len(images) / (time.process_time() - begin)


def timed(make: Callable[[], nn.Module], method: Method, batches: dict[int, Tensor]) -> tuple[nn.Module, float]:
    """Return a network and the processor seconds until it has answered a batch of every size."""
    begin = time.process_time()
    network = make()
    for images in batches.values():
        grade(method, network, images)
    return network, time.process_time() - begin


def run_case(backbone: str, side: int, *, with_compiled: bool) -> tuple[dict[str, Any], dict[str, str]]:
    """Measure one network; return its record and its tables."""
    torch.manual_seed(0)
    config = override(RunConfig(name="served"), {"method.backbone": backbone, "method.weights": "none"})
    method, trained = grader(config)
    batches = {b: normalise(torch.randint(0, 256, (b, side, side, 3), dtype=torch.uint8)) for b in BATCHES}
    rewrite = partial(accelerate, method, trained, precision="float32", example=batches[1])
    ways: dict[str, Callable[[], nn.Module]] = {"rewritten": rewrite, "as trained": lambda: trained}
    if with_compiled:
        ways |= {"as trained, compiled": lambda: compiled(trained), "rewritten, compiled": lambda: compiled(rewrite())}
    networks, ready_s = {}, {}
    for name, make in ways.items():
        networks[name], ready_s[name] = timed(make, method, batches)
    record: dict[str, Any] = {"image_size": side, "ready_s": ready_s, "images_per_s": {}, "largest_difference": {}}
    tables = {}
    for count, images in batches.items():
        values = in_turn({name: partial(rate, method, each, images) for name, each in networks.items()}, ROUNDS)
        record["images_per_s"][str(count)] = values
        record["largest_difference"][str(count)] = differences(method, networks, images)
        title = f"{backbone}, {side} px, batch {count}, one thread, medians of {ROUNDS} rounds"
        tables[title] = table(values, ours="rewritten", unit="images/s")
    medians = {name: statistics.median(values) for name, values in record["images_per_s"]["1"].items()}
    print(backbone, medians, ready_s, flush=True)
    return record, tables


def differences(method: Method, networks: dict[str, nn.Module], images: Tensor) -> dict[str, float]:
    """Return by how much a probability differs at most from that of the network as trained."""
    expected = grade(method, networks["as trained"], images)
    found = {name: grade(method, network, images) for name, network in networks.items()}
    return {
        name: max(float((answers[task] - expected[task]).abs().max()) for task in expected)
        for name, answers in found.items()
    }


def main() -> None:
    """Measure every network."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--compiled", action="store_true", help="also compile them")
    with_compiled = parser.parse_args().compiled
    torch.set_num_threads(1)
    cases: dict[str, Any] = {}
    tables: dict[str, str] = {}
    for backbone, side in CASES:
        cases[backbone], found = run_case(backbone, side, with_compiled=with_compiled)
        tables |= found
    write("serving-networks", {"threads": 1, "rounds": ROUNDS, "repeats": REPEATS, "cases": cases}, tables)


if __name__ == "__main__":
    main()
