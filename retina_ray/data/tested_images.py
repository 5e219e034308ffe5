"""What tells whether two models were measured on the same test images with the same grades."""

import hashlib

from retina_ray.data.schema import Task
from retina_ray.data.selection import Selection
from retina_ray.data.shards import ShardedDataset


def fingerprint_test(dataset: ShardedDataset, selection: Selection, task: Task) -> str:
    """Return the SHA-256 (hexadecimal) of what a task's figures on the test split rest on.

    That is the task with the names of its grades, and each test image that is graded for it: the SHA-256 of its source
    file, and its grade. Images' names, their order, their stored form, all other images and all other tasks play no
    part. An image that was damaged after it was stored counts, though it cannot be measured.

    Args:
        dataset: an open data set.
        selection: says which of its rows are the run's test images, and how they are graded.
        task: one that the run learns.
    """
    rows = selection.graded("test", [task.name])
    grades = selection.grades[task.name][rows].tolist()
    images = sorted(f"{digest} {grade}" for digest, grade in zip(dataset.source_sha256(rows), grades, strict=True))
    return hashlib.sha256("\n".join([task.model_dump_json(), *images]).encode()).hexdigest()
