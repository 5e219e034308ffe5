"""Gather from a run's folder, artifacts and data set what its report shows, and write the report."""

from collections.abc import Mapping, Sequence
from functools import partial
from typing import Any

import numpy as np

from retina_ray.config import RunConfig, to_yaml
from retina_ray.config_method import SallConfig
from retina_ray.data.schema import Task
from retina_ray.data.selection import Selection
from retina_ray.data.shards import ShardedDataset
from retina_ray.errors import DataError, RetinaRayError
from retina_ray.methods.base import TEST
from retina_ray.orchestration import report_deepmt, report_sall
from retina_ray.orchestration.preparation import open_dataset
from retina_ray.orchestration.report_file import place_report
from retina_ray.orchestration.run_folder import RunFolder, summarise_test
from retina_ray.report.build import ReportData, write_report
from retina_ray.training.artifact import HISTORY, Artifact
from retina_ray.training.stage import select_rows

Counts = dict[str, dict[str, list[int]]]
"""Images per grade, by split and task."""


def report_run(folder: RunFolder) -> str:
    """Write a run's report.

    Returns:
        Where it lies: a path or an s3:// address.

    Raises:
        ConfigError: the run is not finished.
    """
    data = gather(folder)
    return place_report(folder.store, partial(write_report, data))


def gather(folder: RunFolder) -> ReportData:
    """Return everything a run's report shows; what cannot be had of its images is left out, with a note why."""
    config, described, artifacts = folder.config(), folder.describe(), folder.artifacts()
    predictions = folder.predictions()
    trained = {name: artifact for name, artifact in artifacts.items() if HISTORY in artifact.files}
    counts, panels, notes = _from_images(config, described["fingerprint"], trained)
    return ReportData(
        title=config.name,
        config_yaml=to_yaml(config),
        summaries=summarise_test(predictions, config),
        predictions=predictions,
        histories={name: artifact.history() for name, artifact in trained.items()},
        timings={name: artifact.facts["timing"] for name, artifact in trained.items()},
        stage_tests={} if isinstance(config.method, SallConfig) else artifacts[TEST].facts["figures"],
        **panels,
        soft_labels=_soft_labels(config, artifacts),
        data_counts=counts,
        environment=described["environment"],
        notes=notes,
        level=config.evaluate.level,
        resamples=config.evaluate.bootstrap,
        bins=config.evaluate.bins,
        seed=config.seed,
    )


def _from_images(
    config: RunConfig, fingerprint: str, trained: Mapping[str, Artifact]
) -> tuple[Counts, dict[str, Any], list[str]]:
    """Return what the data set tells: graded images, the report's panels by field, and notes on what is left out."""
    try:
        dataset = _dataset_of_run(config, fingerprint)
        selection = select_rows(config, dataset)
    except RetinaRayError as error:
        return {}, {}, [f"Left out: the numbers of graded images and the panels of test images ({error})."]
    counts = count_grades(selection, dataset.tasks)
    sall = isinstance(config.method, SallConfig)
    notes = report_sall.notes(config.method) if isinstance(config.method, SallConfig) else []
    try:
        if sall:
            return counts, {"cam_panels": report_sall.cross_task_panels(config, dataset, selection, trained)}, notes
        return counts, {"lesion_panels": report_deepmt.panels(config, dataset, selection, trained)}, notes
    except RetinaRayError as error:
        return counts, {}, [*notes, f"Left out: the panels of test images ({error})."]


def _soft_labels(config: RunConfig, artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    return report_sall.soft_labels(config.method, artifacts) if isinstance(config.method, SallConfig) else []


def _dataset_of_run(config: RunConfig, fingerprint: str) -> ShardedDataset:
    dataset = open_dataset(config)
    if dataset.manifest.fingerprint != fingerprint:
        raise DataError("the data set is not the one of the run any more", config.data.path, "restore it")
    return dataset


def count_grades(selection: Selection, tasks: Sequence[Task]) -> Counts:
    """Return the images per visible grade of a run, by split and by each of its tasks."""
    num_grades = {task.name: task.num_grades for task in tasks}
    return {
        split: {
            task: [int(np.count_nonzero(grades[rows] == grade)) for grade in range(num_grades[task])]
            for task, grades in selection.grades.items()
        }
        for split, rows in selection.rows.items()
    }
