"""The loss terms of DeepMT-DR by name: what each compares, which images it is about, and its weight in each stage."""

from collections.abc import Callable
from typing import TypedDict

from torch import Tensor

from retina_ray.config_method import DeepMTConfig, EvidenceConfig
from retina_ray.data.batch import Batch
from retina_ray.data.schema import NO_GRADE
from retina_ray.losses.deepmt import (
    classification_aware,
    classification_aware_scores,
    grade_distance_cross_entropy,
    pixel_loss,
    segmentation_aware,
    total_variation,
)
from retina_ray.losses.segmentation import dice_loss, focal_loss, semi_supervised
from retina_ray.losses.steps import Step
from retina_ray.methods.deepmt.graph import StageName, StepOutputs
from retina_ray.methods.deepmt.plan import learning_rates

Term = Callable[[StepOutputs, Tensor, Batch, DeepMTConfig, str], Tensor]
"""From a step's outputs, the high-resolution images in [0, 1], the batch, the configuration and the task to (B,)."""


def loss_weights(stage: StageName, config: DeepMTConfig) -> dict[str, float]:
    """Return the weight of every term of a stage, 0 for one that the configuration removes."""
    loss, segments = config.loss, config.segmentation.mode != "none"
    if stage == "grading":
        return {"grading": 1.0, "map_fit": config.stages.grading.map_fit}
    # Without a net to train there is nothing that its terms could tell it.
    learning = learning_rates(stage, config)
    trains_restoration, trains_segmentation = "super_resolution" in learning, "segmentation" in learning
    own = config.stages.restoration if stage == "restoration" else config.stages.joint
    apart = stage == "restoration" and config.stages.restoration.apart
    weights = {
        "pixel": loss.pixel * trains_restoration,
        "total_variation": loss.total_variation * trains_restoration,
        "segmentation_aware": own.segmentation_aware * (trains_restoration and segments and not apart),
        "dice": loss.dice * trains_segmentation,
        "focal": loss.focal * trains_segmentation,
    }
    if stage == "restoration":
        return weights
    joint, maps = config.stages.joint, config.evidence.map != "none"
    return weights | {
        "classification_aware": joint.classification_aware * trains_restoration,
        "semi_supervised": joint.semi_supervised * (trains_segmentation and maps),
        "map_fit": joint.map_fit,
        "grading": 1.0,
    }


def counted(name: str, batch: Batch, task: str) -> Tensor:
    """Return the weight (B,) of each image in a term: 1, or 0 where the term is not about it."""
    if name in ("dice", "focal"):
        return batch.weight * batch.has_mask
    if name == "semi_supervised":
        return batch.weight * ~batch.has_mask
    if name == "grading":
        return batch.weight * (batch.grades[task] != NO_GRADE)
    return batch.weight


class _Threshold(TypedDict):
    threshold: float
    kind: Step
    sharpness: float


def _threshold(evidence: EvidenceConfig) -> _Threshold:
    kind: Step = evidence.step if evidence.binarise else "none"
    return {"threshold": evidence.phi_vis, "kind": kind, "sharpness": evidence.sharpness}


def _pixel(outputs: StepOutputs, high: Tensor, batch: Batch, config: DeepMTConfig, task: str) -> Tensor:
    return pixel_loss(outputs["restored"], high, norm=config.loss.pixel_norm)


def _total_variation(outputs: StepOutputs, high: Tensor, batch: Batch, config: DeepMTConfig, task: str) -> Tensor:
    return total_variation(outputs["restored"])


def _segmentation_aware(outputs: StepOutputs, high: Tensor, batch: Batch, config: DeepMTConfig, task: str) -> Tensor:
    if config.stages.restoration.segmentation_aware_on == "logits":  # "maps" in what other stages are told
        return segmentation_aware(outputs["lesion_logits"], outputs["lesion_logits_hr"])
    return segmentation_aware(outputs["lesions"], outputs["lesions_hr"])


def _classification_aware(outputs: StepOutputs, high: Tensor, batch: Batch, config: DeepMTConfig, task: str) -> Tensor:
    if config.evidence.map == "none":
        return classification_aware_scores(outputs["score"], outputs["score_hr"])
    return classification_aware(outputs["evidence"], outputs["evidence_hr"].detach(), **_threshold(config.evidence))


def _dice(outputs: StepOutputs, high: Tensor, batch: Batch, config: DeepMTConfig, task: str) -> Tensor:
    loss = config.loss
    return dice_loss(
        outputs["lesions"],
        _masks(batch),
        plane_weights=loss.plane_weights,
        per_lesion=loss.dice_per_lesion,
        factor=float(loss.dice_factor),
    )


def _focal(outputs: StepOutputs, high: Tensor, batch: Batch, config: DeepMTConfig, task: str) -> Tensor:
    loss = config.loss
    return focal_loss(outputs["lesion_logits"], _masks(batch), alpha=loss.focal_alpha, gamma=loss.focal_gamma)


def _semi_supervised(outputs: StepOutputs, high: Tensor, batch: Batch, config: DeepMTConfig, task: str) -> Tensor:
    against, map_hr = config.stages.joint.semi_supervised_against, outputs["evidence_hr"].detach()
    return semi_supervised(outputs["lesions"], map_hr, against=against, **_threshold(config.evidence))


def _map_fit(outputs: StepOutputs, high: Tensor, batch: Batch, config: DeepMTConfig, task: str) -> Tensor:
    joint, planes = config.stages.joint, outputs["lesions_hr"]  # "union" in what the grading stage is told
    against = planes if joint.map_fit_against == "planes" else 1 - planes[:, -1:]
    fitted = outputs["evidence_hr"] if joint.map_fit_of == "high" else outputs["evidence"]
    return (fitted.unsqueeze(1) - against).square().mean(dim=(1, 2, 3))


def _grading(outputs: StepOutputs, high: Tensor, batch: Batch, config: DeepMTConfig, task: str) -> Tensor:
    grading = config.grading
    return grade_distance_cross_entropy(
        outputs["logits"], batch.grades[task], mode=grading.loss, class_weights=grading.class_weights
    )


def _masks(batch: Batch) -> Tensor:
    assert batch.masks is not None  # the method reads them
    return batch.masks


TERMS: dict[str, Term] = {
    "pixel": _pixel,
    "total_variation": _total_variation,
    "segmentation_aware": _segmentation_aware,
    "classification_aware": _classification_aware,
    "dice": _dice,
    "focal": _focal,
    "semi_supervised": _semi_supervised,
    "map_fit": _map_fit,
    "grading": _grading,
}
