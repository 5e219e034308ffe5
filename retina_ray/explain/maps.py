"""What the maps inside a loss are made of: gradients of a score, quotients, enlarging, scaling to [0, 1].

What lives here: these few steps, each safe in value and in gradient where a map is flat or empty. What does not: the
maps themselves (``explain/gmsv.py``, ``explain/evidence.py``) and Grad-CAM for figures (``explain/gradcam.py``).

Shapes: ``B`` batch, ``C`` channels, ``H W`` image, ``h w`` feature map.
"""

import contextlib
from collections.abc import Iterator, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional


def score_gradients(score: Float[Tensor, " B"], tensors: Sequence[Tensor], *, create_graph: bool) -> tuple[Tensor, ...]:
    """Return each image's gradient of its own score with respect to tensors that the score was computed from.

    One backward pass gives all: the images of a batch do not meet in the network, so the gradient of the summed score
    is each image's own. (Batch normalisation in training mode lets them meet, there as in any loss.)

    Args:
        score: (B,), in a graph.
        tensors: (B, ...) each, such as the images or the features of several layers.
        create_graph: whether the gradients can be differentiated again.

    Returns:
        A gradient of each tensor's own shape.

    Raises:
        RuntimeError: the score does not depend on one of the tensors.
    """
    # The graph is retained, since the loss of the same forward pass comes back through it.
    return torch.autograd.grad(score.sum(), list(tensors), create_graph=create_graph, retain_graph=True)


@contextlib.contextmanager
def map_arithmetic(device: torch.device, *, create_graph: bool) -> Iterator[None]:
    """Compute a map without autocast, and with a graph or without one, whatever the caller's modes are."""
    with torch.set_grad_enabled(create_graph), torch.autocast(device.type, enabled=False):
        yield


def safe_ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Divide, giving 0 with gradient 0 where the denominator is zero, negative or too small for a finite gradient.

    Args:
        numerator: finite.
        denominator: broadcastable to it. NaN stays NaN, so that it is seen.
    """
    # The square root of the smallest normal number: a gradient goes as the reciprocal, its norm as the square.
    negligible = denominator <= torch.finfo(denominator.dtype).tiny ** 0.5
    return numerator / denominator.masked_fill(negligible, torch.inf)


def enlarge(maps: Float[Tensor, "B h w"], size: Sequence[int]) -> Float[Tensor, "B H W"]:
    """Resize maps bilinearly to ``size`` = (H, W), so that the outer edges of the pixels coincide."""
    return functional.interpolate(maps.unsqueeze(1), list(size), mode="bilinear", align_corners=False).squeeze(1)


def min_max(maps: Float[Tensor, "B H W"]) -> Float[Tensor, "B H W"]:
    """Scale each map to the range [0, 1]; a map that is flat but for rounding gives zeros, and passes no gradient."""
    low, high = maps.amin(dim=(1, 2), keepdim=True), maps.amax(dim=(1, 2), keepdim=True)
    contrast = high - low
    # Enlarging a flat map leaves it with the rounding errors of its weights, which must not become a picture.
    rounding = 16 * torch.finfo(maps.dtype).eps * high.abs()
    return safe_ratio(maps - low, contrast.masked_fill(contrast <= rounding, 0))
