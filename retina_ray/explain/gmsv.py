"""GMSV: DeepMT-DR's map of where a grading network sees retinopathy, made from the features of all its layers.

What lives here: Eqs. 2 and 3 and Algorithm 1, differentiable in images, features, lesion maps and parameters. What
does not: running the grader and its score (``explain/evidence.py``), and comparing maps (``losses/deepmt.py``).

How the paper is read, where it leaves a choice or cannot be followed to the letter:

* Eq. 2, lesions: S is a probability, so the intersection of a and b is ``a * b`` and the union ``a + b - a * b``, which
  is what is printed if both are 0 or 1. The four lesion planes are added up and cut off at 1.
* Eq. 2, UP: nearest. A cell of the feature map then covers a rectangle of pixels, and the expectations over pixels are
  exact sums over cells once the lesion map is averaged over these rectangles. No feature map is enlarged.
* Eq. 2, xi: a channel is divided by its own maximum in the image before it is compared, so that one xi in [0, 1] fits
  every image and every layer.
* Eq. 2, ``>``: as printed neither comparison has a gradient, and xi could not be learnt. ``step="soft"`` replaces both
  by a sigmoid; ``"hard"`` is the printed form, with xi fixed at its start; ``"none"`` is the authors' code, in which
  all channels count. Since IoU is divided by the largest one of the layer, theta_seg = 1 would select nothing.
* Eq. 2 without any lesion: every IoU is 0 and the printed set is empty; the layer keeps all its channels.
* Algorithm 1, lines 2 and 4: the weights of channels outside the selected set are 0, in both sums.
* Algorithm 1, line 5: bilinear, to the exact size of the next layer: twice the size where layers halve.
* Algorithm 1, line 6: the coarsest layer is not multiplied by its own w^J, as printed; line 8 is the loop's own step.
* Algorithm 1, line 10: V^1 is as small as the finest layer. It is enlarged to the image, its negative part (evidence
  against retinopathy) is cut off, and it is scaled to [0, 1], as the threshold phi_vis of Eqs. 5 and 9 needs.
* ``fusion="learned"`` is the authors' code instead of lines 4 to 6: each layer's map, cut off and scaled, is joined to
  the coarser result by a 1x1 convolution and a ReLU. It starts as their mean.

Shapes: ``B`` batch, ``L`` lesions, ``H W`` image; ``C`` channels and ``h w`` size of a layer, layers finest first.
"""

from collections.abc import Sequence
from typing import Literal

import torch
from jaxtyping import Float
from torch import Tensor, nn

from retina_ray.explain.maps import enlarge, map_arithmetic, min_max, safe_ratio, score_gradients
from retina_ray.losses.precision import at_least_float32
from retina_ray.losses.steps import Step, step

Fusion = Literal["sum", "learned"]

_XI_START = 0.5


class Gmsv(nn.Module):
    """Gradient-weighted, lesion-oriented multi-scale map of a grading network (DeepMT-DR, section IV-B).

    Parameters: ``xi``, one (C,) tensor for each layer, starting at 0.5 and learnt if the step is soft; and the 1x1
    convolutions of a learned fusion.

    Args:
        channels: of each layer, finest first.
        theta_seg: share of the layer's largest IoU that a channel must exceed, 0 <= theta_seg < 1.
        step: ``hard`` is the printed comparison; ``soft`` is ``sigmoid(sharpness * (value - threshold))``; ``none``
            leaves out the selection of Eq. 2.
        sharpness: > 0, of the soft step; what it compares lies in [0, 1].
        fusion: ``sum`` is Algorithm 1, ``learned`` the authors' code.

    Raises:
        ValueError: no layer, a theta_seg out of range, or a sharpness that is not positive.
    """

    def __init__(
        self, channels: Sequence[int], *, theta_seg: float, step: Step, sharpness: float, fusion: Fusion
    ) -> None:
        super().__init__()
        if not channels:
            raise ValueError("channels must name at least one layer")
        if not 0 <= theta_seg < 1:
            raise ValueError(f"theta_seg must be at least 0 and below 1, got {theta_seg}")
        if not sharpness > 0:
            raise ValueError(f"sharpness must be positive, got {sharpness}")
        self.channels = tuple(channels)
        self.theta_seg = theta_seg
        self.step: Step = step
        self.sharpness = sharpness
        self.xi = nn.ParameterList(
            nn.Parameter(torch.full((count,), _XI_START), requires_grad=step == "soft") for count in channels
        )
        self.joints = nn.ModuleList(_mean_of_two() for _ in channels[1:]) if fusion == "learned" else None

    def forward(
        self,
        features: Sequence[Float[Tensor, "B _ _ _"]],
        score: Float[Tensor, " B"],
        lesions: Float[Tensor, "B L H W"],
        *,
        create_graph: bool,
        feedback: bool = True,
    ) -> Float[Tensor, "B H W"]:
        """Return the map of the pixels that raise the score.

        Args:
            features: the grader's maps (B, C, h, w), finest first, from which the score was computed.
            score: (B,), the positive score y_DR, in a graph.
            lesions: (B, L, H, W) probabilities in [0, 1]; all zero selects every channel.
            create_graph: keep the graph, through the weights of Eq. 3 too; otherwise the map is detached.
            feedback: whether the graph leads to features, score and lesions; otherwise it ends at the parameters, as in
                the authors' code, whose maps go through an image library on their way.

        Returns:
            (B, H, W) in [0, 1], float32 or better. A map without contrast is all zero.

        Raises:
            ValueError: the features are not those of the layers named at construction.
        """
        found = tuple(layer.shape[1] for layer in features)
        if found != self.channels:
            raise ValueError(f"features of {self.channels} channels are expected, got {found}")
        gradients = score_gradients(score, features, create_graph=create_graph and feedback)
        if not feedback:
            features, lesions = [layer.detach() for layer in features], lesions.detach()
        with map_arithmetic(score.device, create_graph=create_graph):
            union = at_least_float32(lesions).sum(dim=1).clamp(max=1)
            layers = [at_least_float32(layer) for layer in features]
            weights = [
                self._selection(layer, xi, union) * at_least_float32(gradient).mean(dim=(2, 3))  # Eq. 3
                for layer, xi, gradient in zip(layers, self.xi, gradients, strict=True)
            ]
            maps = [torch.einsum("bc,bchw->bhw", weight, layer) for weight, layer in zip(weights, layers, strict=True)]
            fused = _sum(maps, weights) if self.joints is None else _join(maps, self.joints)
            return min_max(enlarge(fused, lesions.shape[2:]).relu())

    def _selection(
        self, layer: Float[Tensor, "B C h w"], xi: Float[Tensor, " C"], lesions: Float[Tensor, "B H W"]
    ) -> Float[Tensor, "B C"]:
        """Return how much each channel belongs to the selected set, 0..1 (DeepMT-DR, Eq. 2)."""
        if self.step == "none":
            return torch.ones_like(layer[:, :, 0, 0])
        scaled = safe_ratio(layer, layer.amax(dim=(2, 3), keepdim=True))
        masks = step(scaled, xi[:, None, None], kind=self.step, sharpness=self.sharpness)
        iou = lesion_iou(masks, lesions)
        share = safe_ratio(iou, iou.amax(dim=1, keepdim=True))
        no_lesion = share.amax(dim=1, keepdim=True) == 0
        return torch.where(no_lesion, 1.0, step(share, self.theta_seg, kind=self.step, sharpness=self.sharpness))


def lesion_iou(masks: Float[Tensor, "B C h w"], lesions: Float[Tensor, "B H W"]) -> Float[Tensor, "B C"]:
    """Return the intersection over union of each mask, enlarged to the lesion map, with that map (DeepMT-DR, Eq. 2).

    ``E[UP(m) s] / E[UP(m) + s - UP(m) s]`` over the H W pixels, UP being nearest: pixel y lies in cell ``y h // H``.

    Args:
        masks: (B, C, h, w) in [0, 1].
        lesions: (B, H, W) in [0, 1], of any size: the cells may differ in area.

    Returns:
        (B, C) in [0, 1]; 0 where both are empty.
    """
    rows = _cell_shares(masks.shape[2], lesions.shape[1], lesions)
    columns = _cell_shares(masks.shape[3], lesions.shape[2], lesions)
    area = rows.sum(dim=1)[:, None] * columns.sum(dim=1)  # (h, w), each cell's share of the image
    intersection = torch.einsum("bchw,bhw->bc", masks, rows @ lesions @ columns.T)
    union = torch.einsum("bchw,hw->bc", masks, area) + lesions.mean(dim=(1, 2))[:, None] - intersection
    return safe_ratio(intersection, union)


def _cell_shares(cells: int, pixels: int, like: Tensor) -> Tensor:
    """Return (cells, pixels): 1 / pixels where a pixel lies in a cell along one axis, else 0."""
    cell_of_pixel = torch.arange(pixels, device=like.device) * cells // pixels
    return (torch.arange(cells, device=like.device)[:, None] == cell_of_pixel).to(like.dtype) / pixels


def _sum(maps: Sequence[Float[Tensor, "B _ _"]], weights: Sequence[Float[Tensor, "B _"]]) -> Float[Tensor, "B h w"]:
    """Add the layers' maps from coarse to fine (DeepMT-DR, Algorithm 1, lines 3 to 10)."""
    fused = maps[-1]
    for layer_map, weight in zip(reversed(maps[:-1]), reversed(weights[:-1]), strict=True):
        layer_weight = weight.sum(dim=1)[:, None, None]
        fused = enlarge(fused, layer_map.shape[1:]) + layer_weight * layer_map
    return fused


def _join(maps: Sequence[Float[Tensor, "B _ _"]], joints: nn.ModuleList) -> Float[Tensor, "B h w"]:
    """Join the layers' maps from coarse to fine by learned convolutions (the authors' code)."""
    evidence = [min_max(layer_map.relu()) for layer_map in maps]
    fused = evidence[-1]
    for layer_map, joint in zip(reversed(evidence[:-1]), joints, strict=True):
        coarser = enlarge(fused, layer_map.shape[1:])
        fused = joint(torch.stack([coarser, layer_map], dim=1)).relu().squeeze(1)
    return fused


def _mean_of_two() -> nn.Conv2d:
    # Torch's random start makes both weights negative one time in four, and the ReLU behind them dead for good.
    joint = nn.Conv2d(2, 1, kernel_size=1)
    nn.init.constant_(joint.weight, 0.5)
    nn.init.zeros_(joint.get_parameter("bias"))
    return joint
