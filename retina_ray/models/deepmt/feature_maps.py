"""Feature maps: the convolutional part of torchvision's image classifiers, in stages.

What lives here: which layers these are in each family. What does not: weights and their files
(``models/backbones.py``), pooling and grading (``grading.py``).

Shapes: ``B`` batch, ``C`` channels of a stage, ``H W`` image, ``h w`` a stage's map.
"""

import functools

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torchvision.models import DenseNet, GoogLeNet, Inception3, ResNet

from retina_ray.models.backbones import build_trunk, check_name, classifier_names

_FAMILIES = ("densenet", "efficientnet_", "googlenet", "inception_v3", "mobilenet_", "resnet", "squeezenet", "vgg")

_PROBE_PIXELS = 96
"""Side of the image that counts channels; Inception takes none below 75."""


def feature_map_names() -> list[str]:
    """Return the names that ``build_feature_maps`` accepts, sorted."""
    return [name for name in classifier_names() if name.startswith(_FAMILIES)]


def build_feature_maps(name: str, *, weights: str = "none") -> tuple[nn.ModuleList, tuple[int, ...]]:
    """Build the layers of a torchvision classifier from the image to the last map before its pooling.

    A ResNet has four stages, the stem being part of the first, the finest; any other network is one stage. ReLUs are
    modules, except those of Inception and GoogLeNet, which torchvision writes as functions.

    Args:
        name: one of ``feature_map_names()``, e.g. ``resnet18`` (DeepMT-DR, section IV-A).
        weights: as for ``backbones.build_backbone``: ``none``, ``imagenet`` or a file; the classifier's own are
            ignored.

    Returns:
        The stages, of which the first takes ImageNet-normalised images (B, 3, H, W) and each further one the map
        before; and the channels C of each stage's map (B, C, h, w).

    Raises:
        ConfigError: the name is unknown or of another family; the weights cannot be had, are damaged or do not fit.
    """
    check_name(name, feature_map_names())
    return _stages(build_trunk(name, weights=weights)), _stage_channels(name)


@functools.cache
def _stage_channels(name: str) -> tuple[int, ...]:
    channels = []
    with torch.device("meta"), torch.no_grad():
        maps = torch.empty(1, 3, _PROBE_PIXELS, _PROBE_PIXELS)
        for stage in _stages(build_trunk(name)).eval():
            maps = stage(maps)
            channels.append(maps.shape[1])
    return tuple(channels)


def _stages(trunk: nn.Module) -> nn.ModuleList:
    if isinstance(trunk, ResNet):
        finest = nn.Sequential(trunk.conv1, trunk.bn1, trunk.relu, trunk.maxpool, trunk.layer1)
        return nn.ModuleList([finest, trunk.layer2, trunk.layer3, trunk.layer4])
    if isinstance(trunk, DenseNet):
        return nn.ModuleList([nn.Sequential(trunk.features, nn.ReLU(inplace=True))])
    if isinstance(trunk, GoogLeNet | Inception3):
        layers = dict(trunk.named_children())
        for after_the_maps in ("avgpool", "dropout", "fc"):
            del layers[after_the_maps]
        return nn.ModuleList([nn.Sequential(_InceptionRange(), *layers.values())])
    return nn.ModuleList([trunk.get_submodule("features")])


class _InceptionRange(nn.Module):
    """Rescales ImageNet-normalised RGB to mean 0.5 and deviation 0.5, which both Inceptions' published weights expect.

    It does so for other weights too, as ``backbones.build_backbone`` does, so that a saved network computes what was
    trained. Planes after the first three, such as lesion maps, pass unchanged.
    """

    def forward(self, images: Float[Tensor, "B P H W"]) -> Float[Tensor, "B P H W"]:
        rgb = images[:, :3]
        mean, std = rgb.new_tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]]).reshape(2, 3, 1, 1)
        return torch.cat(((rgb * std + mean - 0.5) / 0.5, images[:, 3:]), dim=1)
