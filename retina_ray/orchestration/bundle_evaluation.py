"""Grade a whole data set with a bundle, for validation on images it was not trained with."""

import numpy as np
import pyarrow as pa
import torch

from retina_ray.bundle import Bundle, low_resolution_side
from retina_ray.config import from_mapping
from retina_ray.data.batch import Batch
from retina_ray.data.loader import Loader, Samples
from retina_ray.data.order import Share
from retina_ray.data.schema import NO_GRADE
from retina_ray.data.shards import ShardedDataset
from retina_ray.errors import DataError
from retina_ray.metrics.table import make_table, merge_shards
from retina_ray.orchestration.resources import local_cpus
from retina_ray.training.evaluate import run_over
from retina_ray.training.stage import loader_backend
from retina_ray.training.world import World


def predict_dataset(bundle: Bundle, data: str, *, split: str | None, low_resolution: bool = False) -> pa.Table:
    """Return the prediction table of a bundle over one split of a data set, or over all of it.

    The probabilities are the networks' own, before calibration, as in a run's table.

    Args:
        bundle: the model.
        data: folder or prefix of the data set.
        split: which of its images; None: all.
        low_resolution: its photographs are what a super-resolving network takes, and are not degraded first.

    Raises:
        ConfigError: the networks take no low-resolution images.
        DataError: the data set grades none of the bundle's tasks, or with other grades, or no image of the split.
    """
    pixels = bundle.manifest.preprocessing.image_size
    side = low_resolution_side(bundle, pixels) if low_resolution else pixels
    dataset = ShardedDataset.open(data)
    known = {task.name: task for task in dataset.tasks}
    tasks = [task for task in bundle.manifest.tasks if known.get(task.name) == task]
    if not tasks:
        asked = ", ".join(task.name for task in bundle.manifest.tasks)
        raise DataError("the data set grades none of the bundle's tasks", data, f"it needs one of {asked}, same grades")
    rows = np.arange(len(dataset.splits)) if split is None else np.flatnonzero(dataset.splits == split)
    if not any((dataset.grades[task.name][rows] != NO_GRADE).any() for task in tasks):
        where = "" if split is None else f" of the {split} split"
        raise DataError(f"no image{where} has a grade in", data, "choose another --split, or a graded data set")
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    world = World(device=device)
    loader = Loader(
        Samples(dataset, rows, dataset.grades),
        share=Share(rank=0, world=1, global_batch=_batch_size(bundle), accumulate=1),
        augmentation=None,
        image_size=side,
        backend=loader_backend("auto", device),
        device=device,
        seed=0,
        num_threads=local_cpus(),
        shuffle=False,
    )
    networks = bundle.network_modules(device)

    def probabilities(batch: Batch) -> dict[str, torch.Tensor]:
        found: dict[str, torch.Tensor] = {}
        for method, network in networks:
            inputs = batch.images if low_resolution else method.inputs(batch.images)
            found.update(method.probabilities(network, inputs))
        return found

    rows, values = run_over(loader, probabilities, world=world)
    loader.close()
    return merge_shards(
        [
            make_table(
                values[task.name],
                truth=dataset.grades[task.name][rows],
                image_ids=dataset.image_ids[rows],
                group_ids=dataset.group_ids[rows],
                sources=dataset.sources[rows],
                splits=dataset.splits[rows],
                model=bundle.manifest.name,
                task=task.name,
            )
            for task in tasks
        ]
    )


def _batch_size(bundle: Bundle) -> int:
    """Return how many images one worker of the bundle's run evaluated at a time, which its memory held."""
    config = from_mapping(bundle.manifest.config)
    return -(-config.train.global_batch_size // max(1, config.runtime.most_workers))
