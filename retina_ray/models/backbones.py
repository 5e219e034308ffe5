"""Feature extractors: torchvision's image classifiers without their last layer.

What lives here: building one by name, its ImageNet or own weights, and the layer that Grad-CAM looks at.
What does not: heads for the retinal tasks (``models/sall.py``, ``models/deepmt``) and normalisation of images.

Every backbone takes images (B, 3, H, W) normalised with ImageNet's mean and standard deviation and returns (B, F).

Shapes: ``B`` batch, ``F`` features, ``H W`` image, ``h w`` last feature map.
"""

import copy
import difflib
import functools
import hashlib
import http.client
import pickle
import re
from pathlib import Path
from typing import Any

import safetensors
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from retina_ray.errors import ConfigError

CAM_PROBE_PIXELS = 224
"""Side of the image that finds the last feature map; the only one that ViT and MaxViT accept."""

_UNFIT = ("squeezenet", "mnasnet")
"""SqueezeNet classifies by a convolution, so there is no last linear layer; MNASNet's state dict carries a version
that safetensors cannot hold, so its bundles could not be read back."""

_INCEPTIONS = ("inception_v3", "googlenet")
_AUXILIARY_HEADS = ("AuxLogits.", "aux1.", "aux2.")

_BUNDLE_KEY = re.compile(r"(\d+)\.(?:backbone\.(.*)|heads\..*)")
"""A bundle numbers its networks, each of which is a backbone and heads."""

_OLD_DENSENET_KEY = re.compile(r"(.*denselayer\d+\.(?:norm|relu|conv))\.([12]\..*)")
"""torchvision's DenseNet files predate the ban on dots in module names: ``norm.1.weight`` is now ``norm1.weight``."""


def classifier_names() -> list[str]:
    """Return the names of torchvision's image classifiers, sorted."""
    names: list[str] = torchvision.models.list_models(module=torchvision.models)
    return names


def backbone_names() -> list[str]:
    """Return the names that ``build_backbone`` accepts, sorted."""
    return [name for name in classifier_names() if not name.startswith(_UNFIT)]


def check_name(name: str, accepted: list[str]) -> None:
    """Check that a name is one of those accepted.

    Raises:
        ConfigError: it is not; the nearest one is named.
    """
    if name in accepted:
        return
    nearest = difflib.get_close_matches(name, accepted, n=1, cutoff=0.0)[0]
    if name in torchvision.models.list_models():
        raise ConfigError("torchvision model that cannot be a backbone", name, f"choose another, e.g. {nearest}")
    raise ConfigError("unknown backbone", name, f"use {nearest} or another torchvision classifier")


def build_backbone(name: str, *, weights: str = "none") -> tuple[nn.Module, int]:
    """Build a torchvision classifier whose last linear layer is the identity and whose head drops nothing out.

    Layers of the head before the last one stay (MobileNetV3, VGG). ViT and MaxViT take 224 x 224 pixels only,
    Inception at least 75 x 75.

    Args:
        name: one of ``backbone_names()``, e.g. ``inception_v3`` (SALL, section IV-A) or ``resnet18``.
        weights: ``none`` for random weights; ``imagenet`` for torchvision's default ones, downloaded once into
            torch's hub folder; or the path of a ``.pth`` or ``.safetensors`` state dict, with or without the
            classifier's own keys, which are ignored; or the ``model.safetensors`` of a bundle with one network.

    Returns:
        The network, (B, 3, H, W) -> (B, F), and F.

    Raises:
        ConfigError: the name is unknown or not a classifier; the weights cannot be had, are damaged or do not fit.
    """
    check_name(name, backbone_names())
    file = weights_file(name, weights)
    network = _classifier(name, initialise=file is None)
    last_linear, num_features = _remove_classifier(network)
    if file is not None:
        _load_weights(network, _read_state_dict(file), head=last_linear, file=file)
    return network, num_features


def build_trunk(name: str, *, weights: str = "none") -> nn.Module:
    """Build a torchvision classifier whose head, its last child, is the identity: for use of the layers before it.

    Args:
        name: one of ``classifier_names()``.
        weights: as for ``build_backbone``; the head's are ignored.

    Raises:
        ConfigError: the name is unknown; the weights cannot be had, are damaged or do not fit.
    """
    file = weights_file(name, weights)
    network = _classifier(name, initialise=file is None)
    head = [child for child, _ in network.named_children()][-1]
    network.set_submodule(head, nn.Identity())
    if file is not None:
        _load_weights(network, _read_state_dict(file), head=head, file=file)
    return network


def weights_file(name: str, weights: str) -> Path | None:
    """Return the file of initial weights, downloaded if they are torchvision's and not there yet; None for ``none``.

    Raises:
        ConfigError: the name is not a classifier's; the file is missing, or cannot be downloaded.
    """
    check_name(name, classifier_names())
    if weights == "none":
        return None
    file = _imagenet_file(name) if weights == "imagenet" else Path(weights)
    if file.suffix not in (".pth", ".safetensors") or not file.is_file():
        raise ConfigError("no weights file", str(file), "give none, imagenet, or an existing .pth or .safetensors file")
    return file


@functools.cache
def check_image_size(name: str, pixels: int) -> None:
    """Check, without computing anything, that a backbone takes square images of that side.

    Raises:
        ConfigError: it does not, or the name is unknown.
    """
    check_name(name, backbone_names())
    with torch.device("meta"), torch.no_grad():
        network = _classifier(name, initialise=False).eval()
        try:
            network(torch.empty(2, 3, pixels, pixels))
        except (AssertionError, RuntimeError, ValueError) as error:
            reason = str(error).partition("\n")[0]
            value = f"{name} at data.image_size = {pixels} ({reason})"
            raise ConfigError(
                "the backbone does not take images of this size", value, "use the size it was made for"
            ) from error


def cam_layer(backbone: nn.Module) -> nn.Module:
    """Return the module whose output is the last spatial feature map (B, C, h, w) before pooling.

    Found by one forward pass of a copy, so the network itself keeps its flags, statistics and hooks.

    Raises:
        ConfigError: the network turns its image into tokens (ViT) or has no feature map at all.
    """
    probe = copy.deepcopy(backbone).eval()
    last_map: str | None = None

    def record(name: str, module: nn.Module, _inputs: Any, output: Any) -> None:
        nonlocal last_map
        if not isinstance(output, Tensor):
            return
        if output.ndim == 3:  # tokens: whatever map came before them is not the last representation
            last_map = None
        # An enclosing module reports after its parts, so of several with the same output the outermost is kept.
        elif output.ndim == 4 and output.shape[2:].numel() > 1 and not isinstance(module, nn.AdaptiveAvgPool2d):
            last_map = name

    for name, module in probe.named_modules():
        module.register_forward_hook(functools.partial(record, name))
    image = next(probe.parameters()).new_zeros(1, 3, CAM_PROBE_PIXELS, CAM_PROBE_PIXELS)
    with torch.no_grad():
        probe(image)
    if last_map is None:
        raise ConfigError(
            "no spatial feature map to explain", type(backbone).__name__, "use a convolutional backbone or Swin"
        )
    return backbone.get_submodule(last_map)


def _classifier(name: str, *, initialise: bool) -> nn.Module:
    options: dict[str, bool] = {}
    # Their ImageNet weights expect inputs scaled to mean 0.5 and deviation 0.5; transform_input rescales our
    # ImageNet-normalised ones. It is not part of the state dict, so it is on for random weights as well: a bundle,
    # which is rebuilt with weights="none", then computes what was trained.
    if name in _INCEPTIONS:
        options = {"aux_logits": False, "transform_input": True, "init_weights": initialise}
    network: nn.Module = torchvision.models.get_model(name, weights=None, **options)
    return network


def _remove_classifier(network: nn.Module) -> tuple[str, int]:
    """Put the identity in place of the last linear layer; return its name and the number of its inputs."""
    name, linear = [(name, module) for name, module in network.named_modules() if isinstance(module, nn.Linear)][-1]
    head = name.split(".", maxsplit=1)[0]
    for child_name, child in network.named_children():
        if child_name == head or isinstance(child, nn.Dropout):
            for module in child.modules():
                if isinstance(module, nn.Dropout):
                    module.p = 0.0  # dropout before the heads is the grader's own switch
    network.set_submodule(name, nn.Identity())
    return name, linear.in_features


def _imagenet_file(name: str) -> Path:
    """Return the local file of torchvision's default weights, downloaded if it is not there yet."""
    url: str = torchvision.models.get_model_weights(name)["DEFAULT"].url
    file = Path(torch.hub.get_dir(), "checkpoints", url.rsplit("/", maxsplit=1)[1])
    sha256_prefix = file.stem.rsplit("-", maxsplit=1)[1]
    if not file.is_file():
        file.parent.mkdir(parents=True, exist_ok=True)
        try:
            torch.hub.download_url_to_file(url, str(file), sha256_prefix, progress=False)
        except (OSError, RuntimeError, http.client.HTTPException) as error:
            fix = f"put {file.name} from {url} into {file.parent}, or set the weights to none or to a file"
            raise ConfigError(f"cannot download ImageNet weights ({error})", file.name, fix) from error
    with file.open("rb") as stream:
        digest = hashlib.file_digest(stream, "sha256").hexdigest()
    if not digest.startswith(sha256_prefix):
        raise ConfigError("damaged ImageNet weights (SHA-256 differs from the name)", str(file), "delete the file")
    return file


def _read_state_dict(file: Path) -> dict[str, Any]:
    try:
        if file.suffix == ".safetensors":
            return safetensors.torch.load_file(file)
        state = torch.load(file, map_location="cpu", weights_only=True)
    except (OSError, EOFError, RuntimeError, pickle.UnpicklingError, safetensors.SafetensorError) as error:
        first_line = str(error).partition("\n")[0]
        raise ConfigError(f"unreadable weights ({first_line})", str(file), "fetch or export the file again") from error
    if not isinstance(state, dict) or not all(isinstance(value, Tensor) for value in state.values()):
        raise ConfigError("weights that are not a state dict", str(file), "save model.state_dict() alone")
    return state


def _load_weights(network: nn.Module, state: dict[str, Any], *, head: str, file: Path) -> None:
    state = _of_a_bundle(state, file)
    for key in list(state):  # edited in place: the dict itself carries the version numbers of old batch norms
        if key.startswith((f"{head}.", *_AUXILIARY_HEADS)):
            del state[key]
        elif old := _OLD_DENSENET_KEY.fullmatch(key):
            state["".join(old.groups())] = state.pop(key)
    wanted = network.state_dict()
    misshapen = [key for key in wanted if key in state and state[key].shape != wanted[key].shape]
    if not misshapen:
        missing, unexpected = network.load_state_dict(state, strict=False)
        if not missing and not unexpected:
            return
    else:
        missing, unexpected = [], []
    kinds = {"missing": missing, "unexpected": unexpected, "of another shape": misshapen}
    found = "; ".join(f"{len(keys)} {kind}: {', '.join(keys[:3])}" for kind, keys in kinds.items() if keys)
    raise ConfigError(f"weights do not fit the backbone ({found})", str(file), "use the weights of the same model")


def _of_a_bundle(state: dict[str, Any], file: Path) -> dict[str, Any]:
    """Return the backbone's part of a bundle's weights; any other state dict as it is."""
    keys = {key: match for key in state if (match := _BUNDLE_KEY.fullmatch(key))}
    if not keys or len(keys) < len(state):
        return state
    networks = {match[1] for match in keys.values()}
    if len(networks) > 1:
        fix = "use the bundle of a multi-task run, which has one network"
        raise ConfigError(f"weights of {len(networks)} networks", str(file), fix)
    return {match[2]: state[key] for key, match in keys.items() if match[2]}
