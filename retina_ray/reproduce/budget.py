"""How large an experiment is run: as in the paper, or so small that every one takes seconds on two CPU cores."""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any, Literal

from retina_ray.config import RunConfig, override
from retina_ray.data.manifest import MANIFEST
from retina_ray.data.merge import Member, merge
from retina_ray.data.store import Store
from retina_ray.data.synthetic import write_synthetic
from retina_ray.errors import ConfigError
from retina_ray.recipes import load_recipe
from retina_ray.reproduce.experiment import Method
from retina_ray.reproduce.sources import NAME as LEAVE_ONE_OUT

Budget = Literal["paper", "debug"]

DEBUG_RESOLUTIONS = (32, 64, 96, 128)
"""Instead of eighths, quarters, halves and wholes: no network takes less than 32 px, nor a scale of 8 less than 128."""

_RECIPES: dict[tuple[Method, Budget], str] = {
    ("sall", "paper"): "sall",
    ("deepmt", "paper"): "deepmt_dr",
    ("sall", "debug"): "sall_debug",
    ("deepmt", "debug"): "deepmt_debug",
}

_SMALL: Mapping[Method, Mapping[str, Any]] = {
    "sall": {
        "data.image_size": 32,
        "train.epochs": 1,
        "train.global_batch_size": 8,
        "runtime.workers": 0,
        "runtime.cpus_per_worker": 1,
    },
    "deepmt": {
        "data.image_size": DEBUG_RESOLUTIONS[-1],
        "method.super_resolution.width": 4,
        "method.super_resolution.blocks": 1,
        "method.segmentation.width": 4,
        "method.segmentation.depth": 3,
        "method.segmentation.gamma": [0.2, 0.2, 1.0],
        "method.grading.hidden": 16,
        "method.stages.restoration.epochs": 1,
        "method.stages.grading.epochs": 1,
        "method.stages.joint.epochs": 1,
        "train.global_batch_size": 4,
        "runtime.workers": 0,
        "runtime.cpus_per_worker": 1,
    },
}


@dataclass(frozen=True)
class DrawnData:
    """A data set that a debug budget draws for itself.

    Attributes:
        tasks: that are graded.
        images_per_task: of each.
        size: side in pixels.
        seed: of the drawing.
    """

    tasks: tuple[str, ...]
    images_per_task: int
    size: int
    seed: int


_DRAWN: Mapping[Method, DrawnData] = {
    "sall": DrawnData(("dr", "amd", "arteriosclerosis"), images_per_task=48, size=32, seed=0),
    "deepmt": DrawnData(("dr",), images_per_task=20, size=DEBUG_RESOLUTIONS[-1], seed=0),
}

_LOW_RESOLUTION = DrawnData(("dr",), images_per_task=20, size=DEBUG_RESOLUTIONS[0], seed=1)


def base_of(method: Method | None, budget: Budget, recipe: str | None = None) -> RunConfig:
    """Return the configuration that an experiment's arms change.

    Args:
        method: the one that the experiment is about; None: that of the recipe, SALL if none is given.
        budget: how large.
        recipe: a named run to start from; None: the paper's.

    Raises:
        ConfigError: there is no such recipe, or it is of another method.
    """
    named = None if recipe is None else load_recipe(recipe)
    if named is not None and method not in (None, named.method.name):
        what = f"the experiment is about {method}, the recipe about {named.method.name}"
        raise ConfigError(what, f"--recipe {recipe}", "leave it out")
    method = named.method.name if named is not None else method or "sall"
    if budget == "debug":
        return override(load_recipe(_RECIPES[method, budget]), _SMALL[method])
    return named or load_recipe(_RECIPES[method, budget])


def resolutions(config: RunConfig, budget: Budget) -> tuple[int, int, int, int]:
    """Return the sides, in pixels, that stand for the paper's 128, 256, 512 and 1024."""
    if budget == "debug":
        return DEBUG_RESOLUTIONS
    whole = config.data.image_size
    return whole // 8, whole // 4, whole // 2, whole


def draw_data(name: str, method: Method, storage: str) -> dict[str, Any]:
    """Return the settings of the data set that a debug budget trains on; it is drawn if it is not there yet.

    Args:
        name: of the experiment.
        method: that is trained.
        storage: folder or s3:// prefix below which it lies.
    """
    return {"data.path": _draw_data(name, method, storage), "method.tasks": list(_DRAWN[method].tasks)}


def _draw_data(name: str, method: Method, storage: str) -> str:
    first = _DRAWN[method]
    if name != LEAVE_ONE_OUT:
        return _drawn(first, storage)
    merged = Store(storage).child(f"drawn-{method}-sources")
    if not merged.exists(MANIFEST):
        second = replace(first, seed=first.seed + 1)
        members = [Member(_drawn(each, storage), f"drawn-{each.seed}") for each in (first, second)]
        merge(members, merged.uri)
    return merged.uri


def draw_external(storage: str) -> str:
    """Return where the drawn photographs of low resolution lie, as DeepMT-DR's Table II wants them."""
    return _drawn(_LOW_RESOLUTION, storage)


def _drawn(data: DrawnData, storage: str) -> str:
    store = Store(storage).child(f"drawn-{len(data.tasks)}-tasks-{data.size}px-seed{data.seed}")
    if not store.exists(MANIFEST):
        write_synthetic(
            store.uri,
            tasks=data.tasks,
            images_per_task=data.images_per_task,
            image_size=data.size,
            seed=data.seed,
            encoding="raw",
        )
    return store.uri
