"""Grad-CAM against maps worked out by hand and by plain autograd, and what it must leave untouched."""

import pytest
import torch
from torch import Tensor, nn

from retina_ray.explain.gradcam import TaskLogits, grad_cam
from retina_ray.models.backbones import build_backbone, cam_layer
from retina_ray.models.sall import MultiTaskGrader


class Brightness(nn.Module):
    """Class 0 grows with the image's brightness, class 1 falls with it."""

    def __init__(self) -> None:
        super().__init__()
        self.grey = nn.Conv2d(3, 1, 1, bias=False)
        nn.init.constant_(self.grey.weight, 1 / 3)
        self.relu = nn.ReLU(inplace=True)

    def forward(self, images: Tensor) -> Tensor:
        mean = self.relu(self.grey(images)).mean(dim=(2, 3))
        return torch.cat([mean, -mean], dim=1)


def grader() -> MultiTaskGrader:
    torch.manual_seed(0)
    backbone, num_features = build_backbone("resnet18")
    return MultiTaskGrader(backbone, num_features, grades={"dr": 5, "amd": 4}, dropout=0.5)


def test_the_map_of_a_brightness_classifier_is_the_brightness() -> None:
    network, images = Brightness(), torch.zeros(2, 3, 4, 6)
    images[0, :, 1, 2], images[0, :, 3, 5] = 1.0, 0.25
    images[1, :, 2, 0] = 8.0
    heat = grad_cam(network, network.grey, images, torch.tensor([0, 0]))
    expected = torch.zeros(2, 4, 6)
    expected[0, 1, 2], expected[0, 3, 5], expected[1, 2, 0] = 1.0, 0.25, 1.0
    torch.testing.assert_close(heat, expected)


def test_a_map_without_positive_evidence_is_zero() -> None:
    network = Brightness()
    heat = grad_cam(network, network.grey, torch.rand(1, 3, 4, 4), torch.tensor([1]))
    assert heat.tolist() == torch.zeros(1, 4, 4).tolist()


def test_agrees_with_plain_autograd_on_a_real_network() -> None:
    network, classes = grader().eval(), torch.tensor([3, 0])
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    layer = cam_layer(network.backbone)
    heat = grad_cam(TaskLogits(network, "dr"), layer, images, classes)

    maps: list[Tensor] = []
    handle = layer.register_forward_hook(lambda _module, _inputs, output: maps.append(output))
    logits = network(images)["dr"]
    handle.remove()
    (gradient,) = torch.autograd.grad(logits.gather(1, classes[:, None]).sum(), maps[0])
    weighted = (gradient.mean(dim=(2, 3), keepdim=True) * maps[0]).sum(dim=1, keepdim=True).relu()
    large = nn.functional.interpolate(weighted, (64, 64), mode="bilinear")[:, 0].detach()
    low, high = large.amin(dim=(1, 2), keepdim=True), large.amax(dim=(1, 2), keepdim=True)
    torch.testing.assert_close(heat, (large - low) / (high - low), atol=1e-5, rtol=1e-5)
    assert heat.amin(dim=(1, 2)).tolist() == [0, 0]
    assert heat.amax(dim=(1, 2)).tolist() == [1, 1]


def test_an_image_does_not_change_anothers_map() -> None:
    network, classes = grader(), torch.tensor([0, 2])
    images = torch.randn(2, 3, 64, 64, generator=torch.Generator().manual_seed(2))
    task, layer = TaskLogits(network, "amd"), cam_layer(network.backbone)
    both = grad_cam(task, layer, images, classes)
    alone = grad_cam(task, layer, images[1:], classes[1:])
    torch.testing.assert_close(both[1:], alone, atol=1e-4, rtol=1e-4)


def test_leaves_flags_statistics_gradients_and_images_as_they_were() -> None:
    network = grader().train()
    network.backbone.eval()  # a frozen part of a network in training
    for parameter in network.backbone.parameters():
        parameter.requires_grad_(False)
    flags = [module.training for module in network.modules()]
    state = {key: value.clone() for key, value in network.state_dict().items()}
    images = torch.randn(1, 3, 64, 64)
    heat = grad_cam(TaskLogits(network, "dr"), cam_layer(network.backbone), images, torch.tensor([4]))
    assert [module.training for module in network.modules()] == flags
    assert all(torch.equal(value, state[key]) for key, value in network.state_dict().items())
    assert all(parameter.grad is None for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in network.backbone.parameters())
    assert not images.requires_grad
    assert not heat.requires_grad
    assert not any(module._forward_hooks for module in network.modules())


def test_flags_are_restored_when_the_network_fails() -> None:
    network = Brightness().train()
    with pytest.raises(IndexError):
        grad_cam(network, network.grey, torch.rand(1, 3, 4, 4), torch.tensor([7]))
    assert network.training


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off(mode: type[torch.no_grad]) -> None:
    network, images = Brightness(), torch.rand(1, 3, 4, 4)
    expected = grad_cam(network, network.grey, images, torch.tensor([0]))
    with mode():
        heat = grad_cam(network, network.grey, images * 1, torch.tensor([0]))
    assert heat.tolist() == expected.tolist()


def test_a_plain_callable_is_explained_too() -> None:
    network, images = Brightness(), torch.rand(1, 3, 4, 4)
    heat = grad_cam(lambda x: network(x)[:, :1], network.grey, images, torch.tensor([0]))
    assert heat.tolist() == grad_cam(network, network.grey, images, torch.tensor([0])).tolist()
