"""DeepMT-DR's grader: its feature maps, its pooling, its lesion planes."""

from pathlib import Path

import pytest
import torch
import torchvision
from pydantic import ValidationError
from torch import Tensor, nn
from torch.nn import functional

from retina_ray.config_method import DeepMTConfig, EvidenceConfig, GradingConfig
from retina_ray.errors import ConfigError
from retina_ray.models.backbones import build_backbone
from retina_ray.models.deepmt.feature_maps import build_feature_maps, feature_map_names
from retina_ray.models.deepmt.grading import Grader
from retina_ray.models.deepmt.spatial_pyramid import SpatialPyramidPooling

# Feature maps


@pytest.mark.parametrize(
    ("name", "channels", "sides"),
    [
        ("resnet18", (64, 128, 256, 512), (32, 16, 8, 4)),
        ("resnet50", (256, 512, 1024, 2048), (32, 16, 8, 4)),
        ("vgg16", (512,), (4,)),
        ("squeezenet1_0", (512,), (7,)),
        ("densenet121", (1024,), (4,)),
        ("mobilenet_v2", (1280,), (4,)),
        ("mobilenet_v3_small", (576,), (4,)),
        ("efficientnet_b0", (1280,), (4,)),
        ("googlenet", (1024,), (4,)),
        ("inception_v3", (2048,), (2,)),
    ],
)
def test_a_family_has_maps_of_these_channels_and_sizes(
    name: str, channels: tuple[int, ...], sides: tuple[int, ...]
) -> None:
    assert name in feature_map_names()
    with torch.device("meta"):
        stages, found = build_feature_maps(name)
        maps, shapes = torch.empty(2, 3, 128, 128), []
        for stage in stages:
            maps = stage(maps)
            shapes.append(tuple(maps.shape))
    assert found == channels
    assert shapes == [(2, count, side, side) for count, side in zip(channels, sides, strict=True)]


@pytest.mark.parametrize("name", ["resnet18", "densenet121", "googlenet", "inception_v3"])
def test_the_last_map_is_what_the_classifier_pools(name: str, tmp_path: Path) -> None:
    options = {"init_weights": False} if name in ("googlenet", "inception_v3") else {}
    torch.save(torchvision.models.get_model(name, **options).state_dict(), tmp_path / "weights.pth")
    backbone, _ = build_backbone(name, weights=str(tmp_path / "weights.pth"))
    stages, _ = build_feature_maps(name, weights=str(tmp_path / "weights.pth"))
    images = torch.randn(2, 3, 80, 80, dtype=torch.float64)
    with (
        torch.no_grad()
    ):  # in training mode: with random weights, only the batch's own statistics keep maps from fading
        maps = nn.Sequential(*stages).double()(images)
        features = backbone.double()(images)
    torch.testing.assert_close(maps.mean(dim=(2, 3)), features)
    assert features.std() > 0.1


def test_squeezenet_takes_its_own_weights(tmp_path: Path) -> None:
    network = torchvision.models.squeezenet1_1().eval()
    torch.save(network.state_dict(), tmp_path / "weights.pth")
    (stage,), _ = build_feature_maps("squeezenet1_1", weights=str(tmp_path / "weights.pth"))
    images = torch.randn(1, 3, 64, 64)
    torch.testing.assert_close(stage(images), network.features(images), rtol=0, atol=0)


@pytest.mark.parametrize("name", feature_map_names())
def test_guided_backprop_is_offered_where_all_activations_are_relus(name: str) -> None:
    with torch.device("meta"):
        stages, _ = build_feature_maps(name)
    kinds = {type(module) for module in stages.modules() if type(module).__module__ == nn.ReLU.__module__}
    try:
        DeepMTConfig(grading=GradingConfig(backbone=name), evidence=EvidenceConfig(map="guided_backprop"))
    except ValidationError:
        offered = False
    else:
        offered = True
    assert offered == (kinds == {nn.ReLU})


def test_names_of_other_families_are_refused() -> None:
    with pytest.raises(ConfigError, match="use resnet18"):
        build_feature_maps("resnet_18")
    for name in ("convnext_tiny", "vit_b_16", "resnext50_32x4d", "fcn_resnet50"):
        with pytest.raises(ConfigError, match="cannot be a backbone"):
            build_feature_maps(name)


# Spatial pyramid pooling


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (4, 4), (7, 5), (16, 9)])
def test_pooling_is_torchs_adaptive_maximum(size: tuple[int, int]) -> None:
    pool, maps = SpatialPyramidPooling(), torch.randn(2, 3, *size, requires_grad=True)
    ours = pool(maps)
    theirs = torch.cat([functional.adaptive_max_pool2d(maps, n).flatten(1) for n in (4, 2, 1)], dim=1)
    assert ours.shape == (2, 3 * pool.num_bins) == (2, 63)
    torch.testing.assert_close(ours, theirs, rtol=0, atol=0)
    direction = torch.randn_like(ours)
    found, expected = (torch.autograd.grad(pooled, maps, direction)[0] for pooled in (ours, theirs))
    torch.testing.assert_close(found, expected)


def test_equal_maxima_share_the_gradient() -> None:
    maps = torch.ones(1, 1, 2, 2, requires_grad=True)
    SpatialPyramidPooling((1,))(maps).sum().backward()
    assert maps.grad.flatten().tolist() == [0.25] * 4


def test_pooling_can_be_differentiated_twice() -> None:
    maps = torch.randn(1, 2, 5, 3, dtype=torch.float64, requires_grad=True)
    pool = SpatialPyramidPooling((2, 1))
    assert torch.autograd.gradgradcheck(lambda x: pool(x).square(), maps)


# The grader


def small_grader(**options: int) -> Grader:
    torch.manual_seed(0)
    return Grader(**{"hidden": 8, **options}).eval()


def inputs(batch: int = 2, size: tuple[int, int] = (64, 64)) -> tuple[Tensor, Tensor]:
    return torch.randn(batch, 3, *size), torch.rand(batch, 4, *size)


def test_the_default_head_has_the_authors_size() -> None:
    with torch.device("meta"):
        grader = Grader()
    linear = [(layer.in_features, layer.out_features) for layer in grader.head if isinstance(layer, nn.Linear)]
    assert linear == [(10752, 512), (512, 5)]  # 10752 = 512 channels x 21 bins
    assert [layer.p for layer in grader.head if isinstance(layer, nn.Dropout)] == [0.5]


@pytest.mark.parametrize("size", [(64, 64), (40, 33), (16, 16)])
def test_grader_takes_any_size_and_returns_its_maps_finest_first(size: tuple[int, int]) -> None:
    grader = small_grader()
    output = grader(*inputs(size=size))
    assert output.logits.shape == (2, 5)
    assert tuple(maps.shape[1] for maps in output.features) == grader.stage_channels == (64, 128, 256, 512)
    for i, maps in enumerate(output.features):
        assert maps.shape[2:] == tuple(-(-side // 2 ** (i + 2)) for side in size)


def test_returned_maps_belong_to_the_graph_and_are_not_written_over() -> None:
    grader, (images, lesions), kept = small_grader(), inputs(), []
    for stage in grader.stages:
        stage.register_forward_hook(lambda _stage, _inputs, output: kept.append(output.detach().clone()))
    output = grader(images, lesions)
    gradients = torch.autograd.grad(output.logits.sum(), output.features)
    for maps, copy, gradient in zip(output.features, kept, gradients, strict=True):
        torch.testing.assert_close(maps, copy, rtol=0, atol=0)
        assert gradient.any()


def test_the_first_convolution_keeps_its_weights_for_rgb(tmp_path: Path) -> None:
    state = torchvision.models.resnet18().state_dict()
    torch.save(state, tmp_path / "weights.pth")
    grader = small_grader(weights=str(tmp_path / "weights.pth"))
    convolution = grader.stages[0][0]
    assert (convolution.in_channels, convolution.weight.shape) == (7, (64, 7, 7, 7))
    torch.testing.assert_close(convolution.weight[:, :3], state["conv1.weight"], rtol=0, atol=0)
    bound = (7 * 7 * 7) ** -0.5  # torch's default: uniform within 1 / sqrt(fan-in)
    assert 0.95 * bound < convolution.weight[:, 3:].abs().max() <= bound
    images, lesions = inputs()
    lesion_free = small_grader(weights=str(tmp_path / "weights.pth"), lesion_planes=0)
    same = grader.stages[0](torch.cat((images, torch.zeros_like(lesions)), dim=1))
    torch.testing.assert_close(same, lesion_free.stages[0](images), atol=1e-5, rtol=1e-4)


def test_lesion_maps_change_the_grade_and_get_a_gradient() -> None:
    grader, (images, lesions) = small_grader(), inputs()
    logits = grader(images, lesions.requires_grad_()).logits
    assert not torch.equal(logits, grader(images, torch.zeros_like(lesions)).logits)
    assert torch.autograd.grad(logits.sum(), lesions)[0].flatten(2).any(dim=2).all()


def test_lesion_planes_must_be_those_that_the_grader_reads() -> None:
    images, lesions = inputs()
    with pytest.raises(ValueError, match="reads 4 lesion planes, got 0"):
        small_grader()(images, None)
    with pytest.raises(ValueError, match="reads 0 lesion planes, got 4"):
        small_grader(lesion_planes=0)(images, lesions)


def test_inception_reads_lesion_maps_beside_its_rescaled_rgb() -> None:
    with torch.device("meta"):
        grader = Grader(backbone="inception_v3")
        output = grader(torch.empty(2, 3, 96, 96), torch.empty(2, 4, 96, 96))
    assert output.logits.shape == (2, 5)
    rescale = grader.stages[0][0]
    mean, std = torch.tensor([0.485, 0.456, 0.406]), torch.tensor([0.229, 0.224, 0.225])
    grey = ((0.5 - mean) / std).reshape(1, 3, 1, 1)
    planes = rescale(torch.cat((grey, torch.full((1, 4, 1, 1), 0.7)), dim=1))
    torch.testing.assert_close(planes.flatten(), torch.tensor([0.0] * 3 + [0.7] * 4), atol=1e-6, rtol=0)


def test_dropout_acts_while_training_alone() -> None:
    grader, (images, lesions) = small_grader(hidden=64), inputs()
    torch.testing.assert_close(grader(images, lesions).logits, grader(images, lesions).logits, rtol=0, atol=0)
    grader.head.train()
    assert not torch.equal(grader(images, lesions).dropped_logits, grader(images, lesions).dropped_logits)


def test_dropout_does_not_reach_what_maps_and_scores_are_made_of() -> None:
    grader, (images, lesions) = small_grader(hidden=64), inputs()
    expected = grader(images, lesions)
    torch.testing.assert_close(expected.dropped_logits, expected.logits, rtol=0, atol=0)
    grader.head.train()
    torch.testing.assert_close(grader(images, lesions).logits, expected.logits, rtol=0, atol=0)
