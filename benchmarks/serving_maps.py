"""What a heat map costs beyond the grades, on one CPU thread, A B A B.

Run with ``python -m benchmarks.serving_maps``. The networks have random weights, which change no time. *eager*: grades
by the network as trained; *graded*: by the network as served; each other row grades and makes maps by the network as
served. Processor time, since one thread is what is compared and a machine may be busy. Writes
``benchmarks/results/serving-maps.json`` and ``.md``.
"""

import statistics
import time
from collections.abc import Callable
from functools import partial
from typing import Any

import torch

from benchmarks.in_turn import in_turn, write
from benchmarks.serving_networks import grade, grader
from retina_ray.bundle_manifest import BundleManifest, Preprocessing
from retina_ray.config import RunConfig, override
from retina_ray.data.batch import normalise
from retina_ray.recipes import load_recipe
from retina_ray.serving.acceleration import accelerate
from retina_ray.serving.explanation import Explainer

ROUNDS = 5


def cases() -> dict[str, RunConfig]:
    """Return configurations of what is measured, by name."""
    sall = load_recipe("sall_debug")
    weights = {"method.weights": "none"}
    return {
        "SALL, inception_v3, 299 px": override(
            sall, {**weights, "method.backbone": "inception_v3", "data.image_size": 299}
        ),
        "SALL, resnet18, 224 px": override(sall, {**weights, "method.backbone": "resnet18", "data.image_size": 224}),
        "DeepMT-DR, deepmt_debug, 256 px": override(load_recipe("deepmt_debug"), {"data.image_size": 256}),
        "DeepMT-DR, deepmt_dr, 512 px": override(
            load_recipe("deepmt_dr"), {"data.image_size": 512, "method.grading.weights": "none"}
        ),
    }


def run_case(config: RunConfig) -> dict[str, list[float]]:
    """Return processor milliseconds of each way to answer a photograph."""
    torch.manual_seed(0)
    method, trained = grader(config)
    side = config.data.image_size
    images = normalise(torch.randint(0, 256, (1, side, side, 3), dtype=torch.uint8))
    shown = method.inputs(images)
    served = accelerate(method, trained, precision="float32", example=shown)
    manifest = BundleManifest.model_construct(preprocessing=Preprocessing.model_construct(image_size=side))
    explainer = Explainer([(method, served)], manifest)
    ways: dict[str, Callable[[], object]] = {
        "eager": partial(grade, method, trained, shown),
        "graded": partial(grade, method, served, shown),
        **{kind: partial(explainer.examine, images, kind=kind) for kind in explainer.kinds},
    }
    return in_turn({name: partial(milliseconds, way) for name, way in ways.items()}, ROUNDS)


def milliseconds(way: Callable[[], object]) -> float:
    """Return the processor time of a call, the mean over at least half a second of them."""
    begin, calls = time.process_time(), 0
    while time.process_time() < begin + 0.5:
        way()
        calls += 1
    return 1e3 * (time.process_time() - begin) / calls


def table(values: dict[str, list[float]]) -> str:
    """Return a Markdown table; what is added is relative to both ways to grade, medians of the rounds."""
    lines = ["| | median ms | lowest | highest | beyond eager | beyond graded |", "|---|---|---|---|---|---|"]
    for name, found in values.items():
        beyond = [
            statistics.median(one / other for one, other in zip(found, values[base], strict=True)) - 1
            for base in ("eager", "graded")
        ]
        figures = f"{statistics.median(found):.1f} | {min(found):.1f} | {max(found):.1f}"
        lines.append(f"| {name} | {figures} | {beyond[0]:+.0%} | {beyond[1]:+.0%} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Measure every network."""
    torch.set_num_threads(1)
    record: dict[str, Any] = {}
    tables = {}
    for name, config in cases().items():
        record[name] = run_case(config)
        tables[f"{name}, one photograph, one thread, medians of {ROUNDS} rounds"] = table(record[name])
        print(name, table(record[name]), sep="\n", flush=True)
    write("serving-maps", {"threads": 1, "rounds": ROUNDS, "milliseconds": record}, tables)


if __name__ == "__main__":
    main()
