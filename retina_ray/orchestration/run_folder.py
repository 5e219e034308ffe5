"""The folder of a run: its configuration, provenance, predictions and everything made from them.

``<storage>/<run name>/``: ``config.yaml``, ``run.json`` (state, artifact addresses, data, environment),
``predictions.parquet``, ``metrics.json``, ``history.jsonl``, ``bundle/`` and ``report.html``.
"""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from retina_ray import yaml_dialect
from retina_ray.config import RunConfig, dotted_paths, from_mapping, to_yaml, value_at
from retina_ray.data.shards import DatasetManifest
from retina_ray.data.store import Store
from retina_ray.errors import ConfigError
from retina_ray.metrics.json_text import json_text
from retina_ray.metrics.summary import TaskSummary, as_record, summarise
from retina_ray.provenance import environment
from retina_ray.training.artifact import Artifact, pack_table, read_artifact

RUN = "run.json"
CONFIG = "config.yaml"
PREDICTIONS = "predictions.parquet"
METRICS = "metrics.json"
HISTORY = "history.jsonl"
BUNDLE = "bundle"

SHAPING = ("seed", "data", "augment", "method", "optim", "train")
"""Sections of the configuration that decide what a run's result is."""

_TOLD = 4
"""Differences that an error names."""


@dataclass(frozen=True)
class RunFolder:
    """A run on storage.

    Attributes:
        store: its folder.
    """

    store: Store

    @classmethod
    def claim(cls, config: RunConfig, *, resume: bool) -> tuple["RunFolder", bool]:
        """Return the folder of a run that may begin there or go on there, and whether it goes on; writes nothing.

        Raises:
            ConfigError: the run exists and is not to be resumed, or it was another configuration.
        """
        folder = cls(Store(config.runtime.storage).child(config.name))
        exists = folder.store.exists(RUN)
        if exists and not resume:
            raise ConfigError(
                "the run exists", folder.store.uri, "add --resume to continue it, or choose another --name"
            )
        if exists:
            folder._check_same(config)
        return folder, exists

    def begin(self, config: RunConfig, manifest: DatasetManifest, keys: Mapping[str, str]) -> None:
        """Write what the run is.

        Args:
            config: its configuration.
            manifest: of its data set.
            keys: address of each stage's artifact.

        Raises:
            ConfigError: the run was begun with other addresses, so that resuming would start from nothing.
        """
        before = self.describe()["artifacts"] if self.store.exists(RUN) else dict(keys)
        if before != dict(keys):
            changed = ", ".join(name for name in keys if before.get(name) != keys[name])
            fix = "resume with the same data, weights, number of workers, loader and device, or choose another --name"
            raise ConfigError("the run to resume was begun under other conditions, which concern", changed, fix)
        self.store.write_bytes(CONFIG, to_yaml(config).encode())
        self.update(
            name=config.name,
            finished=False,
            artifacts=dict(keys),
            fingerprint=manifest.fingerprint,
            counts=manifest.counts,
            environment=environment(),
            started=datetime.now(UTC).isoformat(timespec="seconds"),
        )

    @classmethod
    def open(cls, path: str) -> "RunFolder":
        """Open an existing run.

        Raises:
            ConfigError: there is no run.
        """
        folder = cls(Store(path))
        if not folder.store.exists(RUN):
            raise ConfigError("not a run", path, "give the folder that `retina-ray train` printed")
        return folder

    def update(self, **facts: Any) -> None:
        """Add facts to ``run.json``."""
        known = self.describe() if self.store.exists(RUN) else {}
        self.store.write_bytes(RUN, json_text({**known, **facts}).encode())

    def describe(self) -> dict[str, Any]:
        """Return ``run.json``."""
        return dict(json.loads(self.store.read_bytes(RUN)))

    def config(self) -> RunConfig:
        """Return the resolved configuration."""
        return from_mapping(yaml_dialect.load(self.store.read_bytes(CONFIG).decode()))

    def artifacts(self) -> dict[str, Artifact]:
        """Return the finished artifacts of the run's stages, by stage name."""
        root = Store(self.config().runtime.storage).child("artifacts")
        found = {stage: read_artifact(root.child(key)) for stage, key in self.describe()["artifacts"].items()}
        return {stage: artifact for stage, artifact in found.items() if artifact is not None}

    def write_history(self, histories: Mapping[str, Sequence[Mapping[str, Any]]]) -> None:
        """Write the epoch records of every stage, a line of JSON each."""
        records = [{"stage": name, **record} for name, history in histories.items() for record in history]
        self.store.write_bytes(HISTORY, "".join(f"{json_text(each, indent=None)}\n" for each in records).encode())

    def write_predictions(self, table: pa.Table) -> None:
        """Write the prediction table of baselines and final networks."""
        self.store.write_bytes(PREDICTIONS, pack_table(table))

    def predictions(self) -> pa.Table:
        """Return the prediction table.

        Raises:
            ConfigError: the run has none yet.
        """
        if not self.store.exists(PREDICTIONS):
            raise ConfigError("the run is not finished", self.store.uri, "continue it with `retina-ray train --resume`")
        return pq.read_table(pa.BufferReader(self.store.read_bytes(PREDICTIONS)))

    def write_metrics(self, summaries: list[TaskSummary]) -> None:
        """Write what every model reaches on the test split."""
        self.store.write_bytes(METRICS, json_text([as_record(each) for each in summaries]).encode())

    def _check_same(self, config: RunConfig) -> None:
        if changed := shaping_changes(self.config(), config):
            fix = "give the same recipe, --config and --set as before, or choose another --name"
            raise ConfigError("the run to resume had other settings", changed, fix)


def shaping_changes(before: RunConfig, after: RunConfig) -> str:
    """Return the first settings in `SHAPING` that differ, ``train.epochs: 3, now 4``; empty if none does."""
    shaping = [path for path in dict.fromkeys([*dotted_paths(before), *dotted_paths(after)]) if _shapes(path)]
    pairs = [(path, value_at(before, path), value_at(after, path)) for path in shaping]
    changes = [f"{path}: {old}, now {new}" for path, old, new in pairs if old != new]
    return "; ".join([*changes[:_TOLD], *([f"and {len(changes) - _TOLD} more"] if len(changes) > _TOLD else [])])


def _shapes(path: str) -> bool:
    return path.partition(".")[0] in SHAPING


def summarise_test(predictions: pa.Table, config: RunConfig) -> list[TaskSummary]:
    """Return what every model of a run reaches on the test split, measured as the run's configuration says."""
    return summarise(
        predictions,
        split="test",
        resamples=config.evaluate.bootstrap,
        level=config.evaluate.level,
        bins=config.evaluate.bins,
        seed=config.seed,
    )
