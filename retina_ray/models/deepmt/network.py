"""DeepMT-DR's chain: restore, segment, grade.

What lives here: how the three subnets follow one another, and the pixel ranges and sizes in between. What does not:
the subnets, what is trained when and which of them is frozen (``methods/deepmt``).

Shapes: ``B`` batch, ``h w`` low resolution, ``H W`` high resolution (scale*h, scale*w in the chain), ``K`` grades,
``P`` planes: L lesions and, last, the background.
"""

from typing import NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.nn import functional

from retina_ray.models.deepmt.grading import Grader, GraderOutput
from retina_ray.models.deepmt.resampling import upsample
from retina_ray.models.deepmt.segmentation import Segmentation, lesion_probabilities
from retina_ray.models.deepmt.super_resolution import SuperResolution


class DeepMTOutput(NamedTuple):
    """What the chain makes of low-resolution images; None for a subnet that is absent."""

    restored: Tensor
    """(B, 3, H, W) in [0, 1]."""

    segmentation_logits: Tensor | None
    """(B, P, H, W), before the softmax."""

    grader: GraderOutput | None
    """Logits (B, K) and feature maps."""


class DeepMTNetwork(nn.Module):
    """Joint super-resolution, lesion segmentation and grading (DeepMT-DR, Fig. 6).

    Images come and go in [0, 1]; segmentation and grading normalise them. A subnet may be absent: without
    super-resolution images are enlarged bicubically; without segmentation the chain has no lesion maps, which suits a
    grader that reads none.

    Args:
        super_resolution: or None.
        segmentation: or None.
        grader: or None.
        scale: how many times larger the chain makes images.
        mean: of each channel in [0, 1], which normalising subtracts.
        std: of each channel, which it then divides by.

    Raises:
        ValueError: super-resolution has another scale.
    """

    mean: Tensor
    std: Tensor

    def __init__(
        self,
        *,
        super_resolution: SuperResolution | None,
        segmentation: Segmentation | None,
        grader: Grader | None,
        scale: int,
        mean: tuple[float, float, float],
        std: tuple[float, float, float],
    ) -> None:
        super().__init__()
        if super_resolution is not None and super_resolution.scale != scale:
            raise ValueError(f"super-resolution enlarges {super_resolution.scale} times, the chain {scale} times")
        self.super_resolution = super_resolution
        self.segmentation = segmentation
        self.grader = grader
        self.scale = scale
        self.register_buffer("mean", torch.tensor(mean).reshape(3, 1, 1), persistent=False)
        self.register_buffer("std", torch.tensor(std).reshape(3, 1, 1), persistent=False)

    def restore(self, low: Float[Tensor, "B 3 h w"]) -> Float[Tensor, "B 3 H W"]:
        """Enlarge images (B, 3, h, w) in [0, 1] to (B, 3, scale*h, scale*w) in [0, 1]."""
        if self.super_resolution is None:
            return upsample(low, self.scale)
        restored: Tensor = self.super_resolution(low)
        return restored

    def segment(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B P H W"]:
        """Return the segmentation's logits (B, P, H, W) of images (B, 3, H, W) in [0, 1] of any size.

        Sides that are no multiple of the subnet's stride are continued by their last pixels below and to the right,
        and the logits cut back.

        Raises:
            ValueError: there is no segmentation.
        """
        if self.segmentation is None:
            raise ValueError("this network has no segmentation subnet")
        height, width = images.shape[2:]
        stride = self.segmentation.stride
        missing = (0, -width % stride, 0, -height % stride)
        fitting = self._normalised(images)
        if any(missing):  # where nothing is, a GPU would still copy, and gather in the backward pass
            fitting = functional.pad(fitting, missing, mode="replicate")
        logits: Tensor = self.segmentation(fitting)
        return logits[:, :, :height, :width]

    def grade(self, images: Float[Tensor, "B 3 H W"], lesions: Float[Tensor, "B L H W"] | None) -> GraderOutput:
        """Return logits (B, K) and feature maps of images in [0, 1] with their lesion maps in [0, 1].

        Args:
            images: (B, 3, H, W).
            lesions: (B, L, H, W), or None for a grader without lesion planes.

        Raises:
            ValueError: there is no grader, or it reads another number of lesion planes.
        """
        if self.grader is None:
            raise ValueError("this network has no grading subnet")
        output: GraderOutput = self.grader(self._normalised(images), lesions)
        return output

    def forward(self, low: Float[Tensor, "B 3 h w"]) -> DeepMTOutput:
        """Restore, segment and grade low-resolution images (B, 3, h, w) in [0, 1].

        Raises:
            ValueError: the grader reads other lesion maps than the segmentation makes.
        """
        restored = self.restore(low)
        logits = None if self.segmentation is None else self.segment(restored)
        if self.grader is None:
            return DeepMTOutput(restored, logits, None)
        lesions = None if logits is None or self.grader.lesion_planes == 0 else lesion_probabilities(logits)
        return DeepMTOutput(restored, logits, self.grade(restored, lesions))

    def _normalised(self, images: Tensor) -> Tensor:
        return (images - self.mean) / self.std
