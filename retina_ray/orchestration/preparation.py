"""Find out whether a run is possible before anything is started or written."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from retina_ray.config import RunConfig, override, value_at
from retina_ray.config_method import WEIGHT_PATHS
from retina_ray.data.manifest import sha256_of
from retina_ray.data.node_cache import NodeCache
from retina_ray.data.selection import Selection, require_test_grades
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.store import Store
from retina_ray.errors import ConfigError, DataError
from retina_ray.methods import catalogue
from retina_ray.methods.base import Method, Plan
from retina_ray.orchestration.run_folder import RunFolder
from retina_ray.training.artifact import stage_keys
from retina_ray.training.stage import select_rows


@dataclass(frozen=True)
class PlannedRun:
    """What a configuration comes to, with nothing of it written or started.

    Attributes:
        config: the whole configuration, with absolute paths.
        dataset: what it trains on.
        selection: the rows and grades of it that the run sees.
        plan: its stages.
        initial_weights: SHA-256 of the weight files that each stage starts from, by stage name.
    """

    config: RunConfig
    dataset: ShardedDataset
    selection: Selection
    plan: Plan
    initial_weights: Mapping[str, list[str]]

    def keys(self, *, use_gpu: bool) -> dict[str, str]:
        """Return the address of each stage's artifact; see `stage_keys`."""
        fingerprint = self.dataset.manifest.fingerprint
        return stage_keys(self.plan, self.config, fingerprint, initial_weights=self.initial_weights, use_gpu=use_gpu)


@dataclass(frozen=True)
class PreparedRun(PlannedRun):
    """A planned run that has a name.

    Attributes:
        folder: where its results will lie.
        resumed: whether the folder holds an earlier part of the same run.
    """

    folder: RunFolder
    resumed: bool


def prepare(config: RunConfig, *, resume: bool, some_tasks: bool = False) -> PreparedRun:
    """Open what a run needs and refuse what cannot work.

    Args:
        config: the whole configuration.
        resume: whether a run of the same name may be continued.
        some_tasks: as `plan_run`.

    Raises:
        ConfigError: as `plan_run`, or the run exists.
        DataError: as `plan_run`.
    """
    planned = plan_run(config, some_tasks=some_tasks)
    folder, resumed = RunFolder.claim(planned.config, resume=resume)
    return PreparedRun(**vars(planned), folder=folder, resumed=resumed)


def plan_run(config: RunConfig, *, some_tasks: bool = False) -> PlannedRun:
    """Open what a configuration needs and refuse what cannot work.

    Args:
        config: the whole configuration.
        some_tasks: whether a source that is held out may grade only some of them; there is no bundle of such a run.

    Raises:
        ConfigError: a task, backbone, image size or weights file will not do.
        DataError: the data set cannot be read, a split has no graded image for a task, or a stage finds none to learn
            from.
    """
    config = with_absolute_paths(config)
    dataset = open_dataset(config)
    plan = catalogue.plan(config, {task.name: task for task in dataset.tasks})
    selection = select_rows(config, dataset)
    if not some_tasks:
        require_test_grades(dataset, selection, config.method.tasks, hold_out=config.data.hold_out)
    digest = cache(sha256_of)  # most stages start from the same file
    initial = {}
    for stage in plan.stages:
        if stage.kind == "train":
            method = catalogue.build(config.method.name, stage.settings)
            method.check_image_size(config.data.image_size)
            _check_resolution(method, config, dataset)
            method.training_rows(selection)
            method.validation_rows(selection)
            initial[stage.name] = [digest(file) for file in method.weight_files()]
    return PlannedRun(config, dataset, selection, plan, initial)


def _check_resolution(method: Method, config: RunConfig, dataset: ShardedDataset) -> None:
    """Refuse images that were enlarged as the truth of a method that compares pixels.

    Raises:
        DataError: the data set stores fewer pixels than the network is to restore.
    """
    asked, stored = config.data.image_size, dataset.manifest.image_size
    if method.compares_pixels and asked > stored:
        fix = "ingest or draw it with a larger --size, or lower data.image_size"
        raise DataError("the data set stores smaller images than are to be restored", f"{stored} px, not {asked}", fix)


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
    return ShardedDataset.open(config.data.path, cache=NodeCache.of(config.runtime))


def with_absolute_paths(config: RunConfig) -> RunConfig:
    """Return the configuration with its paths made absolute: Ray's workers run in folders of their own."""
    paths = {"runtime.storage": Store(config.runtime.storage).uri}
    if config.data.path:
        paths["data.path"] = Store(config.data.path).uri
    for key in WEIGHT_PATHS[config.method.name]:
        weights = value_at(config, key)
        if weights not in ("none", "imagenet"):
            paths[key] = str(Path(weights).expanduser().absolute())
    return override(config, paths)
