"""Maps of what a grading network goes by, for use inside a loss: GMSV and the three it is compared with in Table V.

What lives here: the score that all maps explain, and one callable class for each map, so that a training method takes
any of them as an `Evidence`. What does not: the grader itself, which comes as a callable, the GMSV algorithm
(``explain/gmsv.py``), and comparing maps (``losses/deepmt.py``).

All maps can be differentiated again. But a network of convolutions, ReLUs, maxima and frozen batch normalisation is
piecewise linear: its gradient with respect to the image is locally constant, so guided backpropagation and SmoothGrad
pass a gradient to the grader's parameters and none to the image. GMSV and Grad-CAM contain the features and pass both.

Shapes: ``B`` batch, ``K`` grades, ``L`` lesions, ``H W`` image, ``n`` noisy copies.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Literal, Protocol, TypeAlias, TypeVar, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retina_ray.explain.gmsv import Gmsv
from retina_ray.explain.guided_relu import GuidedRelus
from retina_ray.explain.maps import enlarge, map_arithmetic, min_max, score_gradients
from retina_ray.losses.precision import at_least_float32
from retina_ray.models.batch_statistics import unrecorded

Score = Literal["sum", "argmax"]


@runtime_checkable  # as the tests check every type
class Graded(Protocol):
    """What a grader returns, at least."""

    @property
    def logits(self) -> Float[Tensor, "B K"]:
        """The grades' logits, grade 0 being no retinopathy."""

    @property
    def features(self) -> Sequence[Float[Tensor, "B _ _ _"]]:
        """The feature maps that the logits were computed from, finest first."""


Output = TypeVar("Output", bound=Graded)
Grade: TypeAlias = Callable[[Tensor, Tensor | None], Output]


def positive_score(logits: Float[Tensor, "B K"], kind: Score) -> Float[Tensor, " B"]:
    """Return the score y_DR whose gradient makes the maps (DeepMT-DR, Eq. 3 and its second footnote).

    Args:
        logits: (B, K), grade 0 being no retinopathy.
        kind: ``sum`` is the paper's, the sum over grades 1 to K - 1. ``argmax`` is that of the authors' code: the
            logit of grade 0 for an image graded 0, and the sum for others.
    """
    positive = logits[:, 1:].sum(dim=1)
    return positive if kind == "sum" else torch.where(logits.argmax(dim=1) == 0, logits[:, 0], positive)


@dataclass(frozen=True)
class Evidence(ABC):
    """Grades images and shows what the grading goes by.

    Args:
        score: what is explained, see `positive_score`.
    """

    score: Score

    @torch.inference_mode(False)
    def __call__(
        self,
        grade: Grade[Output],
        images: Float[Tensor, "B 3 H W"],
        lesions: Float[Tensor, "B L H W"] | None,
        *,
        create_graph: bool,
        feedback: bool = True,
    ) -> tuple[Output, Float[Tensor, "B H W"]]:
        """Return the grader's output and the map.

        Surrounding ``no_grad`` or ``inference_mode`` does not matter: a map needs a graph, and the output keeps it.

        Args:
            grade: (images, lesions) -> output. An image's map depends on its neighbours in the batch only as far as
                the grader lets it, as batch normalisation in training mode does.
            images: (B, 3, H, W) in the range that ``grade`` takes; need not require a gradient.
            lesions: (B, L, H, W) probabilities in [0, 1], or None. The score is differentiated with the lesions held
                fixed, wherever they come from.
            create_graph: keep the graph of the map; otherwise it is detached.
            feedback: whether that graph leads to the images, the lesions and the grader; otherwise it ends at the map's
                own parameters, and a map without any is detached.

        Returns:
            What ``grade`` returned, and the map (B, H, W) in [0, 1]; a map without contrast is all zero.
        """
        if lesions is not None and lesions.is_inference():
            lesions = lesions.clone()  # such a tensor cannot be held by a graph
        # A copy: inside the graph of the images if they have one, and not what the lesions were segmented from.
        return self._explain(
            grade, images.clone().requires_grad_(), lesions, create_graph and feedback, own_graph=create_graph
        )

    @abstractmethod
    def _explain(
        self, grade: Grade[Output], images: Tensor, lesions: Tensor | None, create_graph: bool, *, own_graph: bool
    ) -> tuple[Output, Tensor]:
        """Return the output and the map of images that require a gradient.

        Args:
            grade: as in a call.
            images: as in a call.
            lesions: as in a call.
            create_graph: keep the map's graph to the images, the lesions and the grader.
            own_graph: keep that to the map's own parameters, which not every map has.
        """


@dataclass(frozen=True)
class GmsvEvidence(Evidence):
    """The map of `Gmsv` (DeepMT-DR, section IV-B); without lesions it keeps all features.

    Args:
        score: what is explained, see `positive_score`.
        gmsv: holds the parameters; training and saving them is the caller's.
    """

    gmsv: Gmsv

    def _explain(
        self, grade: Grade[Output], images: Tensor, lesions: Tensor | None, create_graph: bool, *, own_graph: bool
    ) -> tuple[Output, Tensor]:
        output = grade(images, lesions)
        score = positive_score(output.logits, self.score)
        regions = torch.zeros_like(images[:, :1]) if lesions is None else lesions
        return output, self.gmsv(output.features, score, regions, create_graph=own_graph, feedback=create_graph)


@dataclass(frozen=True)
class GradCamEvidence(Evidence):
    """Grad-CAM of the coarsest features (Selvaraju et al. 2017): their channels weighted by their mean gradient."""

    def _explain(
        self, grade: Grade[Output], images: Tensor, lesions: Tensor | None, create_graph: bool, *, own_graph: bool
    ) -> tuple[Output, Tensor]:
        output = grade(images, lesions)
        features, score = output.features[-1], positive_score(output.logits, self.score)
        (gradient,) = score_gradients(score, [features], create_graph=create_graph)
        with map_arithmetic(images.device, create_graph=create_graph):
            weights = at_least_float32(gradient).mean(dim=(2, 3))
            coarse = torch.einsum("bc,bchw->bhw", weights, at_least_float32(features)).relu()
            return output, min_max(enlarge(coarse, images.shape[2:]))


@dataclass(frozen=True)
class GuidedBackpropEvidence(Evidence):
    """Guided backpropagation (Springenberg et al. 2015): the largest absolute guided gradient over the colours.

    Args:
        score: what is explained, see `positive_score`.
        network: the module inside ``grade`` whose ReLUs are guided.
    """

    network: nn.Module

    def _explain(
        self, grade: Grade[Output], images: Tensor, lesions: Tensor | None, create_graph: bool, *, own_graph: bool
    ) -> tuple[Output, Tensor]:
        relus = GuidedRelus(self.network)
        with relus.watched():
            output = grade(images, lesions)
        score = positive_score(output.logits, self.score)
        with relus.guided():
            (gradient,) = score_gradients(score, [images], create_graph=create_graph)
        with map_arithmetic(images.device, create_graph=create_graph):
            return output, min_max(at_least_float32(gradient).abs().amax(dim=1))


@dataclass(frozen=True)
class SmoothGradEvidence(Evidence):
    """SmoothGrad (Smilkov et al. 2017): the mean absolute gradient over noisy copies, its largest over the colours.

    The noisy copies of a batch go through the grader together, in a forward pass of their own, which leaves the running
    statistics of batch normalisation alone. Their noise is a function of torch's seed and of nothing else, the same for
    every image of a batch: so that the two images which a step compares differ by what they show, and that a map does
    not depend on what shares its batch. Training sets the seed anew for each step, and whoever shows or measures a map
    sets it first.

    Args:
        score: what is explained, see `positive_score`.
        network: the module inside ``grade`` that normalises batches.
        copies: n >= 1; memory and time grow with it.
        noise: standard deviation of the Gaussian noise as a share of each image's own range, >= 0 (Smilkov et al.
            advise 0.1 to 0.2).

    Raises:
        ValueError: no copy, or a negative noise.
    """

    network: nn.Module
    copies: int
    noise: float

    def __post_init__(self) -> None:
        if self.copies < 1:
            raise ValueError(f"copies must be at least 1, got {self.copies}")
        if not self.noise >= 0:
            raise ValueError(f"noise must not be negative, got {self.noise}")

    def _explain(
        self, grade: Grade[Output], images: Tensor, lesions: Tensor | None, create_graph: bool, *, own_graph: bool
    ) -> tuple[Output, Tensor]:
        output = grade(images, lesions)
        noisy = self._noisy(images)  # (nB, 3, H, W)
        repeated = None if lesions is None else lesions.repeat(self.copies, 1, 1, 1)
        with unrecorded(self.network):
            score = positive_score(grade(noisy, repeated).logits, self.score)
        (gradient,) = score_gradients(score, [noisy], create_graph=create_graph)
        with map_arithmetic(images.device, create_graph=create_graph):
            mean = at_least_float32(gradient).abs().reshape(self.copies, *images.shape).mean(dim=0)
            return output, min_max(mean.amax(dim=1))

    def _noisy(self, images: Tensor) -> Tensor:
        extent = images.amax(dim=(1, 2, 3), keepdim=True) - images.amin(dim=(1, 2, 3), keepdim=True)
        generator = torch.Generator(images.device if images.is_cuda else "cpu").manual_seed(torch.initial_seed())
        shape = (self.copies, 1, *images.shape[1:])
        noise = torch.randn(shape, generator=generator, dtype=images.dtype, device=images.device)
        return (images + self.noise * extent * noise).flatten(0, 1)
