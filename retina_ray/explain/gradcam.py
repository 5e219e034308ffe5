"""Grad-CAM: where in the photograph the network sees a grade (Selvaraju et al. 2017; SALL, section IV-D).

What lives here: the heat map through captum. What does not: which layer to look at (``models/backbones.cam_layer``)
and drawing the map over its photograph (``report/figures``).

Shapes: ``B`` batch, ``K`` grades, ``C`` channels, ``H W`` image, ``h w`` feature map.
"""

import contextlib
from collections.abc import Callable, Iterator

import torch
from captum.attr import LayerAttribution, LayerGradCam
from jaxtyping import Float, Int
from torch import Tensor, nn


class TaskLogits(nn.Module):
    """One task's logits of a network that grades several tasks.

    Args:
        model: images -> mapping from task to logits, e.g. ``MultiTaskGrader``.
        task: the task to pick.
    """

    def __init__(self, model: nn.Module, task: str) -> None:
        super().__init__()
        self.model = model
        self.task = task

    def forward(self, images: Float[Tensor, "B 3 H W"]) -> Float[Tensor, "B K"]:
        """Return the task's logits (B, K) of images (B, 3, H, W)."""
        logits: Tensor = self.model(images)[self.task]
        return logits


def grad_cam(
    model_forward: Callable[[Tensor], Tensor],
    layer: nn.Module,
    images: Float[Tensor, "B 3 H W"],
    classes: Int[Tensor, " B"],
) -> Float[Tensor, "B H W"]:
    """Return each image's Grad-CAM heat map for a class.

    ``ReLU(sum_c mean_hw(dz_k / dA_c) * A_c)`` of the layer's output A (B, C, h, w) and the logit z_k of the class,
    bilinearly enlarged, then scaled per image so that its range is [0, 1].

    A module runs in eval mode and gets its training flags back; a plain callable must see to that itself. Parameters
    and images get no gradients, and surrounding ``no_grad`` or ``inference_mode`` does not matter.

    Args:
        model_forward: images (B, 3, H, W) -> logits (B, K).
        layer: a module that runs inside it and returns a spatial map.
        images: (B, 3, H, W), ImageNet-normalised.
        classes: (B,) the class explained, 0..K-1.

    Returns:
        (B, H, W) in [0, 1]. A map without any contrast, such as one with no positive evidence, is all zero.
    """
    with contextlib.ExitStack() as stack:
        if isinstance(model_forward, nn.Module):
            stack.enter_context(_evaluating(model_forward))
        stack.enter_context(torch.inference_mode(False))
        # captum clones the layer's output on its way onwards, so an in-place ReLU behind it changes nothing here.
        coarse = LayerGradCam(model_forward, layer).attribute(
            images.detach().clone(), target=classes, relu_attributions=True
        )
    heat = LayerAttribution.interpolate(coarse.detach(), tuple(images.shape[2:]), "bilinear").squeeze(1)
    low, high = heat.amin(dim=(1, 2), keepdim=True), heat.amax(dim=(1, 2), keepdim=True)
    contrast = high - low
    return torch.where(contrast > 0, (heat - low) / contrast.clamp(min=torch.finfo(heat.dtype).tiny), 0.0)


@contextlib.contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    """Put a module in eval mode and give every part its own flag back: frozen parts differ from the rest."""
    flags = {module: module.training for module in model.modules()}
    model.eval()
    try:
        yield
    finally:
        for module, training in flags.items():
            module.training = training
