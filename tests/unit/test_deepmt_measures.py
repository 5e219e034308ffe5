"""What DeepMT-DR's validation and test report: per image and pooled, per lesion and over the lesions."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from retina_ray.data.batch import Batch
from retina_ray.data.schema import LESIONS
from retina_ray.methods.deepmt import measures
from tests.deepmt import a_batch, built, method_of


def found_lesions(batch: Batch) -> Tensor:
    """Return probabilities (B, 5, H, W) that know something of the masks, more of the second image's."""
    assert batch.masks is not None
    noise = torch.randn(len(batch.rows), 5, *batch.masks.shape[2:], generator=torch.Generator().manual_seed(0))
    known = torch.tensor([0.5, 2.0, 1.0])[: len(batch.rows)].view(-1, 1, 1, 1)
    noise[:, :4] += known * batch.masks
    return noise.softmax(dim=1)


def figures_of(batch: Batch) -> dict[str, float]:
    found = measures.segmentation(found_lesions(batch), batch)
    return measures.summarise({name: values.numpy() for name, values in found.items()})


def test_areas_per_image_are_means_over_the_images_that_show_the_lesion() -> None:
    batch = a_batch(masks=(True, True, False), grades=(2, 0, 1))
    assert batch.masks is not None
    batch.masks[0, 2] = False
    figures, scores = figures_of(batch), found_lesions(batch)
    for index, lesion in enumerate(LESIONS):
        shown = [1] if lesion == "HE" else [0, 1]
        planes = [(scores[image, index].flatten(), batch.masks[image, index].flatten().long()) for image in shown]
        for kind, metric in (("image_auc", binary_auroc), ("image_ap", binary_average_precision)):
            exact = np.mean([metric(score, truth).item() for score, truth in planes])
            assert figures[f"{kind}_{lesion}"] == pytest.approx(exact, abs=0.01), (kind, lesion)


@pytest.mark.parametrize("kind", ["ap", "auc", "image_ap", "image_auc", "chance"])
def test_averages_are_over_the_lesions_that_the_masks_show(kind: str) -> None:
    batch = a_batch(masks=(True, True), grades=(2, 0))
    figures = figures_of(batch)
    assert figures[f"{kind}_mean"] == pytest.approx(np.mean([figures[f"{kind}_{lesion}"] for lesion in LESIONS]))
    assert batch.masks is not None
    batch.masks[:, 3] = False
    figures = figures_of(batch)
    assert math.isnan(figures[f"{kind}_SE"])
    assert figures[f"{kind}_mean"] == pytest.approx(np.mean([figures[f"{kind}_{each}"] for each in LESIONS[:3]]))


def test_without_any_mask_nothing_is_known_of_lesions() -> None:
    batch = a_batch(masks=(False, False))
    assert all(math.isnan(figure) for figure in figures_of(batch).values())


@pytest.mark.parametrize("scale", [1, 4])
def test_restoration_is_measured_where_something_is_restored(scale: int) -> None:
    alone = {"method.super_resolution.mode": "none", "method.segmentation.mode": "none", "method.evidence.map": "none"}
    method = method_of("joint", {**alone, "method.scale": scale})
    with torch.inference_mode():
        found = method.evaluate(built(method).eval(), replace(a_batch(), masks=None), final=True).measures
    expected = {"psnr", "psnr_bicubic", "ssim", "ssim_bicubic"} if scale > 1 else set()
    assert {name for name in found if name.startswith(("psnr", "ssim"))} == expected
    assert all(bool(values.isfinite().all()) for values in found.values())
