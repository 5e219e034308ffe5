"""One training run from its configuration to a registered bundle; a search calls the same function for each trial."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa

from retina_ray.config import RunConfig
from retina_ray.data.shards import ShardedDataset
from retina_ray.errors import ConfigError
from retina_ray.methods import catalogue
from retina_ray.methods.base import Plan
from retina_ray.metrics.summary import TaskSummary, summarise
from retina_ray.metrics.table import merge_shards
from retina_ray.orchestration.ray_settings import connected
from retina_ray.orchestration.run_folder import RunFolder
from retina_ray.orchestration.stages import StageRunner
from retina_ray.training.artifact import Artifact, stage_keys

Record = dict[str, Any]


@dataclass(frozen=True)
class RunResult:
    """A finished run.

    Attributes:
        folder: the run on storage.
        model: name of the final networks in the prediction table.
        summaries: of every model and task on the test split.
        artifacts: of every stage.
    """

    folder: RunFolder
    model: str
    summaries: list[TaskSummary]
    artifacts: dict[str, Artifact]


def train_driver(
    config: RunConfig, *, resume: bool = False, listener: Callable[[Record], None] = lambda record: None
) -> RunResult:
    """Train a run's stages, reusing what is finished, and write its predictions and metrics.

    Args:
        config: the whole configuration.
        resume: continue a run of the same name; without it an existing one is refused.
        listener: receives progress records, each with ``stage`` and ``kind``.

    Raises:
        RetinaRayError: the data set, the configuration or the cluster will not do, or a loss was not finite.
    """
    dataset = open_dataset(config)
    plan = catalogue.plan(config, {task.name: task for task in dataset.tasks})
    keys = stage_keys(plan, config, dataset.manifest.fingerprint)
    folder = RunFolder.create(config, dataset.manifest, keys, resume=resume)
    with connected(config.runtime) if config.runtime.workers else nullcontext():
        artifacts = StageRunner(config, plan, keys, listener).run()
    predictions = collect_predictions(plan, artifacts)
    folder.write_predictions(predictions)
    summaries = summarise(
        predictions,
        split="test",
        resamples=config.evaluate.bootstrap,
        level=config.evaluate.level,
        bins=config.evaluate.bins,
        seed=config.seed,
    )
    folder.write_metrics(summaries)
    folder.update(stages={name: artifact.facts for name, artifact in artifacts.items()})
    model = next(stage.model for stage in plan.stages if stage.name in plan.finals)
    return RunResult(folder, model, summaries, artifacts)


def open_dataset(config: RunConfig) -> ShardedDataset:
    """Return the configured data set.

    Raises:
        ConfigError: none is configured.
        DataError: it cannot be read.
    """
    if not config.data.path:
        raise ConfigError(
            "no data set given", "data.path", "add --data FOLDER, or make one with `retina-ray data synth`"
        )
    return ShardedDataset.open(config.data.path, cache_dir=Path(config.runtime.cache).expanduser())


def collect_predictions(plan: Plan, artifacts: dict[str, Artifact]) -> pa.Table:
    """Return the predictions of the baselines and of the final networks as one table."""
    names = dict.fromkeys((*plan.baselines, *plan.finals))
    models = {stage.name: stage.model for stage in plan.stages}
    tables = []
    for name in names:
        table = artifacts[name].predictions()
        # A shared artifact bears the name that its network had in the run that made it.
        model = pa.array(np.full(len(table), models[name]))
        tables.append(table.set_column(table.column_names.index("model"), "model", model))
    return merge_shards(tables)
