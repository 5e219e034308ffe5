"""One training stage of DeepMT-DR: its networks, its losses and its rows; see the package for the paper map."""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from retina_ray.config_method import DeepMTConfig
from retina_ray.data.batch import MEAN, STD, Batch, from_unit_range, to_unit_range
from retina_ray.data.schema import LESIONS
from retina_ray.data.selection import Selection
from retina_ray.errors import ConfigError, DataError
from retina_ray.explain.evidence import (
    Evidence,
    GmsvEvidence,
    GradCamEvidence,
    GuidedBackpropEvidence,
    SmoothGradEvidence,
)
from retina_ray.explain.gmsv import Gmsv
from retina_ray.losses.deepmt import pixel_loss, super_resolution_loss
from retina_ray.methods.base import Evaluation, ParameterGroup
from retina_ray.methods.deepmt import measures
from retina_ray.methods.deepmt.graph import MapUse, StageName, StageNetwork, Wanted, without_background
from retina_ray.methods.deepmt.plan import learning_rates, rate_changes
from retina_ray.methods.deepmt.terms import TERMS, counted, loss_weights
from retina_ray.models.backbones import weights_file
from retina_ray.models.blocks import blocks
from retina_ray.models.deepmt.grading import Grader
from retina_ray.models.deepmt.network import DeepMTNetwork
from retina_ray.models.deepmt.resampling import degrade
from retina_ray.models.deepmt.segmentation import Segmentation
from retina_ray.models.deepmt.super_resolution import SuperResolution

_SMALLEST_INPUT = 16
_MASKS_FIX = "ingest a data set with masks (ddr, idrid), or set method.segmentation.mode=none"


@dataclass(frozen=True)
class DeepMT:
    """The method of one training stage.

    Attributes:
        stage: which one.
        grades: number of grades K of the task.
        config: the method's section; what the stage does not depend on is at its default.
    """

    stage: StageName
    grades: dict[str, int]
    config: DeepMTConfig

    reads_masks = True
    compares_pixels = True

    @cached_property
    def task(self) -> str:
        """The task that is graded."""
        return next(iter(self.grades))

    @cached_property
    def weights(self) -> dict[str, float]:
        """The weight of each loss term of the stage, above 0; a term that an ablation removes is absent."""
        return {name: weight for name, weight in loss_weights(self.stage, self.config).items() if weight > 0}

    def build_model(self, *, initial_weights: bool = True) -> StageNetwork:
        """Return the stage's nets, initialised from the current random state and the configured weights."""
        config, rates = self.config, learning_rates(self.stage, self.config)
        restores = self.stage != "grading" and config.super_resolution.mode != "none"
        segments = config.segmentation.mode != "none"
        nets = DeepMTNetwork(
            super_resolution=self._super_resolution() if restores else None,
            segmentation=self._segmentation() if segments else None,
            grader=self._grader(initial_weights) if self.stage != "restoration" else None,
            scale=config.scale,
            mean=MEAN,
            std=STD,
        )
        frozen = [("super_resolution", restores), ("segmentation", segments)]
        evidence, parameters = self._evidence(nets)
        return StageNetwork(
            self.stage,
            nets,
            frozen=tuple(name for name, present in frozen if present and name not in rates),
            wanted=self._wanted(),
            evidence=evidence,
            evidence_parameters=parameters,
        )

    def weight_files(self) -> list[Path]:
        """Return the file of the grading net's initial weights, if the stage has one."""
        if self.stage == "restoration":
            return []
        file = weights_file(self.config.grading.backbone, self.config.grading.weights)
        return [] if file is None else [file]

    def check_image_size(self, pixels: int) -> None:
        """Refuse a size that does not divide by the scale or leaves too little."""
        low, rest = divmod(pixels, self.config.scale)
        if rest or low < _SMALLEST_INPUT:
            value = f"data.image_size = {pixels}, method.scale = {self.config.scale}"
            fix = f"choose a multiple of the scale, of at least {_SMALLEST_INPUT} x scale pixels"
            raise ConfigError("the image size does not fit the scale", value, fix)

    def parameter_groups(self, network: nn.Module) -> list[ParameterGroup]:
        """Return one group for each part that learns, with its rate relative to the stage's highest."""
        rates, changes = learning_rates(self.stage, self.config), rate_changes(self.stage, self.config)
        assert isinstance(network, StageNetwork)
        modules = {
            "super_resolution": network.nets.super_resolution,
            "segmentation": network.nets.segmentation,
            "grading": network.nets.grader,
            "evidence": network.evidence_parameters,
        }
        groups = []
        for part, rate in rates.items():
            module = modules[part]
            members = [] if module is None else [each for each in module.parameters() if each.requires_grad]
            if members:
                change, epoch = changes.get(part, (1.0, None))
                groups.append(ParameterGroup(members, rate / max(rates.values()), change, epoch))
        return groups

    def differentiated_once(self, network: nn.Module) -> list[nn.Module]:
        """Return the nets, without the grading net where its maps are made: those are derivatives themselves."""
        assert isinstance(network, StageNetwork)
        nets = network.nets
        grader = nets.grader if network.evidence is None else None
        return [net for net in (nets.super_resolution, nets.segmentation, grader) if net is not None]

    def recomputed(self, network: nn.Module) -> list[nn.Module]:
        """Return super-resolution, which is small, each layer of segmentation, and the blocks of such a grading net."""
        assert isinstance(network, StageNetwork)
        parts: list[nn.Module] = []
        for net in self.differentiated_once(network):
            if isinstance(net, Segmentation):
                parts += [*net.down, *net.up]
            elif isinstance(net, Grader):
                parts += blocks(net.stages)
            else:
                parts.append(net)
        return parts

    def training_rows(self, selection: Selection) -> np.ndarray:
        """Return the rows (n,) of the stage: all training images, in the grading stage those with a grade.

        Raises:
            DataError: no training image has a lesion mask, but segmentation has nothing else to learn from.
        """
        rows = selection.rows["train"]
        if self.weights.keys() & {"dice", "focal"} and not selection.has_mask[rows].any():
            raise DataError("no training image has a lesion mask", self.stage, _MASKS_FIX)
        return selection.graded("train", [self.task]) if self.stage == "grading" else rows

    def validation_rows(self, selection: Selection) -> np.ndarray:
        """Return the validation rows (n,): all, in the grading stage those with a grade.

        Raises:
            DataError: no validation image has a lesion mask, but there is nothing else to judge the epochs by.
        """
        rows = selection.rows["validation"]
        if self.stage == "restoration":
            if "pixel" not in self.weights and not selection.has_mask[rows].any():
                raise DataError("no validation image has a lesion mask", self.stage, _MASKS_FIX)
            return rows
        return selection.graded("validation", [self.task])

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of images behind each term: all, those with a mask, those without, those with a grade."""
        return {name: counted(name, batch, self.task).sum() for name in self.weights}

    def losses(self, model: nn.Module, batch: Batch, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each term of the stage (Eqs. 4 to 10), a mean over the images that it is about."""
        high = to_unit_range(batch.images)
        outputs = model(high, batch.fixed_rows)
        terms: dict[str, Tensor] = {}
        for name in self.weights:
            weight = counted(name, batch, self.task)
            values = TERMS[name](outputs, high, batch, self.config, self.task)
            # Not their product alone: an image that does not count may have any value.
            terms[name] = torch.where(weight > 0, values * weight, 0.0).sum() / counts[name]
        return terms

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum: Eq. 11 with the terms of segmentation and grading."""
        return super_resolution_loss(terms, self.weights)

    def evaluate(self, model: nn.Module, batch: Batch, *, final: bool) -> Evaluation:
        """Measure restoration, segmentation and grading, as far as the stage has them."""
        assert isinstance(model, StageNetwork)
        nets, high = model.nets, to_unit_range(batch.images)
        values: dict[str, Tensor] = {}
        images = high
        if self.stage != "grading":
            low = degrade(high, self.config.scale)
            images = nets.restore(low)
            values |= {"loss_pixel": pixel_loss(images, high, norm=self.config.loss.pixel_norm)}
            values |= measures.restoration(images, high, low, scale=self.config.scale, final=final)
        lesions = None
        if nets.segmentation is not None:
            # What validation sees in the grading stage is the same in every epoch; the test comes once.
            same = self.stage == "grading" and not final
            logits = model.lesion_logits_hr_of(images, batch.fixed_rows) if same else nets.segment(images)
            lesions = logits.softmax(dim=1)
            values |= measures.segmentation(lesions, batch)
        if nets.grader is None:
            return Evaluation({}, values)
        found = nets.grade(images, without_background(lesions))
        probabilities = found.logits.float().softmax(dim=1)
        values |= measures.grading(probabilities, batch.grades[self.task], self.task)
        if final and (evidence := model.evidence_map(images, lesions)) is not None:
            values |= measures.evidence(evidence, batch)
        return Evaluation({self.task: probabilities}, values)

    def summarise(self, measures_of_images: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return means, and the areas of the lesions' curves; see `measures.summarise`."""
        return measures.summarise(measures_of_images)

    def criterion(self, summary: Mapping[str, float]) -> float:
        """Return the grades' negative log-likelihood, in the restoration stage Eqs. 6 and 8 as it weighs them.

        Where segmentation learns from the focal loss alone, Eq. 8 has that loss's weight.
        """
        if self.stage != "restoration":
            return summary[f"loss_{self.task}"]
        overlap = self.weights.get("dice", self.weights.get("focal", 0.0))
        parts = (
            (self.weights.get("pixel", 0.0), summary["loss_pixel"]),
            (overlap, summary.get("loss_segmentation", math.nan)),
        )
        return sum(weight * value for weight, value in parts if not math.isnan(value))

    def input_side(self, pixels: int) -> int:
        """Return the side of the low-resolution input."""
        return pixels // self.config.scale

    def inputs(self, images: Tensor) -> Tensor:
        """Return low-resolution copies (B, 3, H / scale, W / scale), normalised as the images are."""
        return from_unit_range(degrade(to_unit_range(images), self.config.scale))

    def probabilities(self, model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
        """Return the probabilities (B, K) of low-resolution images (B, 3, h, w)."""
        assert isinstance(model, StageNetwork)
        output = model.nets(to_unit_range(inputs))
        return {self.task: output.grader.logits.float().softmax(dim=1)}

    def _wanted(self) -> Wanted:
        """Return what the stage's terms compare."""
        evidence = self.config.evidence
        maps = evidence.map != "none"
        aware, fitted = "classification_aware" in self.weights, "map_fit" in self.weights
        fits_high = fitted and self.config.stages.joint.map_fit_of == "high"
        passes_gradient = evidence.step != "hard" or not evidence.binarise
        return Wanted(
            lesions_hr="segmentation_aware" in self.weights
            or fitted
            or (self.stage == "joint" and (aware or "semi_supervised" in self.weights)),
            evidence=_map_use(
                compared=aware and maps, trained=(fitted and not fits_high) or (aware and maps and passes_gradient)
            ),
            evidence_hr=_map_use(compared="semi_supervised" in self.weights or (aware and maps), trained=fits_high),
            scores=aware and not maps,
            feedback=evidence.feedback,
            apart=self.stage == "restoration" and self.config.stages.restoration.apart,
        )

    def _super_resolution(self) -> SuperResolution:
        section = self.config.super_resolution
        return SuperResolution(
            width=section.width, blocks=section.blocks, scale=self.config.scale, output=section.output
        )

    def _segmentation(self) -> Segmentation:
        section = self.config.segmentation
        return Segmentation(width=section.width, depth=section.depth, classes=len(LESIONS) + 1, gamma=section.gamma)

    def _grader(self, initial_weights: bool) -> Grader:
        section = self.config.grading
        return Grader(
            backbone=section.backbone,
            weights=section.weights if initial_weights else "none",
            grades=self.grades[self.task],
            lesion_planes=0 if self.config.segmentation.mode == "none" else len(LESIONS),
            hidden=section.hidden,
            dropout=section.dropout,
        )

    def _evidence(self, nets: DeepMTNetwork) -> tuple[Evidence | None, nn.Module | None]:
        """Return what makes the maps, and the module that holds its parameters; None where there are none."""
        section = self.config.evidence
        if nets.grader is None or section.map == "none":
            return None, None
        if section.map == "gmsv":
            gmsv = Gmsv(
                nets.grader.stage_channels,
                theta_seg=section.theta_seg,
                step=section.step if section.select else "none",
                sharpness=section.sharpness,
                fusion=section.fusion,
            )
            return GmsvEvidence(section.score, gmsv), gmsv
        if section.map == "guided_backprop":
            return GuidedBackpropEvidence(section.score, nets.grader), None
        if section.map == "smooth_grad":
            return SmoothGradEvidence(section.score, nets.grader, section.samples, section.noise), None
        return GradCamEvidence(section.score), None


def _map_use(*, compared: bool, trained: bool) -> MapUse:
    if trained:
        return "trained"
    return "compared" if compared else "unused"


def build(settings: Mapping[str, Any]) -> DeepMT:
    """Return the method of a training stage from the settings that `plan` wrote."""
    # As JSON, in which lists are what the frozen tree holds as tuples.
    config = DeepMTConfig.model_validate_json(json.dumps(settings["method"]))
    return DeepMT(settings["stage"], dict(settings["grades"]), config)
