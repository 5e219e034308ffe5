"""Turn a finished run into a bundle, and the bundle into a version of a registered model."""

import tempfile
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.compute as pc
from safetensors.torch import load as load_tensors

from retina_ray.bundle import Bundle, TrainedNetwork, build_bundle
from retina_ray.config import RunConfig
from retina_ray.methods import catalogue
from retina_ray.orchestration.preparation import PreparedRun, prepare
from retina_ray.orchestration.run_folder import BUNDLE
from retina_ray.orchestration.train_driver import RunResult, execute
from retina_ray.registry import Tracker
from retina_ray.training.artifact import WEIGHTS


@dataclass(frozen=True)
class Published:
    """A finished run with its bundle.

    Attributes:
        result: the run.
        bundle_uri: folder or prefix of the bundle.
        version: of the registered model; None where tracking is disabled.
    """

    result: RunResult
    bundle_uri: str
    version: int | None


def train_and_publish(
    config: RunConfig,
    *,
    resume: bool = False,
    listener: Callable[[dict[str, Any]], None] = lambda record: None,
    parent: str = "",
) -> Published:
    """Train a run, log it to MLflow, write its bundle and register it.

    Args:
        config: the whole configuration.
        resume: continue a run of the same name.
        listener: receives progress records.
        parent: id of the MLflow run that this one is nested in.

    Raises:
        RetinaRayError: as `train_driver`.
    """
    run = prepare(config, resume=resume)
    with Tracker(run.config, run_name=config.name, resume=run.resumed, parent=parent) as tracker:
        tracker.log_params(run.config)

        def log(record: dict[str, Any]) -> None:
            listener(record)
            if record["kind"] in ("step", "epoch"):
                tracker.log_record(record, record["stage"])

        result = execute(run, log)
        tracker.log_summary(result.summaries)
        bundle = make_bundle(run, result)
        version = tracker.register(bundle, bundle.store.uri)
    result.folder.update(finished=True, bundle=bundle.store.uri, model_version=version)
    return Published(result, bundle.store.uri, version)


def make_bundle(run: PreparedRun, result: RunResult) -> Bundle:
    """Write the bundle of a run into its folder.

    It holds the final networks with the weights of the epoch best on validation; calibration and reference statistics
    come from validation and training images, metrics from the test split.
    """
    config, dataset = run.config, run.dataset
    finals = [result.artifacts[name] for name in run.plan.finals]
    rows = [catalogue.build(config.method.name, final.settings).training_rows(run.selection) for final in finals]
    target = result.folder.store.child(BUNDLE)
    with tempfile.TemporaryDirectory(prefix="retina-ray-bundle-") as scratch:
        bundle = build_bundle(
            target.local_path if target.is_local else Path(scratch),
            name=config.name,
            config=config,
            tasks=[task for task in dataset.tasks if task.name in config.method.tasks],
            networks=[TrainedNetwork(final.settings, load_tensors(final.read(WEIGHTS))) for final in finals],
            predictions=result.folder.predictions().filter(pc.field("model") == result.model),
            model=result.model,
            dataset=dataset,
            selection=run.selection,
            training_rows=np.unique(np.concatenate(rows)),
            summaries=[summary for summary in result.summaries if summary.model == result.model],
        )
        return bundle if target.is_local else bundle.copy_to(target)
