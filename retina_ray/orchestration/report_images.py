"""Images of a run's data set for its report, with the pixels that its networks see."""

import numpy as np
import torch

from retina_ray.config import RunConfig
from retina_ray.data.batch import Batch
from retina_ray.data.loader import Loader, Samples
from retina_ray.data.order import Share
from retina_ray.data.selection import Selection
from retina_ray.data.shards import ShardedDataset


def batch_of(config: RunConfig, dataset: ShardedDataset, selection: Selection, rows: np.ndarray) -> Batch:
    """Return rows (n,) of the data set as one batch on the CPU, with masks and without augmentation."""
    loader = Loader(
        Samples(dataset, rows, selection.grades),
        share=Share(rank=0, world=1, global_batch=len(rows), accumulate=1),
        augmentation=None,
        image_size=config.data.image_size,
        backend="torch",
        device=torch.device("cpu"),
        seed=config.seed,
        num_threads=1,
        with_masks=True,
        shuffle=False,
    )
    [[batch]] = loader.epoch(0)
    loader.close()
    return batch
