"""Grad-CAM from the forward pass that grades, cheap since the graph begins behind the last feature map.

What lives here: cutting a network there, and the maps of its grades. What does not: finding that layer
(``models/backbones.cam_layer``), and Grad-CAM of any layer by a forward pass of its own (``explain/gradcam.py``),
which gives the same maps.

Shapes: ``B`` batch, ``K`` grades, ``C`` channels, ``H W`` image, ``h w`` feature map.
"""

import copy
import threading
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from retina_ray.explain.maps import enlarge, map_arithmetic, min_max, score_gradients
from retina_ray.losses.precision import at_least_float32


class CutNetwork:
    """A network that computes without a graph up to a layer's output, and with one from there on.

    It has modules of its own and the tensors of the network that it is made from, which stays as it is, without hooks,
    and may be in use elsewhere. Several threads may call it at once.

    Args:
        network: in evaluation mode.
        layer: a module inside it that runs once and returns a map (B, C, h, w).
    """

    def __init__(self, network: nn.Module, layer: nn.Module) -> None:
        name = next(name for name, module in network.named_modules() if module is layer)
        shared: dict[int, Any] = {id(tensor): tensor for tensor in (*network.parameters(), *network.buffers())}
        self._network = copy.deepcopy(network, shared)  # what the memo holds is taken for copied
        self._cut = _Cut(self._network.get_submodule(name))
        self._network.set_submodule(name, self._cut)

    @torch.inference_mode(False)
    def __call__(self, inputs: Tensor) -> tuple[Any, Tensor]:
        """Return what the network returns, and the layer's output (B, C, h, w), with the graph between them.

        Surrounding ``no_grad`` or ``inference_mode`` does not matter.

        Args:
            inputs: as the network takes them.
        """
        with torch.no_grad():  # which the cut ends early
            output = self._network(inputs)
        return output, self._cut.take()


class _Cut(nn.Module):
    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer = layer
        self._of_this_thread = threading.local()

    def forward(self, *inputs: Tensor) -> Tensor:
        features: Tensor = self.layer(*inputs).detach().requires_grad_()
        self._of_this_thread.features = features
        torch.set_grad_enabled(True)  # a setting of the thread, taken back where the caller's no_grad ends
        return features.clone()  # DenseNet's ReLU writes over what it is given

    def take(self) -> Tensor:
        features: Tensor = self._of_this_thread.__dict__.pop("features")
        return features


@torch.inference_mode(False)
def grade_cams(logits: Mapping[str, Tensor], features: Tensor, size: Sequence[int]) -> dict[str, Tensor]:
    """Return the Grad-CAM heat map of each task's most probable grade (Selvaraju et al. 2017).

    ``ReLU(sum_c mean_hw(dz_k / dA_c) * A_c)`` of the features A and the largest logit z_k, bilinearly enlarged, then
    scaled per image so that its range is [0, 1]; a map without contrast, such as one with no positive evidence, is all
    zero. Surrounding ``no_grad`` or ``inference_mode`` does not matter.

    Args:
        logits: (B, K) by task, in a graph that begins at the features.
        features: (B, C, h, w), requiring a gradient.
        size: (H, W) of the maps.

    Returns:
        (B, H, W) float32 or better by task.
    """
    largest = [values.max(dim=1).values for values in logits.values()]
    gradients = [score_gradients(score, [features], create_graph=False)[0] for score in largest]
    with map_arithmetic(features.device, create_graph=False):
        maps = at_least_float32(features)
        weights = torch.stack([at_least_float32(gradient).mean(dim=(2, 3)) for gradient in gradients])
        coarse = torch.einsum("tbc,bchw->tbhw", weights, maps).relu()
        heat = min_max(enlarge(coarse.flatten(0, 1), size)).reshape(*coarse.shape[:2], *size)
        return dict(zip(logits, heat, strict=True))
