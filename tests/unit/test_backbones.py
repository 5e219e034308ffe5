"""Backbones: every family's shape, dropout and feature map; weights from files and from torchvision."""

import hashlib
import os
import pickle
from pathlib import Path
from types import SimpleNamespace

import pytest
import safetensors.torch
import torch
import torchvision
from torch import Tensor, nn

from retina_ray.errors import ConfigError
from retina_ray.models.backbones import backbone_names, build_backbone, cam_layer

SMALL = "shufflenet_v2_x0_5"


def small_classifier() -> nn.Module:
    torch.manual_seed(3)
    network = torchvision.models.get_model(SMALL)
    for module in network.modules():  # running statistics other than 0 and 1 show that buffers are loaded too
        if isinstance(module, nn.BatchNorm2d):
            nn.init.uniform_(module.running_mean, -0.1, 0.1)
    return network


def assert_loaded(backbone: nn.Module, state: dict[str, Tensor]) -> None:
    for key, value in backbone.state_dict().items():
        assert torch.equal(value, state[key]), key


@pytest.mark.parametrize(
    ("name", "pixels", "num_features", "feature_map"),
    [
        ("resnet18", 64, 512, (512, 2, 2)),
        ("densenet121", 64, 1024, (1024, 2, 2)),
        ("efficientnet_b0", 64, 1280, (1280, 2, 2)),
        ("convnext_tiny", 64, 768, (768, 2, 2)),
        ("mobilenet_v3_small", 64, 1024, (576, 2, 2)),
        ("shufflenet_v2_x0_5", 64, 1024, (1024, 2, 2)),
        ("regnet_y_400mf", 64, 440, (440, 2, 2)),
        ("swin_t", 64, 768, (768, 2, 2)),
        ("inception_v3", 107, 2048, (2048, 2, 2)),
    ],
)
def test_a_family_gives_features_without_dropout_and_a_feature_map(
    name: str, pixels: int, num_features: int, feature_map: tuple[int, int, int]
) -> None:
    network, count = build_backbone(name)
    assert count == num_features
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout) and module.p > 0] == []

    seen: list[Tensor] = []
    flags = {module: module.training for module in network.modules()}
    cam_layer(network).register_forward_hook(lambda _module, _inputs, output: seen.append(output))
    assert {module: module.training for module in network.modules()} == flags
    with torch.no_grad():
        features = network.eval()(torch.randn(2, 3, pixels, pixels))
    assert features.shape == (2, num_features)
    assert [tuple(output.shape) for output in seen] == [(2, *feature_map)]


@pytest.mark.parametrize(("name", "num_features"), [("vgg11_bn", 4096), ("alexnet", 4096), ("maxvit_t", 512)])
def test_large_families_on_the_meta_device(name: str, num_features: int) -> None:
    with torch.device("meta"):
        network, count = build_backbone(name)
        assert count == num_features
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, num_features)
    assert [module.p for module in network.modules() if isinstance(module, nn.Dropout) and module.p > 0] == []
    assert isinstance(cam_layer(network), nn.Module)


def test_a_vision_transformer_has_features_but_no_feature_map() -> None:
    with torch.device("meta"):
        network, count = build_backbone("vit_b_16")
        assert network(torch.empty(2, 3, 224, 224)).shape == (2, count) == (2, 768)
    with pytest.raises(ConfigError, match="VisionTransformer"):
        cam_layer(network)


def test_inception_rescales_our_normalised_input_whatever_its_weights() -> None:
    # The published weights want (x - 0.5) / 0.5; the pixel value 0.5 arrives ImageNet-normalised and must become 0.
    with torch.device("meta"):
        network, _ = build_backbone("inception_v3")
    assert network.AuxLogits is None
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    grey = ((0.5 - mean) / std).reshape(1, 3, 1, 1)
    torch.testing.assert_close(network._transform_input(grey), torch.zeros(1, 3, 1, 1), atol=1e-6, rtol=0)


def test_unknown_and_unsuitable_names_are_refused() -> None:
    with pytest.raises(ConfigError, match="resnet18"):
        build_backbone("resnet_18")
    for name in ("fasterrcnn_resnet50_fpn", "fcn_resnet50", "r3d_18", "quantized_resnet18", "squeezenet1_0"):
        assert name not in backbone_names()
        with pytest.raises(ConfigError, match="cannot be a backbone"):
            build_backbone(name)
    assert {"inception_v3", "resnet18", "vit_b_16"} <= set(backbone_names())


def test_every_imagenet_file_carries_its_hash() -> None:
    for name in backbone_names():
        stem = Path(torchvision.models.get_model_weights(name)["DEFAULT"].url).stem
        assert int(stem.rsplit("-", maxsplit=1)[1], 16) > 0, name


@pytest.mark.parametrize("suffix", [".pth", ".safetensors"])
@pytest.mark.parametrize("whole", [True, False])
def test_weights_from_a_file_with_or_without_the_classifier(tmp_path: Path, suffix: str, whole: bool) -> None:
    state = small_classifier().state_dict()
    if not whole:
        del state["fc.weight"], state["fc.bias"]
    file = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save(state, file)
    else:
        safetensors.torch.save_file(dict(state), file)
    backbone, _ = build_backbone(SMALL, weights=str(file))
    assert_loaded(backbone, state)


def test_a_bundle_lends_its_backbone(tmp_path: Path) -> None:
    state = small_classifier().state_dict()
    backbone = {f"0.backbone.{key}": value for key, value in state.items() if not key.startswith("fc.")}
    file = tmp_path / "model.safetensors"
    safetensors.torch.save_file({**backbone, "0.heads.dr.weight": torch.ones(5, 1024)}, file)
    network, _ = build_backbone(SMALL, weights=str(file))
    assert_loaded(network, state)
    safetensors.torch.save_file({**backbone, "1.heads.amd.weight": torch.ones(4, 1024)}, file)
    with pytest.raises(ConfigError, match="weights of 2 networks"):
        build_backbone(SMALL, weights=str(file))


def test_auxiliary_heads_in_a_file_are_ignored(tmp_path: Path) -> None:
    network = torchvision.models.googlenet(aux_logits=True, init_weights=False)
    torch.save(network.state_dict(), tmp_path / "googlenet.pth")
    backbone, _ = build_backbone("googlenet", weights=str(tmp_path / "googlenet.pth"))
    assert_loaded(backbone, network.state_dict())


def test_densenets_old_key_names_are_understood(tmp_path: Path) -> None:
    state = torchvision.models.densenet121().state_dict()
    old = {}
    for key, value in state.items():
        parts = key.split(".")
        if len(parts) == 5 and parts[3][-1] in "12" and parts[2].startswith("denselayer"):
            parts[3:4] = [parts[3][:-1], parts[3][-1]]
        if parts[-1] != "num_batches_tracked":  # newer than those files
            old[".".join(parts)] = value
    assert "features.denseblock1.denselayer1.norm.1.weight" in old
    torch.save(old, tmp_path / "densenet.pth")
    backbone, _ = build_backbone("densenet121", weights=str(tmp_path / "densenet.pth"))
    assert_loaded(backbone, state)


def test_weights_that_do_not_fit_name_the_first_keys(tmp_path: Path) -> None:
    file, state = tmp_path / "weights.pth", small_classifier().state_dict()
    torch.save({key: value for key, value in state.items() if key != "conv5.0.weight"}, file)
    with pytest.raises(ConfigError, match=r"1 missing: conv5\.0\.weight"):
        build_backbone(SMALL, weights=str(file))
    torch.save({**state, "conv9.weight": torch.zeros(1)}, file)
    with pytest.raises(ConfigError, match=r"1 unexpected: conv9\.weight"):
        build_backbone(SMALL, weights=str(file))
    torch.save({**state, "conv5.0.weight": torch.zeros(1)}, file)
    with pytest.raises(ConfigError, match=r"1 of another shape: conv5\.0\.weight"):
        build_backbone(SMALL, weights=str(file))


class Payload:
    def __reduce__(self) -> tuple[object, tuple[str]]:
        return os.mkdir, ("executed",)


def test_unusable_weights_files_are_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigError, match="no weights file"):
        build_backbone(SMALL, weights="imagenett")
    with pytest.raises(ConfigError, match="no weights file"):
        build_backbone(SMALL, weights=str(tmp_path / "absent.pth"))
    for name in ("torn.pth", "torn.safetensors"):
        Path(name).write_bytes(b"PK\x03\x04 torn")
        with pytest.raises(ConfigError, match="unreadable weights"):
            build_backbone(SMALL, weights=name)
    Path("evil.pth").write_bytes(pickle.dumps({"conv1.0.weight": Payload()}, protocol=2))
    with pytest.raises(ConfigError, match="unreadable weights"):
        build_backbone(SMALL, weights="evil.pth")
    assert not Path("executed").exists()
    torch.save({"model": small_classifier().state_dict(), "epoch": 3}, "checkpoint.pth")
    with pytest.raises(ConfigError, match="not a state dict"):
        build_backbone(SMALL, weights="checkpoint.pth")


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """torch's weights folder, empty, behind a proxy that refuses every connection."""
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path / "hub"))
    monkeypatch.setenv("https_proxy", "http://127.0.0.1:9")
    monkeypatch.delenv("no_proxy", raising=False)
    return tmp_path / "hub" / "checkpoints"


def test_imagenet_weights_offline_say_which_file_goes_where(hub: Path) -> None:
    with pytest.raises(ConfigError) as caught:
        build_backbone("resnet18", weights="imagenet")
    assert caught.value.value == "resnet18-f37072fd.pth"
    assert str(hub) in caught.value.fix
    assert "https://download.pytorch.org/models/resnet18-f37072fd.pth" in caught.value.fix


def test_imagenet_weights_are_downloaded_once_and_checked(
    hub: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    state = small_classifier().state_dict()
    torch.save(state, tmp_path / "mirror.pth")
    prefix = hashlib.sha256((tmp_path / "mirror.pth").read_bytes()).hexdigest()[:8]
    remote = (tmp_path / "mirror.pth").rename(tmp_path / f"small-{prefix}.pth")
    entry = {"DEFAULT": SimpleNamespace(url=remote.as_uri())}
    monkeypatch.setattr(torchvision.models, "get_model_weights", lambda _name: entry)

    assert_loaded(build_backbone(SMALL, weights="imagenet")[0], state)
    remote.unlink()
    assert_loaded(build_backbone(SMALL, weights="imagenet")[0], state)

    local = hub / remote.name
    damaged = bytearray(local.read_bytes())
    damaged[len(damaged) // 2] ^= 1  # torch.load alone would not notice
    local.write_bytes(damaged)
    with pytest.raises(ConfigError, match="damaged ImageNet weights"):
        build_backbone(SMALL, weights="imagenet")
