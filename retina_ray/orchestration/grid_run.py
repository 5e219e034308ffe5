"""One run of a grid: its training, its grades of an external data set, and what both left behind."""

from collections.abc import Callable
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from retina_ray.bundle import Bundle
from retina_ray.config import RunConfig
from retina_ray.config_method import SallConfig
from retina_ray.data.shards import ShardedDataset
from retina_ray.errors import ConfigError
from retina_ray.methods.base import TEST, Stage
from retina_ray.methods.sall import LABELS
from retina_ray.metrics.table import as_model, as_screening
from retina_ray.orchestration import report_sall
from retina_ray.orchestration.bundle_evaluation import predict_dataset
from retina_ray.orchestration.preparation import PreparedRun, prepare
from retina_ray.orchestration.publish import make_bundle
from retina_ray.orchestration.run_folder import RunFolder
from retina_ray.orchestration.train_driver import execute, stage_runner
from retina_ray.reproduce.measure import Outcome
from retina_ray.training.artifact import pack_table

Record = dict[str, Any]
Listener = Callable[[Record], None]

EXTERNAL = "external.parquet"
"""Predictions of the external data set, beside those of the run's own test images."""


def run_arm(config: RunConfig, *, until: str, external: str, listener: Listener, trial: str = "") -> None:
    """Train one run of a grid; what is finished of it is taken over.

    Args:
        config: of the run.
        until: name of the last stage to train; empty: all, with the test.
        external: low-resolution data set that its networks grade as well; empty: none.
        listener: receives progress records.
        trial: what log lines and metrics call it.

    Raises:
        RetinaRayError: as `train_driver`.
    """
    run = prepare(config, resume=True, some_tasks=True)
    if until:
        _train_until(run, until, listener, trial)
    else:
        result = execute(run, listener, slots=1 if trial else None, trial=trial)
        if external:
            bundle = make_bundle(run, result)
            _grade_external(run.folder, bundle, external, model=result.model)
    run.folder.update(measured=True, external=fingerprint_of(external) if external else "")


def is_measured(folder: RunFolder, *, data: str, external: str) -> bool:
    """Return whether `run_arm` has come to its end there.

    Args:
        folder: of the run.
        data: fingerprint of the data set as it is now.
        external: of the external data set; empty for none. A run that graded another one has not come to its end.

    Raises:
        ConfigError: the run was made from other images.
    """
    facts = folder.describe()
    if facts["fingerprint"] != data:
        fix = "put the former data set back, or choose another --name"
        raise ConfigError("the data set has changed since this run", folder.store.uri, fix)
    return bool(facts.get("measured")) and facts.get("external", "") == external


def fingerprint_of(data: str) -> str:
    """Return what tells a data set from any other of the same address.

    Raises:
        DataError: it cannot be read.
    """
    return ShardedDataset.open(data).manifest.fingerprint


def outcome_of(folder: RunFolder) -> Outcome:
    """Return what a finished run left behind."""
    facts, config, artifacts = folder.describe(), folder.config(), folder.artifacts()
    external = folder.store.exists(EXTERNAL)
    figures = dict(artifacts[TEST].facts["figures"]) if TEST in artifacts else {}
    if isinstance(config.method, SallConfig):
        figures |= _label_figures(config.method, artifacts)
    return Outcome(
        predictions=folder.predictions() if TEST in artifacts else None,
        model=facts.get("model", ""),
        figures=figures,
        external=pq.read_table(pa.BufferReader(folder.store.read_bytes(EXTERNAL))) if external else None,
    )


def _train_until(run: PreparedRun, until: str, listener: Listener, trial: str) -> None:
    stages = {stage.name: stage for stage in run.plan.stages}
    wanted = [stage for stage in run.plan.stages if stage.name in _needed(stages, until)]
    with stage_runner(run, listener, slots=1 if trial else None, trial=trial) as runner:
        keys = {stage.name: runner.keys[stage.name] for stage in wanted}
        run.folder.begin(run.config, run.dataset.manifest, keys)
        artifacts = runner.run(wanted)
    run.folder.update(stages={name: artifact.facts for name, artifact in artifacts.items()})


def _needed(stages: dict[str, Stage], name: str) -> set[str]:
    """Return a stage and all that it needs."""
    return {name}.union(*(_needed(stages, need) for need in stages[name].needs))


def _grade_external(folder: RunFolder, bundle: Bundle, data: str, *, model: str) -> None:
    """Write the networks' grades of all images of a data set, none of which they have seen: disease or none."""
    table = as_screening(predict_dataset(bundle, data, split=None, low_resolution=True))
    split = table.column_names.index("split")
    table = table.set_column(split, table.field(split), pa.array(["test"] * len(table)))
    folder.store.write_bytes(EXTERNAL, pack_table(as_model(table, model)))


def _label_figures(method: SallConfig, artifacts: Any) -> dict[str, dict[str, float]]:
    """Return the mean maximum and variance of the cross labels at the run's temperature, averaged over the tasks."""
    records = [
        record for record in report_sall.soft_labels(method, artifacts) if record["temperature"] == method.temperature
    ]
    if not records:
        return {}
    names = ("mean_max", "mean_variance")
    return {LABELS: {name: float(np.mean([record[name] for record in records])) for name in names}}
