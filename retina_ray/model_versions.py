"""Bundles as versions of a registered model in MLflow: register, list, look up, fetch, move the champion.

The alias ``candidate`` names the newest version, ``champion`` the one to deploy: the first version gets it, and after
that only a person moves it. What is not here: recording a run (``registry``), the bundle itself (``bundle``) and which
version may become the champion (``promotion``).
"""

import os
import re
import tempfile
from collections.abc import Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

from retina_ray.bundle import MANIFEST, Bundle
from retina_ray.config import RunConfig
from retina_ray.data.store import Store
from retina_ray.errors import BundleError, PromotionError
from retina_ray.mlflow_access import connect, explained, is_server, tracking_uri

if TYPE_CHECKING:
    from mlflow import MlflowClient

CANDIDATE = "candidate"
CHAMPION = "champion"

HASH_TAG = "retina_ray.hash"
METHOD_TAG = "retina_ray.method"

_MODEL_ADDRESS = re.compile(r"models:/(?P<name>[^@/]+)[@/](?P<which>[^@/]+)")

_DEFAULTS = RunConfig(name="any")
"""For those who ask for a model without having a run: MLflow and the cache where they are by default."""


def registry_of(storage: str) -> RunConfig:
    """Return a configuration for those who ask for a model without having a run.

    Args:
        storage: folder or ``s3://`` prefix whose registry is meant, where no tracking server keeps it.
    """
    return _DEFAULTS.model_copy(update={"runtime": _DEFAULTS.runtime.model_copy(update={"storage": storage})})


@dataclass(frozen=True)
class RegisteredModel:
    """A version of a registered model.

    Attributes:
        name: of the registered model.
        version: from 1.
        aliases: names that point to it.
        source: where its bundle lies.
        run_id: MLflow run that made it.
        created: when it was registered.
        tags: bundle hash, method, test metrics and test fingerprints, by name.
    """

    name: str
    version: int
    aliases: tuple[str, ...]
    source: str
    run_id: str
    created: datetime
    tags: dict[str, str]


def register_version(client: "MlflowClient", bundle: Bundle, store: Store, *, config: RunConfig, run_id: str) -> int:
    """Register a bundle as the newest version of ``tracking.model_name``; the same bundle only once.

    Args:
        client: of MLflow.
        bundle: what is registered.
        store: where it lies for good. With a tracking server a local folder is uploaded to the run's artifacts, since
            the server's other users cannot read it.
        config: says which model, and where MLflow keeps its records.
        run_id: the MLflow run that made it.

    Returns:
        The version, from 1.
    """
    name = config.tracking.model_name
    _create_model(client, name)
    versions = client.search_model_versions(f"name = '{name}'")
    found = [int(version.version) for version in versions if version.tags.get(HASH_TAG) == bundle.hash]
    if found:
        number = found[0]
    else:
        source = _upload(client, store, bundle, run_id) if is_server(config) and store.is_local else store.uri
        number = int(client.create_model_version(name, source, run_id=run_id, tags=_tags(bundle)).version)
    if all(number >= int(version.version) for version in versions):
        client.set_registered_model_alias(name, CANDIDATE, str(number))
    if CHAMPION not in client.get_registered_model(name).aliases:
        client.set_registered_model_alias(name, CHAMPION, str(number))
    return number


def has_registry(config: RunConfig) -> bool:
    """Tell whether there is a registry to read; MLflow would create the file of one that is not there."""
    storage = Store(config.runtime.storage)
    is_default = not (config.tracking.uri or os.environ.get("MLFLOW_TRACKING_URI"))
    if is_default and storage.is_local and not storage.exists(".mlflow"):
        return False  # and `tracking_uri` would create that folder
    scheme, _, file = tracking_uri(config).partition(":///")
    return scheme != "sqlite" or Path(file.partition("?")[0]).exists()


def list_models(config: RunConfig) -> list[RegisteredModel]:
    """Return all versions of all registered models, by name and newest first; none where there is no registry.

    Raises:
        ResourceError: when MLflow cannot be reached.
    """
    if not has_registry(config):
        return []
    with explained(config):
        client = connect(config)
        return [version for name in _names(client) for version in _versions(client, name)]


def show_model(config: RunConfig, name: str, which: str) -> RegisteredModel:
    """Return one version of a registered model.

    Args:
        config: says where MLflow keeps its records.
        name: of the registered model.
        which: its number or alias.

    Raises:
        BundleError: there is no such version.
        ResourceError: when MLflow cannot be reached.
    """
    versions = _versions_of(config, name)
    if found := _pick(versions, which):
        return found
    known = ", ".join(str(name) for each in versions for name in (each.version, *each.aliases)) or "nothing"
    fix = f"`retina-ray models list` shows all; registered under this name: {known}"
    raise BundleError("no such version of a registered model", f"models:/{name}@{which}", fix)


def find_model(config: RunConfig, name: str, which: str) -> RegisteredModel | None:
    """Return one version of a registered model as `show_model` does, or None where there is no such version."""
    return _pick(_versions_of(config, name), which)


def move_champion(config: RunConfig, name: str, version: int, *, present: int | None) -> None:
    """Give a version the alias ``champion``; nothing else changes, and the former champion keeps its version.

    Args:
        config: says where MLflow keeps its records.
        name: of the registered model.
        version: the new champion, a version that exists.
        present: the champion that the decision rests on; None: there was none.

    Raises:
        PromotionError: it is no longer the champion. MLflow has no conditional update, so this is read right before.
        ResourceError: when MLflow cannot be reached.
    """
    with explained(config):
        client = connect(config)
        aliases = client.get_registered_model(name).aliases
        found = int(aliases[CHAMPION]) if CHAMPION in aliases else None
        if found != present:
            what, fix = f"the champion of {name} was moved meanwhile", "look at it, and repeat the command"
            raise PromotionError(what, f"{_version(found)}, which was {_version(present)}", fix)
        client.set_registered_model_alias(name, CHAMPION, str(version))


def resolve_model(address: str | Path, *, config: RunConfig = _DEFAULTS) -> Path:
    """Return the local folder of a bundle, fetched into ``runtime.cache`` if it lies elsewhere.

    Args:
        address: a bundle's folder or ``s3://`` prefix, or ``models:/<name>@<alias>`` or ``models:/<name>/<version>``.
        config: says where MLflow keeps its records and where the cache is.

    Raises:
        BundleError: there is no such version, or the bundle is missing or damaged.
        ResourceError: when MLflow cannot be reached.
    """
    text = str(address)
    if not text.startswith("models:"):
        return _local(Store(text), config)
    match = _MODEL_ADDRESS.fullmatch(text)
    if match is None:
        raise BundleError("not a model's address", text, "write models:/<name>@<alias> or models:/<name>/<version>")
    model = show_model(config, match["name"], match["which"])
    source = model.source.removeprefix("file://")
    return _local(Store(source), config) if source.startswith(("/", "s3://")) else _download(model, config)


def pinned(address: str, *, config: RunConfig = _DEFAULTS) -> str:
    """Return a model's address with the version's number in the place of an alias; other addresses as they are.

    Args:
        address: as for `resolve_model`.
        config: says where MLflow keeps its records.

    Raises:
        BundleError: there is no such version.
        ResourceError: when MLflow cannot be reached.
    """
    match = _MODEL_ADDRESS.fullmatch(address)
    if match is None:
        return address
    return f"models:/{match['name']}/{show_model(config, match['name'], match['which']).version}"


def version_of(address: str) -> int | None:
    """Return the version's number in a `pinned` address; None where it names none."""
    match = _MODEL_ADDRESS.fullmatch(address)
    return int(match["which"]) if match is not None and match["which"].isdecimal() else None


def registered_name(address: str) -> str | None:
    """Return the registered model's name in an address; None where it is that of a folder."""
    match = _MODEL_ADDRESS.fullmatch(address)
    return None if match is None else match["name"]


def _tags(bundle: Bundle) -> dict[str, str]:
    metrics = {
        f"test.{task}.{name}": f"{value:.4f}"
        for task, found in bundle.manifest.metrics.items()
        for name, value in found.metrics.items()
        if value is not None
    }
    fingerprints = {
        f"test.{task}.fingerprint": found.test_fingerprint
        for task, found in bundle.manifest.metrics.items()
        if found.test_fingerprint is not None
    }
    return {HASH_TAG: bundle.hash, METHOD_TAG: bundle.manifest.method, **metrics, **fingerprints}


def _upload(client: "MlflowClient", store: Store, bundle: Bundle, run_id: str) -> str:
    """Copy a bundle to the run's artifacts and return its address there."""
    client.log_artifacts(run_id, str(store.local_path), _artifact_path(bundle.hash))
    return f"{client.get_run(run_id).info.artifact_uri}/{_artifact_path(bundle.hash)}"


def _artifact_path(bundle_hash: str) -> str:
    return f"bundle-{bundle_hash}"


def _download(model: RegisteredModel, config: RunConfig) -> Path:
    """Return the cached copy of a bundle that only the tracking server reaches."""
    bundle_hash = model.tags.get(HASH_TAG)
    if bundle_hash is None:
        raise BundleError("this model version is no bundle", model.source, "register one with `retina-ray train`")
    folder = _cache(config) / bundle_hash
    if not (folder / MANIFEST).exists():
        with tempfile.TemporaryDirectory() as arriving, explained(config):
            path = connect(config).download_artifacts(model.run_id, _artifact_path(bundle_hash), arriving)
            Bundle.load(path).copy_to(Store(str(folder)))
    return folder


def _local(store: Store, config: RunConfig) -> Path:
    if store.is_local:
        return store.local_path
    bundle = Bundle.load(store.uri)
    return bundle.copy_to(Store(str(_cache(config) / bundle.hash))).store.local_path


def _cache(config: RunConfig) -> Path:
    return Path(config.runtime.cache).expanduser() / "bundles"


def _create_model(client: "MlflowClient", name: str) -> None:
    from mlflow.exceptions import MlflowException

    try:
        client.create_registered_model(name)
    except MlflowException as error:
        if error.error_code != "RESOURCE_ALREADY_EXISTS":
            raise


def _names(client: "MlflowClient") -> list[str]:
    """Return the names of all registered models, sorted, from however many pages."""
    page = client.search_registered_models()
    names = [model.name for model in page]
    while page.token:
        page = client.search_registered_models(page_token=page.token)
        names += [model.name for model in page]
    return sorted(names)


def _version(number: int | None) -> str:
    return "none" if number is None else f"version {number}"


def _versions_of(config: RunConfig, name: str) -> list[RegisteredModel]:
    with explained(config):
        return _versions(connect(config), name) if has_registry(config) else []


def _pick(versions: Sequence[RegisteredModel], which: str) -> RegisteredModel | None:
    """Return the version of that number or alias."""
    return next((each for each in versions if which == str(each.version) or which in each.aliases), None)


def _versions(client: "MlflowClient", name: str) -> list[RegisteredModel]:
    models = client.search_registered_models(f"name = '{name}'")
    if not models:
        return []
    aliases = models[0].aliases
    found = [
        RegisteredModel(
            name=name,
            version=int(version.version),
            aliases=tuple(sorted(alias for alias, number in aliases.items() if int(number) == int(version.version))),
            source=version.source or "",
            run_id=version.run_id or "",
            created=datetime.fromtimestamp(version.creation_timestamp / 1000, UTC),
            tags=dict(version.tags),
        )
        for version in client.search_model_versions(f"name = '{name}'")
    ]
    return sorted(found, key=lambda model: model.version, reverse=True)
