"""Rewritten networks compute what the trained ones compute, however they are wired, and can be explained like them."""

import copy
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from retina_ray.config import RunConfig, override
from retina_ray.data.batch import to_unit_range
from retina_ray.data.schema import KNOWN_TASKS
from retina_ray.explain.gradcam import TaskLogits, grad_cam
from retina_ray.methods import catalogue
from retina_ray.methods.base import Method
from retina_ray.models.backbones import cam_layer
from retina_ray.models.deepmt.segmentation import lesion_probabilities
from retina_ray.serving.acceleration import accelerate
from tests.deepmt import SIDE, built, method_of

pytestmark = pytest.mark.serving

NORMS_LEFT = {
    "resnet18": 0,
    "inception_v3": 0,
    "densenet121": 62,  # those that do not follow a convolution: one per layer, one per transition, the last
    "mobilenet_v3_small": 0,
    "shufflenet_v2_x0_5": 0,
    "efficientnet_b0": 0,
    "regnet_y_400mf": 0,
}


def grader(backbone: str) -> tuple[Method, nn.Module]:
    """Return a SALL student with random weights and statistics."""
    config = override(RunConfig(name="a"), {"method.backbone": backbone, "method.weights": "none"})
    plan = catalogue.plan(config, KNOWN_TASKS)
    stage = next(each for each in plan.stages if each.name in plan.finals)
    method = catalogue.build(config.method.name, stage.settings)
    return method, unsettled(method.build_model())


def unsettled(network: nn.Module) -> nn.Module:
    """Give batch normalisations other statistics and weights than they start with."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            for tensor, low, high in (
                (module.running_mean, -0.5, 0.5),
                (module.running_var, 0.5, 2.0),
                (module.weight, 0.5, 1.5),
                (module.bias, -0.5, 0.5),
            ):
                if tensor is not None:
                    nn.init.uniform_(tensor, low, high)
    return network.eval()


def norms(network: nn.Module) -> int:
    return sum(isinstance(module, nn.BatchNorm2d) for module in network.modules())


def answers(method: Method, network: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
    with torch.inference_mode():
        return method.probabilities(network, inputs)


@pytest.mark.parametrize(("backbone", "left"), NORMS_LEFT.items())
def test_every_backbone_answers_alike(backbone: str, left: int) -> None:
    """In double, where what differs is arithmetic and not rounding."""
    method, network = grader(backbone)
    network.double()
    images = torch.randn(2, 3, 96, 96, dtype=torch.float64)
    served = accelerate(method, network, precision="float32", example=images)
    assert norms(served) == left
    expected = answers(method, network, images)
    assert set(expected) == {"dr", "amd"}
    torch.testing.assert_close(answers(method, served, images), expected, rtol=1e-9, atol=1e-12)
    assert [name for name, _ in served.named_modules()] == [name for name, _ in network.named_modules()]


def test_the_trained_network_stays_as_it_is() -> None:
    method, network = grader("resnet18")
    before = copy.deepcopy(network.state_dict())
    served = accelerate(method, network, precision="bfloat16", example=torch.randn(1, 3, 64, 64))
    torch.testing.assert_close(network.state_dict(), before, rtol=0, atol=0)
    assert norms(network) == 20
    assert all(parameter.requires_grad for parameter in network.parameters())
    assert not any(parameter.requires_grad for parameter in served.parameters())
    assert not any(module._forward_hooks or module._forward_pre_hooks for module in network.modules())


@pytest.mark.parametrize("backbone", ["densenet121", "mobilenet_v3_small"])
def test_grad_cam_of_a_rewritten_network(backbone: str) -> None:
    method, network = grader(backbone)
    network.double()
    images, classes = torch.randn(2, 3, 128, 128, dtype=torch.float64), torch.tensor([3, 0])
    served = accelerate(method, network, precision="float32", example=images)
    own, other = (
        grad_cam(TaskLogits(each, "dr"), cam_layer(each.backbone), images, classes) for each in (served, network)
    )
    torch.testing.assert_close(own, other, rtol=1e-6, atol=1e-9)
    assert own.max() == 1.0


def test_all_of_deepmt_is_folded_and_computes_alike() -> None:
    method = method_of("joint")
    network = unsettled(built(method)).double()
    images = torch.rand(2, 3, SIDE, SIDE, dtype=torch.float64)
    served = accelerate(method, network, precision="float32", example=method.inputs(images))
    assert norms(network) > 20
    assert norms(served) == 0
    low = to_unit_range(method.inputs(images))
    with torch.inference_mode():
        ours, plain = (each.nets(low) for each in (served, network))
    torch.testing.assert_close(ours, plain, rtol=1e-9, atol=1e-12)
    lesions = plain.segmentation_logits.softmax(dim=1)
    assert lesion_probabilities(plain.segmentation_logits).std() > 1e-3
    maps = [each.evidence_map(plain.restored, lesions) for each in (served, network)]
    torch.testing.assert_close(maps[0], maps[1], rtol=1e-6, atol=1e-9)


@dataclass(frozen=True)
class Bare:
    """As much of a method as the rewriting uses."""

    def probabilities(self, model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
        found = model(inputs)
        return {"dr": found[0] if isinstance(found, tuple) else found}


class Squaring(nn.Conv2d):
    def forward(self, images: Tensor) -> Tensor:
        return super().forward(images).square()


class Wired(nn.Module):
    """Two convolutions and two batch normalisations, wired by a function."""

    def __init__(self, wiring: Callable[[Any, Tensor], Any]) -> None:
        super().__init__()
        self.a, self.b, self.square = nn.Conv2d(3, 4, 3, bias=False), nn.Conv2d(3, 4, 3), Squaring(3, 4, 3)
        self.norm, self.both, self.bare = nn.BatchNorm2d(4), nn.BatchNorm2d(8), nn.BatchNorm2d(4, affine=False)
        self.fresh = nn.BatchNorm2d(4, track_running_stats=False)
        self.wiring = wiring

    def forward(self, images: Tensor) -> Any:
        return self.wiring(self, images)


def read_later(net: Wired, images: Tensor) -> Tensor:
    maps = net.a(images)
    return net.norm(maps) + maps.mul_(2)


def part_is_read(net: Wired, images: Tensor) -> Tensor:
    maps = net.a(images)
    return net.both(torch.cat([maps, net.b(images)], dim=1))[:, :4] + maps


def join_is_read(net: Wired, images: Tensor) -> Tensor:
    maps = torch.cat([net.a(images), net.b(images)], dim=1)
    return net.both(maps) + maps


def handed_out(net: Wired, images: Tensor) -> tuple[Tensor, Tensor]:
    maps = net.a(images)
    return net.norm(maps), maps


FOLDED: dict[str, Callable[[Wired, Tensor], Any]] = {
    "one after the other": lambda net, images: net.norm(net.a(images)),
    "with a bias": lambda net, images: net.norm(net.b(images)),
    "without weights": lambda net, images: net.bare(net.a(images)),
    "changed in place afterwards": lambda net, images: net.norm(net.a(images)).relu_(),
    "joined": lambda net, images: net.both(torch.cat([net.b(images), net.a(images)], dim=1)),
}
KEPT: dict[str, Callable[[Wired, Tensor], Any]] = {
    "read beside it": lambda net, images: (lambda maps: net.norm(maps) + maps)(net.a(images)),
    "read later": read_later,
    "changed in place before": lambda net, images: net.norm(net.a(images).relu_()),
    "a part of it": lambda net, images: net.norm(net.a(images)[:, :, 1:]),
    "the convolution runs twice": lambda net, images: net.norm(net.a(images)) + net.a(images.flip(3)),
    "the norm runs twice": lambda net, images: net.norm(net.a(images)) + net.norm(net.b(images)),
    "another kind of convolution": lambda net, images: net.norm(net.square(images)),
    "no statistics": lambda net, images: net.fresh(net.a(images)),
    "joined, a part is read": part_is_read,
    "joined, the whole is read": join_is_read,
    "joined with itself": lambda net, images: (lambda maps: net.both(torch.cat([maps, maps], 1)))(net.a(images)),
    "joined with something else": lambda net, images: net.both(torch.cat([net.a(images), net.a(images).relu()], 1)),
    "joined along the batch": lambda net, images: net.norm(torch.cat([net.a(images), net.b(images)])),
    "handed out": handed_out,
}


@pytest.mark.parametrize("name", [*FOLDED, *KEPT])
def test_only_what_nothing_else_reads_is_folded(name: str) -> None:
    network = unsettled(Wired({**FOLDED, **KEPT}[name])).double()
    images = torch.randn(2, 3, 8, 8, dtype=torch.float64)
    served = accelerate(Bare(), network, precision="float32", example=images)
    assert norms(served) == norms(network) - (name in FOLDED)
    with torch.inference_mode():
        torch.testing.assert_close(served(images), network(images), rtol=1e-9, atol=1e-12)


class Program(nn.Module):
    """Runs steps on what earlier steps made; modules may be used never, once or often."""

    def __init__(self, steps: list[tuple[str, int, int]]) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 4, 1)
        self.layers = nn.ModuleDict({f"conv{i}": nn.Conv2d(4, 4, 3, padding=1) for i in range(3)})
        self.layers.update({f"norm{i}": nn.BatchNorm2d(4) for i in range(3)})
        self.wide = nn.BatchNorm2d(8)
        self.steps = steps

    def forward(self, images: Tensor) -> Tensor:
        made = [self.stem(images)]
        for step, back, further in self.steps:
            one, other = made[-1 - back % len(made)], made[-1 - further % len(made)]
            if step in self.layers:
                made.append(self.layers[step](one))
            elif step == "join":
                made += self.wide(torch.cat([one, other], dim=1)).chunk(2, dim=1)
            elif step == "add":
                made.append(one + other)
            elif step == "relu":
                made.append(one.relu())
            else:
                one.relu_()
        return torch.stack([maps.mean(dim=(2, 3)) for maps in made]).sum(dim=0) if len(made) % 2 else made[-1]


STEPS = st.sampled_from(["conv0", "conv1", "conv2", "norm0", "norm1", "norm2", "join", "add", "relu", "relu_"])
NEAR = st.sampled_from([0, 0, 0, 1, 2])


@settings(max_examples=60)
@given(st.lists(st.tuples(STEPS, NEAR, NEAR), min_size=2, max_size=10))
def test_whatever_the_wiring_the_answer_stays(steps: list[tuple[str, int, int]]) -> None:
    network = unsettled(Program(steps)).double()
    images = torch.randn(2, 3, 5, 5, dtype=torch.float64)
    served = accelerate(Bare(), network, precision="float32", example=images)
    with torch.inference_mode():
        torch.testing.assert_close(served(images), network(images), rtol=1e-9, atol=1e-10)


@pytest.mark.parametrize("backbone", ["mobilenet_v3_small", "densenet121", "swin_t"])
def test_in_bfloat16_all_but_the_answers_is_rounded(backbone: str) -> None:
    method, network = grader(backbone)
    images = torch.randn(2, 3, 64, 64)
    served = accelerate(method, network, precision="bfloat16", example=images)
    kinds = {
        parameter.dtype
        for module in served.modules()
        if isinstance(module, (nn.Conv2d, nn.Linear)) and module not in set(served.heads.values())
        for parameter in module.parameters()
    }
    assert torch.bfloat16 in kinds
    assert {head.weight.dtype for head in served.heads.values()} == {torch.float32}
    found, expected = (answers(method, each, images) for each in (served, network))
    for task, probabilities in expected.items():
        assert 0 < float((found[task] - probabilities).abs().max()) < 2e-2


def test_deepmt_in_bfloat16_is_close_wherever_it_is_entered() -> None:
    method = method_of("joint")
    network = unsettled(built(method))
    images = torch.rand(2, 3, SIDE, SIDE)
    served = accelerate(method, network, precision="bfloat16", example=method.inputs(images))
    with torch.inference_mode():
        ours, plain = (each.nets(to_unit_range(method.inputs(images))) for each in (served, network))
    assert ours.grader.logits.dtype == torch.float32
    torch.testing.assert_close(ours.restored, plain.restored, rtol=0, atol=2e-2)
    lesions = plain.segmentation_logits.softmax(dim=1)
    ours, plain = (each.evidence_map(plain.restored, lesions) for each in (served, network))
    assert float((ours - plain).abs().mean()) < 0.05
