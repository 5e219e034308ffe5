"""Small bundles for tests: a drawn data set, networks with random weights, made-up predictions."""

import hashlib
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import torch

from retina_ray.bundle import Bundle, TrainedNetwork, build_bundle
from retina_ray.config import RunConfig, override
from retina_ray.data.schema import KNOWN_TASKS, Task
from retina_ray.data.selection import select
from retina_ray.data.shards import Row, ShardedDataset, ShardWriter
from retina_ray.data.synthetic import draw
from retina_ray.methods import catalogue
from retina_ray.metrics.summary import TaskSummary, summarise
from retina_ray.metrics.table import make_table
from tests.deepmt import tiny

SIZE = 64
TASKS = (KNOWN_TASKS["dr"], KNOWN_TASKS["amd"])


@dataclass
class Made:
    """What a bundle is built from."""

    config: RunConfig
    dataset: ShardedDataset
    networks: list[TrainedNetwork]
    predictions: pa.Table
    summaries: list[TaskSummary]
    tasks: tuple[Task, ...] = TASKS

    def build(self, folder: Path, **changes: object) -> Bundle:
        arguments = {
            "name": "tiny",
            "config": self.config,
            "tasks": self.tasks,
            "networks": self.networks,
            "predictions": self.predictions,
            "model": "sall",
            "dataset": self.dataset,
            "selection": select(self.dataset, tasks=[task.name for task in self.tasks]),
            "training_rows": np.flatnonzero(self.dataset.splits == "train"),
            "summaries": self.summaries,
        }
        return build_bundle(folder, **{**arguments, **changes})


def write_dataset(folder: Path, *, size: int, num_images: int = 12) -> ShardedDataset:
    with ShardWriter(str(folder), tasks=TASKS, image_size=size, encoding="raw", source="drawn") as writer:
        for index in range(num_images):
            task = TASKS[index % 2].name
            sample = draw(size=size, task=task, grade=index % 4, seed=0, index=index)
            image = sample.image.tobytes()
            writer.add(
                Row(
                    image_id=f"i{index}",
                    group_id=f"g{index}",
                    source="drawn",
                    split=("train", "train", "validation", "test")[index // 2 % 4],
                    image=image,
                    width=size,
                    height=size,
                    sha256=hashlib.sha256(image).hexdigest(),
                    grades=dict(sample.grades),
                )
            )
    return ShardedDataset.open(str(folder))


def write_predictions(num_images: int = 60) -> pa.Table:
    """Over-confident predictions of two models, a third of them wrong."""
    rng = np.random.default_rng(0)
    tables = []
    for model in ("sall", "single_task"):
        for task in TASKS:
            for split in ("validation", "test"):
                truth = rng.integers(task.num_grades, size=num_images)
                shown = np.where(rng.random(num_images) < 1 / 3, rng.integers(task.num_grades, size=num_images), truth)
                logits = rng.normal(size=(num_images, task.num_grades)) + 6 * np.eye(task.num_grades)[shown]
                ids = [f"{split}{index}" for index in range(num_images)]
                tables.append(
                    make_table(
                        torch.from_numpy(logits).softmax(1).numpy(),
                        truth=truth,
                        image_ids=ids,
                        group_ids=ids,
                        sources=["drawn"] * num_images,
                        splits=[split] * num_images,
                        model=model,
                        task=task.name,
                    )
                )
    return pa.concat_tables(tables)


def worsened(table: pa.Table, images: int) -> pa.Table:
    """Return predictions of which the first right ones of each task's test images are wrong by one grade."""
    left = {"dr": images, "amd": images}
    rows = table.to_pylist()
    for row in rows:
        best = int(np.argmax(row["probabilities"]))
        if (row["model"], row["split"]) == ("sall", "test") and left[row["task"]] and best == row["truth"]:
            left[row["task"]] -= 1
            row["probabilities"] = np.roll(row["probabilities"], 1).tolist()
    return pa.Table.from_pylist(rows, schema=table.schema)


def train_nothing(config: RunConfig) -> list[TrainedNetwork]:
    """Return the final networks of a run, with random weights and the batch statistics of noise."""
    torch.manual_seed(0)  # some weights grade all photographs alike, which no endpoint serves
    plan = catalogue.plan(config, {task.name: task for task in TASKS})
    networks = []
    for stage in plan.stages:
        if stage.name in plan.finals:
            network = catalogue.build(config.method.name, stage.settings).build_model()
            # At their initial weights and statistics these networks grade all images alike.
            for head in network.heads.values():
                torch.nn.init.normal_(head.weight, std=1.0)
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = 1.0
            with torch.no_grad():
                network(torch.randn(8, 3, SIZE, SIZE))
            network.to(memory_format=torch.channels_last)
            networks.append(TrainedNetwork(stage.settings, network.state_dict()))
    return networks


def make_config(**changes: object) -> RunConfig:
    small = {
        "data.image_size": SIZE,
        "method.backbone": "mobilenet_v3_small",
        "method.weights": "none",
        "evaluate.bootstrap": 20,
        "tracking.uri": "http://user:secret@tracking.example",
    }
    return override(RunConfig(name="tiny"), {**small, **changes})


def make_deepmt(folder: Path, *, size: int = SIZE) -> Made:
    """Return what a bundle of DeepMT-DR with random weights is built from."""
    torch.manual_seed(0)
    tasks = TASKS[:1]
    config = tiny({"name": "tiny", "data.image_size": size, "evaluate.bootstrap": 20})
    plan = catalogue.plan(config, {task.name: task for task in tasks})
    networks = []
    for stage in plan.stages:
        if stage.name in plan.finals:
            method = catalogue.build(config.method.name, stage.settings)
            network = method.build_model(initial_weights=False)
            for module in network.modules():
                if isinstance(module, torch.nn.BatchNorm2d):
                    module.momentum = 1.0
                elif isinstance(module, torch.nn.Linear):
                    torch.nn.init.normal_(module.weight, std=0.3)
            with torch.no_grad():
                method.probabilities(network.train(), method.inputs(torch.randn(8, 3, size, size)))
            networks.append(TrainedNetwork(stage.settings, network.eval().state_dict()))
    predictions = write_predictions()
    predictions = predictions.filter(pc.equal(predictions["task"], "dr"))
    return Made(
        config=config,
        dataset=write_dataset(folder, size=size),
        networks=networks,
        predictions=predictions,
        summaries=summarise(predictions, split="test", resamples=20, seed=0),
        tasks=tasks,
    )


def make_everything(folder: Path, *, size: int = SIZE, **changes: object) -> Made:
    """Return what a bundle of random networks over a drawn data set is built from."""
    config = make_config(**changes)
    predictions = write_predictions()
    return Made(
        config=config,
        dataset=write_dataset(folder, size=size),
        networks=train_nothing(config),
        predictions=predictions,
        summaries=summarise(predictions, split="test", resamples=20, seed=0),
    )
