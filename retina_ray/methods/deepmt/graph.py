"""What the three nets of DeepMT-DR compute of a batch in each training stage, each thing once.

What lives here: the forward passes of a training step, and which of them carry gradients. What does not: the nets
(``models/deepmt``), the map (``explain``) and the losses (``losses/deepmt.py``, ``losses/segmentation.py``).

Letters: B batch, H W high resolution, K grades; pixels of `high` and `restored` are in [0, 1].
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal, TypedDict

import torch
from torch import Tensor, nn

from retina_ray.explain.evidence import Evidence
from retina_ray.losses.precision import at_least_float32
from retina_ray.methods.deepmt.frozen_maps import FrozenMaps
from retina_ray.models.batch_statistics import unrecorded
from retina_ray.models.deepmt.grading import GraderOutput
from retina_ray.models.deepmt.network import DeepMTNetwork
from retina_ray.models.deepmt.resampling import degrade

StageName = Literal["restoration", "grading", "joint"]


class StepOutputs(TypedDict, total=False):
    """What a stage's losses compare; what none of them asks for is absent."""

    restored: Tensor
    """(B, 3, H, W) in [0, 1], the super-resolved image."""

    lesion_logits: Tensor
    """(B, 5, H, W) of its segmentation."""

    lesions: Tensor
    """(B, 5, H, W) in [0, 1], their softmax: Eq. 1."""

    lesion_logits_hr: Tensor
    """(B, 5, H, W) of the high-resolution image's segmentation, without a gradient."""

    lesions_hr: Tensor
    """(B, 5, H, W) in [0, 1], their softmax."""

    logits: Tensor
    """(B, K) of the graded image, behind dropout: the restored one, in the grading stage the high-resolution one."""

    evidence: Tensor
    """(B, H, W) in [0, 1], the map of the graded image."""

    evidence_hr: Tensor
    """(B, H, W) in [0, 1], that of the high-resolution image."""

    score: Tensor
    """(B,) in [0, 1], the chance of disease in the graded image."""

    score_hr: Tensor
    """(B,) in [0, 1], that in the high-resolution image, without a gradient."""


MapUse = Literal["unused", "compared", "trained"]
"""Whether a loss takes a map, and whether it passes a gradient through it."""


@dataclass(frozen=True)
class Wanted:
    """Which outputs a stage's losses compare, beyond those that it needs anyway.

    Attributes:
        lesions_hr: the segmentation of the high-resolution image.
        evidence: the map of the graded image.
        evidence_hr: the map of the high-resolution image.
        scores: both images' chances of disease.
        feedback: a trained map passes its gradient to the nets; otherwise to its own parameters alone.
        apart: segmentation passes no gradient to super-resolution.
    """

    lesions_hr: bool = False
    evidence: MapUse = "unused"
    evidence_hr: MapUse = "unused"
    scores: bool = False
    feedback: bool = True
    apart: bool = False


class StageNetwork(nn.Module):
    """The nets that a stage needs, and their training step as one forward pass.

    Args:
        stage: which one.
        nets: those that it uses; the others are None in it.
        frozen: names of the nets that do not learn: they stay in evaluation mode.
        wanted: what the losses compare.
        evidence: makes the maps, if any is wanted.
        evidence_parameters: the module that it holds, if it has parameters.
    """

    def __init__(
        self,
        stage: StageName,
        nets: DeepMTNetwork,
        *,
        frozen: tuple[str, ...],
        wanted: Wanted,
        evidence: Evidence | None = None,
        evidence_parameters: nn.Module | None = None,
    ) -> None:
        super().__init__()
        self.stage = stage
        self.nets = nets
        self.evidence_parameters = evidence_parameters
        self.evidence = evidence
        self._frozen = frozen
        self._wanted = wanted
        self._frozen_maps = FrozenMaps()
        for name in frozen:
            nets.get_submodule(name).requires_grad_(False)
        if evidence_parameters is not None and "trained" not in (wanted.evidence, wanted.evidence_hr):
            evidence_parameters.requires_grad_(False)
        self.train()

    def train(self, mode: bool = True) -> "StageNetwork":
        """Switch between training and evaluation; frozen nets stay in evaluation mode."""
        super().train(mode)
        for name in self._frozen:
            self.nets.get_submodule(name).eval()
        return self

    def forward(self, high: Tensor, rows: Sequence[int] | None = None) -> StepOutputs:
        """Return what the stage's losses compare.

        Args:
            high: (B, 3, H, W) in [0, 1].
            rows: B numbers that stand for these very pixels, so that frozen nets need not see them again; None where
                they are augmented.
        """
        found: StepOutputs = {}
        if self.nets.segmentation is not None and (self._wanted.lesions_hr or self.stage == "grading"):
            found["lesion_logits_hr"] = self.lesion_logits_hr_of(high, rows)
            found["lesions_hr"] = found["lesion_logits_hr"].softmax(dim=1)
        if self.stage == "grading":
            self._grade(found, high, found.get("lesions_hr"))
            return found
        found["restored"] = self.nets.restore(degrade(high, self.nets.scale))
        if self.nets.segmentation is not None:
            seen = found["restored"].detach() if self._wanted.apart else found["restored"]
            found["lesion_logits"] = self.nets.segment(seen)
            found["lesions"] = found["lesion_logits"].softmax(dim=1)
        if self.stage == "joint":
            self._grade(found, found["restored"], found.get("lesions"))
            with unrecorded(self.nets):
                self._grade_high(found, high)
        return found

    def evidence_map(self, images: Tensor, probabilities: Tensor | None) -> Tensor | None:
        """Return the map (B, H, W) of graded images, detached; None where the stage makes none.

        Args:
            images: (B, 3, H, W) in [0, 1].
            probabilities: (B, 5, H, W) of their segmentation.
        """
        if self.evidence is None:
            return None
        return self.evidence(self.nets.grade, images, without_background(probabilities), create_graph=False)[1]

    def _grade(self, found: StepOutputs, images: Tensor, probabilities: Tensor | None) -> None:
        """Add the grading of images with their lesion probabilities, and its map and score as far as wanted."""
        lesions, use = without_background(probabilities), self._wanted.evidence
        if self.evidence is not None and use != "unused":
            output, found["evidence"] = self._graded_with_map(self.evidence, images, lesions, use)
        else:
            output = self.nets.grade(images, lesions)
        found["logits"] = output.dropped_logits
        if self._wanted.scores:
            found["score"] = _chance_of_disease(output.logits)

    def _grade_high(self, found: StepOutputs, high: Tensor) -> None:
        """Add the high-resolution image's map and score, as far as wanted."""
        lesions, use = without_background(found.get("lesions_hr")), self._wanted.evidence_hr
        if self.evidence is not None and use != "unused":
            found["evidence_hr"] = self._graded_with_map(self.evidence, high, lesions, use)[1]
        if self._wanted.scores:
            with torch.no_grad():
                output = self.nets.grade(high, lesions)
            found["score_hr"] = _chance_of_disease(output.logits)

    def _graded_with_map(
        self, evidence: Evidence, images: Tensor, lesions: Tensor | None, use: MapUse
    ) -> tuple[GraderOutput, Tensor]:
        trained, feedback = use == "trained", self._wanted.feedback
        return evidence(self.nets.grade, images, lesions, create_graph=trained, feedback=feedback)

    def lesion_logits_hr_of(self, high: Tensor, rows: Sequence[int] | None) -> Tensor:
        """Return the logits (B, 5, H, W) of the high-resolution image's segmentation, without a gradient."""
        with torch.no_grad(), unrecorded(self.nets):
            if rows is None or "segmentation" not in self._frozen:
                return self.nets.segment(high)
            return self._frozen_maps.of(rows, high, self.nets.segment)


def without_background(probabilities: Tensor | None) -> Tensor | None:
    """Return the lesion planes (B, 4, H, W) of a segmentation (B, 5, H, W), if there is one."""
    return None if probabilities is None else probabilities[:, :-1]


def _chance_of_disease(logits: Tensor) -> Tensor:
    """Return 1 minus the probability of grade 0 (B,)."""
    return 1 - at_least_float32(logits).softmax(dim=1)[:, 0]
