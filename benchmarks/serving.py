"""An endpoint's requests per second and latencies against other servers with the same model, in turn.

Run with ``python -m benchmarks.serving WORK`` after ``pip install retina-ray[bench]``. Trains two models for an epoch
on drawn images, which is enough to serve them. A JPEG of 512 px in, JSON out, over loopback, from 16 clients that ask
again when they are answered. The networks have one thread in each process on every side, and every side prepares and
grades by the same code. A server stands still while another is measured. Writes ``benchmarks/results/serving.json`` and
``.md``.
"""

import argparse
import statistics
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import simplejpeg

from benchmarks.http_load import Measured, Question
from benchmarks.in_turn import Log, raw_log, versions, write
from benchmarks.served_processes import Loop, Server, loops, ours, rival
from benchmarks.serving_rivals import LOOP_S, MAX_BATCH, ROUTE
from retina_ray.config import override
from retina_ray.data.synthetic import draw, write_synthetic
from retina_ray.orchestration.publish import train_and_publish
from retina_ray.recipes import load_recipe

CASES = (("inception_v3", 299, 344), ("resnet18", 224, 256))
"""Backbone, side of its images and of those that are stored, pixels."""
SIDE = 512
CLIENTS = 16
ROUNDS = 3
ALONE_S = 2.0
RIVALS = ("fastapi", "uvicorn", "litserve")

Figures = dict[str, float]
Contestants = Mapping[str, Callable[[], Figures]]


def main() -> None:
    """Measure both models."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    work = parser.parse_args().work.resolve()
    photographs = work / "photographs"
    photographs.mkdir(parents=True, exist_ok=True)
    for index in range(8):
        image = draw(size=SIDE, task="dr", grade=index % 5, seed=7, index=index).image
        (photographs / f"{index}.jpg").write_bytes(simplejpeg.encode_jpeg(image, quality=92))
    record: dict[str, Any] = {"clients": CLIENTS, "seconds": LOOP_S, "rounds": ROUNDS, "max_batch": MAX_BATCH}
    record["rivals"] = versions(*RIVALS)
    log = raw_log("serving", *RIVALS)
    tables: dict[str, str] = {}
    for backbone, side, stored in CASES:
        bundle = trained(work, backbone, side, stored)
        for arena, contestants in arenas(work, bundle, photographs):
            log({"backbone": backbone, "arena": arena})
            found = measured(contestants, log)
            record.setdefault(backbone, {})[arena] = found
            tables[f"{backbone}, {side} px, {arena}"] = table(found)
            print(backbone, arena, table(found), sep="\n", flush=True)
            write("serving", record, tables)


def trained(work: Path, backbone: str, side: int, stored: int) -> str:
    """Return the bundle of a model that has seen drawn images for an epoch."""
    data = work / f"data-{stored}"
    if not (data / "dataset.json").exists():
        write_synthetic(str(data), tasks=["dr", "amd"], images_per_task=40, image_size=stored, seed=0, num_workers=2)
    config = override(
        load_recipe("sall_debug"),
        {
            "name": backbone,
            "data.path": str(data),
            "data.image_size": side,
            "method.backbone": backbone,
            "method.weights": "none",
            "train.epochs": 1,
            "train.global_batch_size": 8,
            "train.batch_norm_momentum": 0.9,
            "runtime.workers": 0,
            "runtime.storage": str(work / "runs"),
            "tracking.enabled": False,
            "evaluate.bootstrap": 20,
        },
    )
    return train_and_publish(config, resume=True).bundle_uri


def arenas(work: Path, bundle: str, photographs: Path) -> Iterator[tuple[str, Contestants]]:
    """Yield those that are compared, by the heading of their table; they run until the next are asked for."""
    bodies = [file.read_bytes() for file in sorted(photographs.iterdir())]
    raw = [Question("/v1/grade", "image/jpeg", body) for body in bodies]
    form = [_form(body) for body in bodies]
    model = {"num_cpus": 1, "max_batch": MAX_BATCH}
    precisions = {name: {**model, "precision": name} for name in ("float32", "bfloat16")}

    with _running() as start:
        one = start(ours(work, bundle, raw, models=precisions))
        yield (
            "one worker",
            {
                "retina_ray": served(one),
                "retina_ray, bfloat16": served(one, "?model=bfloat16"),
                "loop in one process": looped(start(loops("loop", bundle, photographs, count=1))),
                "loop, networks as trained": looped(start(loops("loop-as-trained", bundle, photographs, count=1))),
                "FastAPI": served(start(rival("fastapi", bundle, form))),
                "LitServe": served(start(rival("litserve", bundle, form))),
            },
        )
    with _running() as start:
        two = {"grading": {**model, "scaling": {"least": 2, "most": 2}}}
        yield (
            "two workers",
            {
                "retina_ray": served(start(ours(work, bundle, raw, models=two))),
                "loops in two processes": looped(start(loops("loop", bundle, photographs, count=2))),
                "FastAPI, threads": served(start(rival("fastapi-threads", bundle, form))),
                "LitServe": served(start(rival("litserve", bundle, form, workers=2))),
            },
        )
    with _running() as start:
        yield (
            "one worker, one hop",
            {
                "retina_ray": served(start(ours(work, bundle, raw, models={"grading": model}, layout="one_hop"))),
                "loop in one process": looped(start(loops("loop", bundle, photographs, count=1))),
            },
        )


@contextmanager
def _running() -> Iterator[Callable[[Any], Any]]:
    with ExitStack() as stack:
        yield stack.enter_context


def served(server: Server, only: str = "") -> Callable[[], Figures]:
    """Return what measures a server, under load and alone."""

    def measure() -> Figures:
        loaded = server.measure(clients=CLIENTS, seconds=LOOP_S, only=only)
        alone = server.measure(clients=1, seconds=ALONE_S, only=only)
        return {**_figures(loaded), "alone_ms": alone.percentile(50)}

    return measure


def looped(running: Sequence[Loop]) -> Callable[[], Figures]:
    """Return what measures loops together, and one photograph at a time in the first."""

    def measure() -> Figures:
        for each in running:
            each.ask("batches")
        rate = sum(each.answer()[0] for each in running)
        running[0].ask("singly")
        return {"per_second": rate, "alone_ms": statistics.median(running[0].answer()), "failures": 0}

    return measure


def measured(contestants: Contestants, log: Log) -> dict[str, list[Figures]]:
    """Measure each in turn, after a round that does not count."""
    values: dict[str, list[Figures]] = {name: [] for name in contestants}
    for round_ in range(ROUNDS + 1):
        for name, contestant in contestants.items():
            figures = contestant()
            log({"round": round_, "contestant": name, **figures})
            if round_:
                values[name].append(figures)
    return values


def table(values: Mapping[str, Sequence[Figures]]) -> str:
    """Return a Markdown table; ratios and added latencies are medians over the rounds."""
    lines = [
        "| | photographs/s | lowest | highest | retina_ray / this | p50 ms | p99 ms | alone, p50 ms | added, ms |",
        "|---|---|---|---|---|---|---|---|---|",
    ]
    bare = next(found for name, found in values.items() if name.startswith("loop"))
    for name, found in values.items():
        rates = [each["per_second"] for each in found]
        pairs = zip(values["retina_ray"], found, strict=True)
        ratio = statistics.median(one["per_second"] / other["per_second"] for one, other in pairs)
        added = statistics.median(e["alone_ms"] - b["alone_ms"] for e, b in zip(found, bare, strict=True))
        latency = [_median(found, key) for key in ("p50_ms", "p99_ms", "alone_ms")]
        cells = [
            *(f"{value:.1f}" for value in (statistics.median(rates), min(rates), max(rates))),
            f"{ratio:.2f}",
            *(f"{value:.0f}" if value else "" for value in latency[:2]),
            f"{latency[2]:.1f}",
            f"{added:.1f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def _figures(found: Measured) -> Figures:
    return {
        "per_second": found.per_second,
        "p50_ms": found.percentile(50),
        "p99_ms": found.percentile(99),
        "failures": found.failures,
    }


def _median(found: Sequence[Figures], key: str) -> float:
    return statistics.median(each.get(key, 0.0) for each in found)


def _form(body: bytes) -> Question:
    """Return a photograph as a form with one file, as both guides take it."""
    boundary = "photograph-boundary"
    head = f'--{boundary}\r\nContent-Disposition: form-data; name="file"; filename="eye.jpg"\r\n'
    head += "Content-Type: image/jpeg\r\n\r\n"
    whole = head.encode() + body + f"\r\n--{boundary}--\r\n".encode()
    return Question(ROUTE, f"multipart/form-data; boundary={boundary}", whole)


if __name__ == "__main__":
    main()
