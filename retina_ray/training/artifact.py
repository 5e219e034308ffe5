"""The finished result of a stage: a folder addressed by what the result depends on.

``artifact.json`` is written last and names every other file with its SHA-256; a folder without it is unfinished.
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import load as load_numpy
from safetensors.numpy import save as save_numpy

from retina_ray.config import RunConfig
from retina_ray.data.store import Store
from retina_ray.errors import CheckpointError
from retina_ray.methods.base import Plan, Stage
from retina_ray.metrics.json_text import json_text, null_as_nan

ARTIFACT_VERSION = 3
"""Part of every key; raised when the same settings would give another result."""

ARTIFACT = "artifact.json"
WEIGHTS = "weights.safetensors"
LOGITS = "logits.safetensors"
PREDICTIONS = "predictions.parquet"
HISTORY = "history.json"


@dataclass(frozen=True)
class Artifact:
    """A finished stage.

    Attributes:
        store: where its files lie.
        stage: name the stage had in the run that made it.
        settings: of the stage.
        facts: what was measured while it was made: timings, numbers of images, steps, device.
        files: SHA-256 by file name.
    """

    store: Store
    stage: str
    settings: dict[str, Any]
    facts: dict[str, Any]
    files: dict[str, str]

    def read(self, name: str) -> bytes:
        """Return a file's bytes.

        Raises:
            CheckpointError: they do not match their hash.
        """
        data = self.store.read_bytes(name)
        if hashlib.sha256(data).hexdigest() != self.files.get(name):
            path = f"{self.store.uri}/{name}"
            raise CheckpointError("the artifact is damaged", path, "delete its folder and run again")
        return data

    def arrays(self, name: str) -> dict[str, np.ndarray]:
        """Return the arrays of a safetensors file."""
        return dict(load_numpy(self.read(name)))

    def predictions(self) -> pa.Table:
        """Return the prediction table."""
        return pq.read_table(pa.BufferReader(self.read(PREDICTIONS)))

    def history(self) -> list[dict[str, Any]]:
        """Return the record of each epoch, none where nothing was trained."""
        return list(null_as_nan(json.loads(self.read(HISTORY)))) if HISTORY in self.files else []


def write_artifact(store: Store, *, stage: Stage, facts: Mapping[str, Any], files: Mapping[str, bytes]) -> Artifact:
    """Write a stage's files, the manifest last."""
    for name, data in files.items():
        store.write_bytes(name, data)
    hashes = {name: hashlib.sha256(data).hexdigest() for name, data in files.items()}
    described = {"stage": stage.name, "settings": stage.settings, "facts": dict(facts), "files": hashes}
    store.write_bytes(ARTIFACT, json_text(described).encode())
    return Artifact(store, stage.name, stage.settings, dict(facts), hashes)


def read_artifact(store: Store) -> Artifact | None:
    """Return the artifact that lies there, or None where none is finished."""
    if not store.exists(ARTIFACT):
        return None
    described = json.loads(store.read_bytes(ARTIFACT))
    return Artifact(store, **{**described, "facts": null_as_nan(described["facts"])})


def pack_arrays(arrays: Mapping[str, np.ndarray]) -> bytes:
    """Return arrays as a safetensors file."""
    return bytes(save_numpy({name: np.ascontiguousarray(array) for name, array in arrays.items()}))


def pack_table(table: pa.Table) -> bytes:
    """Return a table as a Parquet file."""
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink)
    return bytes(sink.getvalue())


def stage_keys(
    plan: Plan,
    config: RunConfig,
    fingerprint: str,
    *,
    initial_weights: Mapping[str, Sequence[str]],
    use_gpu: bool,
) -> dict[str, str]:
    """Return the address of each stage's artifact: a hash of everything its result depends on.

    Args:
        plan: the stages, each after those it needs.
        config: sections that shape a result count, those that only say where and how to run do not. The number of
            workers counts, since it changes batch statistics and rounding.
        fingerprint: of the data set's content.
        initial_weights: SHA-256 of the weight files that each training stage starts from, by stage name.
        use_gpu: where it trains, which decides kernels and precision.
    """
    selection = config.data.model_dump(mode="json", exclude={"path"})
    shared = {
        "version": ARTIFACT_VERSION,
        "fingerprint": fingerprint,
        "seed": config.seed,
        "data": selection,
    }
    training = {
        "augment": config.augment.model_dump(mode="json"),
        "optim": config.optim.model_dump(mode="json"),
        "train": config.train.model_dump(mode="json"),
        "workers": max(1, workers) if isinstance(workers := config.runtime.workers, int) else workers,
        "loader": config.runtime.loader,
        "use_gpu": use_gpu,
    }
    keys: dict[str, str] = {}
    for stage in plan.stages:
        content = {
            **shared,
            **(training if stage.kind == "train" else {}),
            **({"overrides": stage.overrides} if stage.overrides else {}),
            "method": config.method.name,
            "kind": stage.kind,
            "settings": stage.settings,
            "initial_weights": list(initial_weights.get(stage.name, ())),
            "needs": [keys[name] for name in stage.needs],
        }
        digest = hashlib.sha256(json.dumps(content, sort_keys=True).encode()).hexdigest()
        keys[stage.name] = f"{stage.kind}-{digest[:20]}"
    return keys
