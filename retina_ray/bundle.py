"""A trained model as a folder: ``model.safetensors``, ``card.md`` and, written last, ``bundle.json``.

What training hands to serving. ``bundle.json`` names the SHA-256 of the other files, and nothing is read before it is
verified; nothing that is loaded can execute code. What is not here: the manifest's fields (``bundle_manifest``), the
figures in it (``bundle_statistics``) and the model registry (``registry``).
"""

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pyarrow as pa
import torch
from pydantic import ValidationError
from safetensors import SafetensorError
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor, nn

from retina_ray.bundle_manifest import (
    READABLE_VERSIONS,
    BundleManifest,
    CodeVersion,
    DataFacts,
    NetworkEntry,
    Preprocessing,
)
from retina_ray.bundle_statistics import calibrate, measure_test, measure_training_images, quality_limits, reference
from retina_ray.card import model_card
from retina_ray.config import RunConfig
from retina_ray.data.schema import Task
from retina_ray.data.selection import Selection
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.store import Store
from retina_ray.data.tested_images import fingerprint_test
from retina_ray.errors import BundleError, ConfigError, DataError
from retina_ray.methods import catalogue
from retina_ray.methods.base import Method
from retina_ray.metrics.table import select
from retina_ray.provenance import commit, package_version

if TYPE_CHECKING:  # at run time it would cost whoever serves a bundle seconds
    from retina_ray.metrics.summary import TaskSummary

MANIFEST = "bundle.json"
WEIGHTS = "model.safetensors"
CARD = "card.md"

_HASH_DIGITS = 12
_FETCH_AGAIN = "copy the bundle again, or make it again with `retina-ray train --resume`"


@dataclass(frozen=True)
class TrainedNetwork:
    """A final network.

    Attributes:
        settings: of its training stage, which `methods.catalogue.build` takes.
        weights: its state dict.
    """

    settings: dict[str, Any]
    weights: dict[str, Tensor]


class Bundle:
    """A verified bundle; open it with `Bundle.load`.

    Attributes:
        store: where it lies.
        manifest: what ``bundle.json`` says.
        hash: the first digits of the SHA-256 of ``bundle.json``, which vouches for the other files.
    """

    def __init__(self, store: Store, manifest: BundleManifest, manifest_bytes: bytes, weights: bytes) -> None:
        self.store = store
        self.manifest = manifest
        self.hash = hashlib.sha256(manifest_bytes).hexdigest()[:_HASH_DIGITS]
        self._weights = weights

    @classmethod
    def load(cls, path: str | Path) -> "Bundle":
        """Read and verify a bundle.

        Args:
            path: local folder or ``s3://`` prefix.

        Raises:
            BundleError: it is missing, damaged, or of another version.
        """
        store = Store(str(path))
        try:
            text = store.read_bytes(MANIFEST)
        except (FileNotFoundError, NotADirectoryError):
            fix = "give the folder that holds bundle.json, as `retina-ray train` printed it"
            raise BundleError("not a model bundle", store.uri, fix) from None
        manifest = _parse(text, store)
        files = {name: _verified(store, name, digest) for name, digest in manifest.files.items()}
        if WEIGHTS not in files:
            raise BundleError("the bundle names no weights", store.uri, _FETCH_AGAIN)
        return cls(store, manifest, text, files[WEIGHTS])

    def network_modules(self, device: torch.device | str) -> list[tuple[Method, nn.Module]]:
        """Return each network in evaluation mode on the device, with the method that reads it.

        Raises:
            BundleError: the weights do not fit the networks that the manifest describes.
        """
        try:
            tensors = load_tensors(self._weights)
            networks = [self._network(entry, tensors) for entry in self.manifest.networks]
        except (KeyError, TypeError, RuntimeError, SafetensorError) as error:
            what = f"the weights do not fit the networks ({' '.join(str(error).split())[:200]})"
            raise BundleError(what, self.store.uri, "load it with the release that made it") from error
        return [(method, network.to(device).eval()) for method, network in networks]

    def _network(self, entry: NetworkEntry, tensors: Mapping[str, Tensor]) -> tuple[Method, nn.Module]:
        method = catalogue.build(self.manifest.method, entry.settings)
        network = method.build_model(initial_weights=False)
        own = [name for name in tensors if name.startswith(entry.prefix)]
        network.load_state_dict({name.removeprefix(entry.prefix): tensors[name] for name in own})
        return method, network

    def copy_to(self, target: Store) -> "Bundle":
        """Copy the bundle to another folder or prefix, ``bundle.json`` last, and return it as it lies there."""
        for name in (*self.manifest.files, MANIFEST):
            target.write_bytes(name, self.store.read_bytes(name))
        return Bundle.load(target.uri)


def low_resolution_side(bundle: Bundle, pixels: int) -> int:
    """Return the side of the low-resolution images that a bundle's networks take.

    Args:
        bundle: the model.
        pixels: its high-resolution side.

    Raises:
        ConfigError: they take images of full resolution only.
    """
    methods = [catalogue.build(bundle.manifest.method, entry.settings) for entry in bundle.manifest.networks]
    side = min(method.input_side(pixels) for method in methods)
    if side == pixels:
        fix = "give a bundle of a method with super-resolution, or leave --low-resolution out"
        raise ConfigError("the model takes images of full resolution only", bundle.manifest.name, fix)
    return side


def build_bundle(
    folder: Path,
    *,
    name: str,
    config: RunConfig,
    tasks: Sequence[Task],
    networks: Sequence[TrainedNetwork],
    predictions: pa.Table,
    model: str,
    dataset: ShardedDataset,
    selection: Selection,
    training_rows: np.ndarray,
    summaries: "list[TaskSummary]",
) -> Bundle:
    """Compute what a bundle states and write it; the same bundle made again keeps its bytes and so its hash.

    Args:
        folder: where to; local, created.
        name: of the bundle.
        config: the resolved configuration.
        tasks: those that the networks grade.
        networks: the final ones, with the weights of their best epochs.
        predictions: prediction table with validation and test rows of the final model.
        model: its name there.
        dataset: the one it was trained on.
        selection: the rows and grades of it that the run saw.
        training_rows: (n,) rows that the networks were trained on.
        summaries: test metrics; those of other models are left out.

    Raises:
        DataError: the table lacks a task's rows or metrics, or no training image can be read.
    """
    names = [task.name for task in tasks]
    validation = {task: select(predictions, model=model, task=task, split="validation") for task in names}
    test = {task: select(predictions, model=model, task=task, split="test") for task in names}
    calibration = {
        task.name: calibrate(task, validation[task.name], coverage=config.evaluate.coverage) for task in tasks
    }
    measures = measure_training_images(dataset, training_rows, seed=config.seed)
    entries = tuple(NetworkEntry(settings=net.settings, prefix=f"{i}.") for i, net in enumerate(networks))
    tensors = {
        entry.prefix + key: tensor.detach().cpu().contiguous()
        for entry, net in zip(entries, networks, strict=True)
        for key, tensor in net.weights.items()
    }
    weights = save_tensors(tensors)
    manifest = BundleManifest(
        name=name,
        method=config.method.name,
        networks=entries,
        tasks=tuple(tasks),
        preprocessing=Preprocessing(
            version=dataset.manifest.preprocessing,
            stored_size=dataset.manifest.image_size,
            image_size=config.data.image_size,
        ),
        calibration=calibration,
        quality=quality_limits(measures),
        reference=reference(measures, validation, calibration),
        metrics={
            task.name: measure_test(
                _summary_of(summaries, model, task.name),
                test[task.name],
                calibration[task.name],
                fingerprint=fingerprint_test(dataset, selection, task),
            )
            for task in tasks
        },
        data=DataFacts(
            fingerprint=dataset.manifest.fingerprint,
            source=dataset.manifest.source,
            counts=dataset.manifest.counts,
            training_images=len(training_rows),
        ),
        # A tracking server's address may hold a password, and means nothing to whom the bundle is given.
        config=config.model_dump(mode="json", exclude={"tracking": {"uri"}}),
        code=CodeVersion(package=package_version("retina-ray"), commit=commit()),
        created=datetime.now(UTC).replace(microsecond=0),
        files={WEIGHTS: hashlib.sha256(weights).hexdigest()},
    )
    return _write(Store(str(folder)), manifest, weights)


def _summary_of(summaries: "Sequence[TaskSummary]", model: str, task: str) -> "TaskSummary":
    for summary in summaries:
        if (summary.model, summary.task) == (model, task):
            return summary
    raise DataError("no test metrics for", f"{model}, {task}", "summarise the test split first")


def _write(store: Store, manifest: BundleManifest, weights: bytes) -> Bundle:
    manifest = _with_time_of(_existing(store), manifest)
    card = model_card(manifest).encode()
    files = {WEIGHTS: weights, CARD: card}
    manifest = manifest.model_copy(update={"files": {**manifest.files, CARD: hashlib.sha256(card).hexdigest()}})
    for name, data in files.items():
        store.write_bytes(name, data)
    store.write_bytes(MANIFEST, (manifest.model_dump_json(indent=1) + "\n").encode())
    return Bundle.load(store.uri)


def _existing(store: Store) -> BundleManifest | None:
    try:
        return Bundle.load(store.uri).manifest
    except BundleError:
        return None


def _with_time_of(old: BundleManifest | None, new: BundleManifest) -> BundleManifest:
    """Give an unchanged bundle its old time, so that a run that is resumed does not register it twice."""
    if old is None or old.content() != new.content():
        return new
    return new.model_copy(update={"created": old.created})


def _parse(text: bytes, store: Store) -> BundleManifest:
    place = f"{store.uri}/{MANIFEST}"
    try:
        fields = json.loads(text)
        version = fields["version"]
        if version not in READABLE_VERSIONS:
            known = " and ".join(str(number) for number in READABLE_VERSIONS)
            fix = f"this release reads versions {known}: use the release that made it, or train again"
            raise BundleError(f"the bundle {store.uri} is of another version", version, fix)
        return BundleManifest.model_validate_json(text)
    except (ValueError, KeyError, TypeError) as error:
        reason = error.errors()[0]["msg"] if isinstance(error, ValidationError) else str(error)
        raise BundleError(f"{MANIFEST} is damaged ({reason})", place, _FETCH_AGAIN) from error


def _verified(store: Store, name: str, digest: str) -> bytes:
    """Return a file of the bundle, if it is the one that the manifest names."""
    try:
        data = store.read_bytes(name)
    except FileNotFoundError:
        raise BundleError(f"the bundle lacks {name}", store.uri, _FETCH_AGAIN) from None
    if hashlib.sha256(data).hexdigest() != digest:
        raise BundleError(f"{name} is damaged", f"{store.uri}/{name}", _FETCH_AGAIN)
    return data
