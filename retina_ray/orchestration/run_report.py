"""Gather from a run's folder, artifacts and data set what its report shows, and write the report."""

import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load as load_tensors

from retina_ray.config import RunConfig, to_yaml
from retina_ray.data.batch import denormalise
from retina_ray.data.loader import Loader, Samples
from retina_ray.data.order import Share
from retina_ray.data.schema import Task
from retina_ray.data.selection import Selection
from retina_ray.data.shards import ShardedDataset
from retina_ray.errors import DataError, RetinaRayError
from retina_ray.explain.gradcam import TaskLogits, grad_cam
from retina_ray.losses.sall import soft_label_statistics, synergic_labels
from retina_ray.methods import catalogue
from retina_ray.models.backbones import cam_layer
from retina_ray.orchestration.preparation import open_dataset
from retina_ray.orchestration.run_folder import RunFolder, summarise_test
from retina_ray.report.build import ReportData, write_report
from retina_ray.report.figures import CamPanel
from retina_ray.training.artifact import HISTORY, LOGITS, WEIGHTS, Artifact
from retina_ray.training.stage import select_rows

Counts = dict[str, dict[str, list[int]]]
"""Images per grade, by split and task."""

REPORT = "report.html"
IMAGES_PER_PAIR = 2
TABLE_TEMPERATURES = (1.0, 3.0)
"""Of Table V; the run's own is added."""


def report_run(folder: RunFolder) -> str:
    """Write a run's report.

    Returns:
        Where it lies: a path or an s3:// address.

    Raises:
        ConfigError: the run is not finished.
    """
    data = gather(folder)
    if folder.store.is_local:
        return str(write_report(data, folder.store.local_path / REPORT))
    with tempfile.TemporaryDirectory(prefix="retina-ray-report-") as scratch:
        folder.store.upload(write_report(data, Path(scratch) / REPORT), REPORT)
    return f"{folder.store.uri}/{REPORT}"


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
        cam_panels=panels,
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
) -> tuple[Counts, list[CamPanel], list[str]]:
    """Return what the data set tells: graded images, Grad-CAM panels, and notes on what had to be left out."""
    try:
        dataset = _dataset_of_run(config, fingerprint)
        selection = select_rows(config, dataset)
    except RetinaRayError as error:
        return {}, [], [f"Left out: the numbers of graded images and the cross-task Grad-CAM panels ({error})."]
    counts, notes = _count_grades(selection, dataset.tasks), []
    if any(fraction < 1.0 for fraction in config.method.ratio.values()):
        notes.append("Training images are counted before method.ratio, which thins them out for the final networks.")
    try:
        panels = _cross_task_panels(config, dataset, selection, trained)
    except RetinaRayError as error:
        panels = []
        notes.append(f"Left out: the cross-task Grad-CAM panels ({error}).")
    return counts, panels, notes


def _dataset_of_run(config: RunConfig, fingerprint: str) -> ShardedDataset:
    dataset = open_dataset(config)
    if dataset.manifest.fingerprint != fingerprint:
        raise DataError("the data set is not the one of the run any more", config.data.path, "restore it")
    return dataset


def _count_grades(selection: Selection, tasks: Sequence[Task]) -> Counts:
    """Return the images per visible grade of a run, by split and by each of its tasks."""
    num_grades = {task.name: task.num_grades for task in tasks}
    return {
        split: {
            task: [int(np.count_nonzero(grades[rows] == grade)) for grade in range(num_grades[task])]
            for task, grades in selection.grades.items()
        }
        for split, rows in selection.rows.items()
    }


def _soft_labels(config: RunConfig, artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Return the mean maximum and variance of the cross labels at several temperatures (SALL, Table V)."""
    rows = []
    for artifact in artifacts.values():
        if LOGITS not in artifact.files:
            continue
        for task, values in artifact.arrays(LOGITS).items():
            logits = torch.from_numpy(values)
            logits = logits[~logits.isnan().any(dim=1)]
            for temperature in sorted({*TABLE_TEMPERATURES, config.method.temperature}) if len(logits) else ():
                maximum, variance = soft_label_statistics(synergic_labels(logits, temperature))
                rows.append(
                    {
                        "task": task,
                        "temperature": temperature,
                        "mean_max": float(maximum),
                        "mean_variance": float(variance),
                    }
                )
    return rows


def _cross_task_panels(
    config: RunConfig, dataset: ShardedDataset, selection: Selection, trained: Mapping[str, Artifact]
) -> list[CamPanel]:
    """Return what single-task networks look at in the other tasks' images (SALL, Fig. 8)."""
    teachers = {name: artifact for name, artifact in trained.items() if len(artifact.settings["grades"]) == 1}
    panels = []
    for artifact in teachers.values():
        own = next(iter(artifact.settings["grades"]))
        for other in config.method.tasks:
            if other != own:
                panels += _panels(config, dataset, selection, artifact, own=own, other=other)
    return panels


def _panels(
    config: RunConfig, dataset: ShardedDataset, selection: Selection, artifact: Artifact, *, own: str, other: str
) -> list[CamPanel]:
    """Explain one task's network on the most severe test images of another task."""
    method = catalogue.build(config.method.name, artifact.settings)
    network = method.build_model(initial_weights=False)
    network.load_state_dict(load_tensors(artifact.read(WEIGHTS)))
    network.eval()
    rows = selection.graded("test", [other])
    severe = rows[selection.grades[other][rows].argsort(kind="stable")[::-1][:IMAGES_PER_PAIR]]
    loader = Loader(
        Samples(dataset, severe, selection.grades),
        share=Share(rank=0, world=1, global_batch=len(severe), accumulate=1),
        augmentation=None,
        image_size=config.data.image_size,
        backend="torch",
        device=torch.device("cpu"),
        seed=config.seed,
        num_threads=1,
        shuffle=False,
    )
    batch = next(iter(loader.epoch(0)))[0]
    loader.close()
    with torch.no_grad():  # not inference mode: Grad-CAM's backward pass keeps the result
        predicted = method.probabilities(network, batch.images)[own].argmax(dim=1)
    heat = grad_cam(TaskLogits(network, own), cam_layer(network.get_submodule("backbone")), batch.images, predicted)
    grades = {task.name: task.grades for task in dataset.tasks}
    pictures = denormalise(batch.images)
    return [
        CamPanel(
            image=pictures[index],
            heatmap=heat[index].numpy(),
            title=f"{other}: {grades[other][selection.grades[other][severe[index]]]}",
            caption=f"{own} network says {grades[own][predicted[index]]}",
        )
        for index in range(len(severe))
    ]
