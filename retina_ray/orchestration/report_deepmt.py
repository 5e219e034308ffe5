"""What the report of a DeepMT-DR run shows beyond any method's: images on their way through the three nets."""

from collections.abc import Mapping

import numpy as np
import torch
from safetensors.torch import load as load_tensors
from torch import Tensor

from retina_ray.config import RunConfig
from retina_ray.data.batch import Batch, denormalise, from_unit_range, to_unit_range
from retina_ray.data.selection import Selection
from retina_ray.data.shards import ShardedDataset
from retina_ray.methods import catalogue
from retina_ray.methods.deepmt.graph import StageNetwork
from retina_ray.metrics.restoration import psnr
from retina_ray.models.deepmt.resampling import degrade, upsample
from retina_ray.orchestration.report_images import batch_of
from retina_ray.report.deepmt_figures import LesionPanel
from retina_ray.training.artifact import WEIGHTS, Artifact

PANELS = 4


def panels(
    config: RunConfig, dataset: ShardedDataset, selection: Selection, trained: Mapping[str, Artifact]
) -> list[LesionPanel]:
    """Return the most severe test images, those with masks first, as the joint stage's nets see them."""
    artifact = trained["joint"]
    method = catalogue.build(config.method.name, artifact.settings)
    network = method.build_model(initial_weights=False)
    network.load_state_dict(load_tensors(artifact.read(WEIGHTS)))
    assert isinstance(network, StageNetwork)
    (task,) = config.method.tasks
    batch = batch_of(config, dataset, selection, _chosen(selection, task))
    grades = next(each.grades for each in dataset.tasks if each.name == task)
    torch.manual_seed(config.seed)  # as the test stage does, so that these are the maps that it measured
    with torch.no_grad():
        return _drawn(network.eval(), batch, task, grades)


def _chosen(selection: Selection, task: str) -> np.ndarray:
    rows = selection.graded("test", [task])
    order = np.lexsort((-selection.grades[task][rows], ~selection.has_mask[rows]))
    return rows[order][:PANELS]


def _drawn(network: StageNetwork, batch: Batch, task: str, grades: tuple[str, ...]) -> list[LesionPanel]:
    assert batch.masks is not None
    high, scale = to_unit_range(batch.images), network.nets.scale
    low = degrade(high, scale)
    bicubic = upsample(low, scale)
    restored, segmented, graded = network.nets(low)
    lesions = None if segmented is None else segmented.softmax(dim=1)
    evidence = network.evidence_map(restored, lesions)
    predicted = graded.logits.argmax(dim=1)
    return [
        LesionPanel(
            low=_picture(low[index]),
            bicubic=_picture(bicubic[index]),
            restored=_picture(restored[index]),
            high=_picture(high[index]),
            lesions=None if lesions is None else lesions[index, :-1].numpy(),
            masks=batch.masks[index].numpy() if batch.has_mask[index] else None,
            evidence=None if evidence is None else evidence[index].numpy(),
            psnr=(
                float(psnr(bicubic[index : index + 1], high[index : index + 1])),
                float(psnr(restored[index : index + 1], high[index : index + 1])),
            ),
            title=f"{grades[int(batch.grades[task][index])]}, graded {grades[int(predicted[index])]}",
        )
        for index in range(len(high))
    ]


def _picture(colours: Tensor) -> np.ndarray:
    """Return colours (3, H, W) in [0, 1] as (H, W, 3) uint8."""
    picture: np.ndarray = denormalise(from_unit_range(colours.unsqueeze(0)))[0]
    return picture
