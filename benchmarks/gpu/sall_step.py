"""SALL's training from shards, by the product's own loop and clock: images per second, and waiting for data.

A stage of training runs as it does in a run without Ray: shards, DALI, step, validation, artifact. Rates are those of
whole epochs after the first, in which kernels are chosen and compiled. Each way trains twice, in turn.
"""

import shutil
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks.gpu import loading, networks
from benchmarks.gpu.part import Bench, Figure, Findings, installed
from benchmarks.gpu.roofline import operations, roof_of
from benchmarks.gpu.sall_compute import ANCHOR, GOAL, TARGET
from retina_ray.config import override
from retina_ray.data.manifest import Encoding
from retina_ray.data.schema import KNOWN_TASKS
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.store import Store
from retina_ray.methods import catalogue
from retina_ray.methods.base import Stage
from retina_ray.methods.sall import LABELS
from retina_ray.training.artifact import LOGITS, pack_arrays, write_artifact
from retina_ray.training.reporter import FolderReporter
from retina_ray.training.stage import StageJob, StageRun
from retina_ray.training.world import World

BATCH, EPOCHS, TURNS = 256, 4, 2
MOST_WAITING = 2.0
"""Per cent of a training that may go by waiting for data."""


def measure(bench: Bench, findings: Findings) -> None:
    """Train every way."""
    findings.facts |= {"goal": GOAL, "epochs": EPOCHS, "batch": BATCH, "images": loading.IMAGES}
    if not installed("nvidia.dali"):
        findings.left_out["DALI"] = "no nvidia.dali; trained with the torch loader"
    per_image = operations(networks.sall(bench).gradients(2)) / 2
    roof = roof_of(bench.device, dry=bench.dry).flops / per_image
    found: dict[str, list[dict[str, float]]] = {name: [] for name in _ways(bench)}
    for turn in range(1 if bench.dry else TURNS):
        for name, (encoding, changes) in _ways(bench).items():
            with findings.guarded(name):
                found[name] += _train(encoding, changes, bench, folder=bench.work / f"stage-{turn}")
                speeds = [epoch["images_per_second"] for epoch in found[name]]
                waits = [100 * epoch["data_wait_share"] for epoch in found[name]]
                findings.figures[name] = Figure(speeds, "images/s", at_least=TARGET, roof=roof, anchor=ANCHOR)
                findings.figures[f"{name}, waiting for data"] = Figure(waits, "%", at_most=MOST_WAITING)


def _ways(bench: Bench) -> dict[str, tuple[Encoding, networks.Changes]]:
    if bench.dry:
        return {"raw shards, eager": ("raw", networks.FAST)}
    return {
        "raw shards, eager": ("raw", networks.FAST),
        "raw shards, compiled": ("raw", networks.COMPILED),
        "JPEG shards, compiled": ("jpeg", networks.COMPILED),
    }


def _train(encoding: Encoding, changes: networks.Changes, bench: Bench, *, folder: Path) -> list[dict[str, float]]:
    """Train SALL's student once; return rate and waiting of each epoch but the first."""
    dataset, data = loading.dataset(bench, encoding)
    config = override(
        networks.sall(bench).config,
        {
            "data.path": str(data),
            "data.image_size": dataset.manifest.image_size,
            "train.global_batch_size": 8 if bench.dry else BATCH,
            "train.epochs": 2 if bench.dry else EPOCHS,
            "train.patience": None,
            "runtime.checkpoint.every_s": None,
            "runtime.loader": "auto" if installed("nvidia.dali") else "torch",
            **changes,
        },
    )
    shutil.rmtree(folder, ignore_errors=True)
    stages = {stage.name: stage for stage in catalogue.plan(config, KNOWN_TASKS).stages}
    job = StageJob(
        config=config.model_dump(mode="json"),
        stage=stages["student-dr-amd"],
        output=str(folder / "student"),
        inputs={LABELS: str(_cross_labels(folder / LABELS, stages[LABELS], dataset))},
        threads=loading.threads(),
    )
    records: list[dict[str, Any]] = []
    reporter = FolderReporter(folder / "checkpoints", listener=records.append)
    StageRun(job, world=World(device=bench.device), reporter=reporter).execute()
    return by_epoch([record for record in records if record["kind"] == "epoch"])


def _cross_labels(folder: Path, stage: Stage, dataset: ShardedDataset) -> Path:
    """Write made-up logits of teachers for the images that have no grade for their task."""
    random = np.random.default_rng(0)
    logits = {}
    for task in dataset.tasks:
        values = random.normal(size=(len(dataset), task.num_grades)).astype(np.float32)
        logits[task.name] = np.where(dataset.grades[task.name][:, None] < 0, values, np.float32(np.nan))
    write_artifact(Store(str(folder)), stage=stage, facts={}, files={LOGITS: pack_arrays(logits)})
    return folder


def by_epoch(records: Sequence[dict[str, Any]]) -> list[dict[str, float]]:
    """Return what each epoch but the first took, from the clock's summaries at their ends, which add up."""
    totals = [
        {"wait": record.get("data_wait_s", 0.0), "busy": record["compute_s"], "speed": record["images_per_second"]}
        for record in records
    ]
    images = [each["speed"] * (each["wait"] + each["busy"]) for each in totals]
    epochs = []
    for number in range(1, len(totals)):
        wait, busy = (totals[number][key] - totals[number - 1][key] for key in ("wait", "busy"))
        epochs.append(
            {
                "images_per_second": (images[number] - images[number - 1]) / (wait + busy),
                "data_wait_share": wait / (wait + busy),
            }
        )
    return epochs
