"""DeepMT-DR's joint step as the paper says it, nothing kept and nothing rearranged: what the fast one is held against.

Super-resolve, segment both images, grade, and for each map run the grader once more, as the authors' code does. The
nets are the method's own, except that an enlarged map is enlarged before it is convolved.
"""

import copy

import torch
from torch import Tensor, nn

from retina_ray.data.batch import Batch, to_unit_range
from retina_ray.methods.deepmt.graph import StageNetwork, StepOutputs
from retina_ray.methods.deepmt.method import DeepMT
from retina_ray.methods.deepmt.terms import TERMS, counted
from retina_ray.models.deepmt.resampling import degrade
from retina_ray.models.deepmt.up_convolution import UpConvolution


def plain(network: StageNetwork) -> StageNetwork:
    """Return a copy whose enlarging convolutions are two steps, with the same weights."""
    twin = copy.deepcopy(network)
    for name, module in list(twin.named_modules()):
        if isinstance(module, UpConvolution):
            twin.set_submodule(name, _two_steps(module))
    return twin


def _two_steps(module: UpConvolution) -> nn.Module:
    convolution = nn.Conv2d(
        module.in_channels,
        module.out_channels,
        module.kernel_size[0],
        padding=module.kernel_size[0] // 2,
        bias=module.bias is not None,
    )
    convolution.load_state_dict(module.state_dict())
    convolution.requires_grad_(module.weight.requires_grad)
    return nn.Sequential(nn.Upsample(scale_factor=2, mode="nearest"), convolution).train(module.training)


def reference_terms(method: DeepMT, network: StageNetwork, batch: Batch) -> dict[str, Tensor]:
    """Return the joint stage's terms, each a mean over the images that it is about."""
    nets, high = network.nets, to_unit_range(batch.images)
    restored = nets.restore(degrade(high, nets.scale))
    logits = nets.segment(restored)
    lesions = logits.softmax(dim=1)
    with torch.no_grad():
        lesions_hr = nets.segment(high).softmax(dim=1)
    outputs: StepOutputs = {
        "restored": restored,
        "lesion_logits": logits,
        "lesions": lesions,
        "lesions_hr": lesions_hr,
        "logits": nets.grade(restored, lesions[:, :-1]).dropped_logits,
        "evidence": _map(network, restored, lesions, create_graph=True),
        "evidence_hr": _map(network, high, lesions_hr, create_graph=False),
    }
    found = {}
    for name in method.weights:
        weight = counted(name, batch, method.task)
        values = TERMS[name](outputs, high, batch, method.config, method.task)
        found[name] = (values * weight).sum() / weight.sum().clamp(min=1)
    return found


def _map(network: StageNetwork, images: Tensor, lesions: Tensor, *, create_graph: bool) -> Tensor:
    assert network.evidence is not None
    return network.evidence(network.nets.grade, images, lesions[:, :-1], create_graph=create_graph)[1]
