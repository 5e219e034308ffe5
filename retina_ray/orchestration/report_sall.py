"""What the report of a SALL run shows beyond any method's: soft labels and cross-task Grad-CAM (Table V, Fig. 8)."""

from collections.abc import Mapping
from typing import Any

import torch
from safetensors.torch import load as load_tensors

from retina_ray.config import RunConfig
from retina_ray.config_method import SallConfig
from retina_ray.data.batch import denormalise
from retina_ray.data.selection import Selection
from retina_ray.data.shards import ShardedDataset
from retina_ray.explain.gradcam import TaskLogits, grad_cam
from retina_ray.losses.sall import soft_label_statistics, synergic_labels
from retina_ray.methods import catalogue
from retina_ray.models.backbones import cam_layer
from retina_ray.orchestration.report_images import batch_of
from retina_ray.report.figures import CamPanel
from retina_ray.training.artifact import LOGITS, WEIGHTS, Artifact

IMAGES_PER_PAIR = 2
TABLE_TEMPERATURES = (1.0, 3.0)
"""Of Table V; the run's own is added."""


def notes(method: SallConfig) -> list[str]:
    """Return what the reader of the numbers should know."""
    if any(fraction < 1.0 for fraction in method.ratio.values()):
        return ["Training images are counted before method.ratio, which thins them out for the final networks."]
    return []


def soft_labels(method: SallConfig, artifacts: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Return the mean maximum and variance of the cross labels at several temperatures (SALL, Table V)."""
    rows = []
    for artifact in artifacts.values():
        if LOGITS not in artifact.files:
            continue
        for task, values in artifact.arrays(LOGITS).items():
            logits = torch.from_numpy(values)
            logits = logits[~logits.isnan().any(dim=1)]
            for temperature in sorted({*TABLE_TEMPERATURES, method.temperature}) if len(logits) else ():
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


def cross_task_panels(
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
    batch = batch_of(config, dataset, selection, severe)
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
