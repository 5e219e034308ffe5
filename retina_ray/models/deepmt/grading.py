"""DeepMT-DR's high-level subnet: grading from an image and its lesion maps.

What lives here: the network and the features that evidence maps are made of. What does not: its loss
(``losses/deepmt.py``, Eq. 10) and the maps (``explain/gmsv.py``).

Shapes: ``B`` batch, ``K`` grades, ``L`` lesion planes, ``H W`` image, ``C`` channels and ``h w`` map of a stage.
"""

import math
from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retina_ray.models.deepmt.feature_maps import build_feature_maps
from retina_ray.models.deepmt.spatial_pyramid import SpatialPyramidPooling


class GraderOutput(NamedTuple):
    """What a grader says of a batch, and why."""

    logits: Tensor
    """(B, K), raw, without dropout: what predicts and what maps and scores explain, the same for equal images."""

    dropped_logits: Tensor
    """(B, K), those that the loss of a training step compares: behind dropout, which acts while training."""

    features: tuple[Tensor, ...]
    """The map (B, C, h, w) of each stage, finest first; part of the graph of the logits."""


class Grader(nn.Module):
    """Grades diabetic retinopathy (DeepMT-DR, section IV-A, DR grading subnet).

    A torchvision classifier's feature maps, spatial pyramid pooling, which takes images of any size, and two linear
    layers. Its first convolution reads the lesion maps beside RGB; weights for RGB are kept.

    Args:
        backbone: one of ``feature_maps.feature_map_names()``.
        weights: its initial weights; see ``feature_maps.build_feature_maps``.
        grades: K.
        lesion_planes: L; 0 for a grader of images alone.
        hidden: width of the layer between pooling and logits.
        dropout: probability with which a hidden unit is zeroed while training, 0..1.

    Raises:
        ConfigError: the backbone or its weights will not do.
    """

    def __init__(
        self,
        *,
        backbone: str = "resnet18",
        weights: str = "none",
        grades: int = 5,
        lesion_planes: int = 4,
        hidden: int = 512,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.lesion_planes = lesion_planes
        self.stages, self.stage_channels = build_feature_maps(backbone, weights=weights)
        if lesion_planes:
            _widen(_first_convolution(self.stages), lesion_planes)
        self.pool = SpatialPyramidPooling()
        self.head = nn.Sequential(
            nn.Linear(self.stage_channels[-1] * self.pool.num_bins, hidden),
            nn.ReLU(),
            nn.Dropout(dropout),
            nn.Linear(hidden, grades),
        )

    def forward(self, images: Float[Tensor, "B 3 H W"], lesions: Float[Tensor, "B L H W"] | None) -> GraderOutput:
        """Return logits (B, K), with dropout and without, and the stages' maps.

        Args:
            images: (B, 3, H, W), ImageNet-normalised.
            lesions: (B, L, H, W) probabilities of each lesion, or None for a grader without lesion planes.

        Raises:
            ValueError: there are more or fewer lesion planes than the network has.
        """
        planes = 0 if lesions is None else lesions.shape[1]
        if planes != self.lesion_planes:
            raise ValueError(f"the grader reads {self.lesion_planes} lesion planes, got {planes}")
        maps = images if lesions is None else torch.cat((images, lesions), dim=1)
        features = []
        for stage in self.stages:
            maps = stage(maps)
            features.append(maps)
        to_hidden, activation, dropout, to_grades = self.head
        hidden = activation(to_hidden(self.pool(maps)))
        logits = to_grades(hidden)
        return GraderOutput(logits, to_grades(dropout(hidden)), tuple(features))


def _first_convolution(stages: nn.ModuleList) -> nn.Conv2d:
    return next(module for module in stages.modules() if isinstance(module, nn.Conv2d))


def _widen(convolution: nn.Conv2d, planes: int) -> None:
    """Give a convolution more input planes, initialised as torch does by default; its weights so far stay."""
    old = convolution.weight.detach()
    weight = old.new_empty(old.shape[0], old.shape[1] + planes, *old.shape[2:])
    nn.init.kaiming_uniform_(weight, a=math.sqrt(5))
    weight[:, : old.shape[1]] = old
    convolution.weight = nn.Parameter(weight)
    convolution.in_channels += planes
