"""A served model: its answers per second in this process and over HTTP, and how long one photograph takes.

The network is SALL's at 299 px with random weights, rewritten for serving and checked as an endpoint does, in both
precisions. From the innermost out: networks alone on a batch on the device; the predictor, from prepared pixels to
answers; the same with photographs prepared on all CPUs; and, where Ray is installed, an endpoint over loopback, whose
clients take CPUs of the same machine. The roof is that of the network's operations.
"""

import os
import statistics
import tempfile
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu import drawn
from benchmarks.gpu.part import Bench, Figure, Findings, installed, rates, seconds
from benchmarks.gpu.roofline import MATMUL_ANCHOR, OPERATIONS_ANCHOR, operations, roof_of
from retina_ray.bundle import Bundle
from retina_ray.serving.acceleration import Precision
from retina_ray.serving.model_host import HostSettings, LoadedModel
from retina_ray.serving.predictor import Predictor
from tests.bundles import make_everything

SIDE = 512
"""Of the photographs, pixels."""
BATCHES, MAX_BATCH, ROUNDS, ALONE = (1, 16, 64, 256), 64, 3, 50
CLIENTS, LOAD_S, HTTP_REPLICAS, HTTP_CPUS = 64, 5.0, 4, 2
NETWORK_TARGET = 15000.0
"""Images per second of inference; compiled, on a smaller GPU, others reach two thirds of it."""
HTTP_SHARE = 0.9
"""Of the rate in process that the endpoint is to reach."""
HEAD_SCALE = 0.003
"""Of the random heads: what rounding makes of random features must not look like another answer."""
PRECISIONS: tuple[Precision, ...] = ("float32", "bfloat16")
ANCHOR = MATMUL_ANCHOR / OPERATIONS_ANCHOR["InceptionV3, inference"]


def measure(bench: Bench, findings: Findings) -> None:
    """Measure both precisions in process, then the endpoint."""
    findings.facts |= {"photographs": SIDE, "batches": BATCHES, "clients": CLIENTS}
    folder = Path(tempfile.mkdtemp(dir=bench.work))
    bundle = _bundle(folder, bench)
    files = [drawn.jpeg(image) for image in drawn.photographs(128 if bench.dry else SIDE, 4 if bench.dry else 16)]
    best = 0.0
    for precision in PRECISIONS:
        with findings.guarded(precision):
            settings = HostSettings("grading", device=bench.device.type, precision=precision)
            model = LoadedModel(bundle, settings)
            findings.facts[f"self-check, {precision}"] = model.check.largest_difference
            _networks(model, bundle.manifest.preprocessing.image_size, precision, bench, findings)
            best = max(best, _photographs(model, precision, files, bench, findings))
    if bench.dry or not installed("ray"):
        findings.left_out["endpoint"] = "a dry run" if bench.dry else "no ray"
    else:
        with findings.guarded("endpoint"):
            _endpoint(folder, files, findings, in_process=best)


def _bundle(folder: Path, bench: Bench) -> Bundle:
    changes = {} if bench.dry else {"method.backbone": "inception_v3"}
    size = 64 if bench.dry else 299
    made = make_everything(folder / "data", size=size, **{**changes, "data.image_size": size})
    for network in made.networks:
        for name, weight in network.weights.items():
            if name.startswith("heads.") and name.endswith("weight"):
                weight.mul_(HEAD_SCALE)
    return made.build(folder / "bundle")


def _networks(model: LoadedModel, side: int, precision: Precision, bench: Bench, findings: Findings) -> None:
    """Measure the networks alone, on images of `side` pixels, in turn over the sizes of the batch."""
    batches = {count: torch.randn(count, 3, side, side, device=bench.device) for count in _batches(bench)}
    runs = {
        f"networks alone, {precision}, batch {count}": _call(model.predictor.probabilities, images)
        for count, images in batches.items()
    }
    counts = dict(zip(runs, batches, strict=True))
    per_image = operations(_call(model.predictor.probabilities, batches[1]))
    roof = roof_of(bench.device, dry=bench.dry).flops / per_image
    for name, values in rates(runs, counts, bench, findings, rounds=ROUNDS, at_least_s=0.5).items():
        large = counts[name] == max(counts.values()) and precision == "bfloat16"
        target = NETWORK_TARGET if large else None
        findings.figures[name] = Figure(values, "images/s", at_least=target, roof=roof, anchor=ANCHOR)
    alone = _one_by_one(_call(model.predictor.probabilities, batches[1]), bench)
    findings.figures[f"networks alone, {precision}, one image"] = Figure(alone, "ms")


def _photographs(
    model: LoadedModel, precision: Precision, files: Sequence[bytes], bench: Bench, findings: Findings
) -> float:
    """Measure the predictor from prepared pixels and from files; return the best rate from files."""
    predictor = model.predictor
    prepared = [predictor.prepare(data) for data in files]
    pool = ThreadPoolExecutor(len(os.sched_getaffinity(0)))
    best = 0.0
    for count in _batches(bench):
        photographs = [prepared[number % len(prepared)] for number in range(count)]
        bodies = [files[number % len(files)] for number in range(4 * count)]
        runs = {
            f"predictor, {precision}, batch {count}": _call(predictor.grade_batch, photographs),
            f"files to answers, {precision}, batch {count}": _pipelined(predictor, pool, bodies, count),
        }
        images = dict(zip(runs, (count, len(bodies)), strict=True))
        for name, values in rates(runs, images, bench, findings, rounds=ROUNDS, at_least_s=0.5).items():
            findings.figures[name] = Figure(values, "photographs/s")
            if name.startswith("files"):
                best = max(best, statistics.median(values))
    alone = _one_by_one(_call(predictor.grade, files[0]), bench)
    findings.figures[f"file to answer, {precision}, alone"] = Figure(alone, "ms")
    pool.shutdown()
    return best


def _pipelined(
    predictor: Predictor, pool: ThreadPoolExecutor, bodies: Sequence[bytes], count: int
) -> Callable[[], Any]:
    """Return what grades files in batches while later ones are prepared on the pool."""

    def run() -> None:
        waiting = [pool.submit(predictor.prepare, body) for body in bodies]
        for start in range(0, len(waiting), count):
            predictor.grade_batch([each.result() for each in waiting[start : start + count]])

    return run


def _endpoint(folder: Path, files: Sequence[bytes], findings: Findings, *, in_process: float) -> None:
    """Measure an endpoint whose networks have the GPU, under load and with one client."""
    from benchmarks.http_load import Question
    from benchmarks.served_processes import ours

    model = {"num_cpus": 1, "num_gpus": 1, "precision": "bfloat16", "max_batch": MAX_BATCH}
    http = {"num_cpus": HTTP_CPUS, "in_flight": CLIENTS, "scaling": {"least": HTTP_REPLICAS, "most": HTTP_REPLICAS}}
    questions = [Question("/v1/grade", "image/jpeg", body) for body in files]
    with ours(folder, str(folder / "bundle"), questions, models={"grading": model}, http=http) as server:
        loaded = [server.measure(clients=CLIENTS, seconds=LOAD_S) for _ in range(ROUNDS)]
        alone = server.measure(clients=1, seconds=LOAD_S)
    speeds = [each.per_second for each in loaded]
    findings.figures["endpoint, bfloat16"] = Figure(speeds, "photographs/s", at_least=HTTP_SHARE * in_process)
    findings.figures["endpoint, p50"] = Figure([each.percentile(50) for each in loaded], "ms")
    findings.figures["endpoint, p99"] = Figure([each.percentile(99) for each in loaded], "ms")
    findings.figures["endpoint, alone, p50"] = Figure([alone.percentile(50)], "ms")
    failures = float(sum(each.failures for each in loaded))
    findings.figures["endpoint, requests that failed"] = Figure([failures], "requests", at_most=0.0)


def _call(function: Callable[[Any], Any], argument: Any) -> Callable[[], Any]:
    return lambda: function(argument)


def _batches(bench: Bench) -> Sequence[int]:
    return (1, 2) if bench.dry else BATCHES


def _one_by_one(run: Callable[[], Any], bench: Bench) -> list[float]:
    """Return the milliseconds of each of several calls."""
    return [1e3 * seconds(run, bench.device) for _ in range(2 if bench.dry else ALONE)]
