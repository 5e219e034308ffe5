"""The maps inside a loss: against captum and explicit loops, and what sharing a forward pass with the loss demands."""

from collections.abc import Callable
from contextlib import nullcontext

import pytest
import torch
from captum.attr import GuidedBackprop, LayerAttribution, LayerGradCam, Saliency
from torch import Tensor, nn

from retina_ray.explain import evidence as evidence_module
from retina_ray.explain import gmsv as gmsv_module
from retina_ray.explain.evidence import (
    Evidence,
    GmsvEvidence,
    GradCamEvidence,
    GuidedBackpropEvidence,
    SmoothGradEvidence,
    positive_score,
)
from retina_ray.explain.gmsv import Gmsv
from retina_ray.explain.guided_relu import GuidedRelus
from retina_ray.explain.maps import min_max
from tests.tiny_grader import CHANNELS, Output, TinyGrader, make_grader, make_inputs

KINDS = ["gmsv", "grad_cam", "guided_backprop", "smooth_grad"]


def make_evidence(kind: str, network: nn.Module, *, noise: float = 0.1) -> Evidence:
    if kind == "gmsv":
        gmsv = Gmsv(CHANNELS, theta_seg=0.5, step="soft", sharpness=9.0, fusion="sum")
        return GmsvEvidence("sum", gmsv.double())
    if kind == "grad_cam":
        return GradCamEvidence("sum")
    if kind == "guided_backprop":
        return GuidedBackpropEvidence("sum", network)
    return SmoothGradEvidence("sum", network, copies=3, noise=noise)


def curved() -> nn.Module:
    """An activation with a ReLU to guide and a second derivative."""
    return nn.Sequential(nn.ReLU(), nn.Softplus())


class PositiveScore(nn.Module):
    """Images -> the paper's score (B,), without lesions, as captum wants it."""

    def __init__(self, network: TinyGrader) -> None:
        super().__init__()
        self.network = network

    def forward(self, images: Tensor) -> Tensor:
        return self.network(images).logits[:, 1:].sum(dim=1)


# The score


def test_positive_score_worked_out() -> None:
    logits = torch.tensor([[9.0, 1.0, 2.0, 3.0, 4.0], [-1.0, 0.0, 5.0, 0.0, -2.0]])
    assert positive_score(logits, "sum").tolist() == [10, 3]
    assert positive_score(logits, "argmax").tolist() == [9, 3]


def test_the_score_that_is_explained_can_be_chosen() -> None:
    network, (images, lesions) = make_grader(), make_inputs(3)
    with torch.no_grad():
        network.head.bias[0] = 99  # every image is graded 0
    evidence = GradCamEvidence("argmax")
    _, heat = evidence(network, images, lesions, create_graph=False)
    _, features = network(images.requires_grad_(), lesions)
    weights = network.head.weight[0] / features[-1][0, 0].numel()
    coarse = torch.einsum("c,bchw->bhw", weights, features[-1]).relu()
    torch.testing.assert_close(
        heat, min_max(nn.functional.interpolate(coarse[:, None], (16, 16), mode="bilinear")[:, 0])
    )


# Against other implementations


def test_grad_cam_is_captums() -> None:
    network, (images, _) = make_grader(), make_inputs(3)
    _, heat = make_evidence("grad_cam", network)(network, images, None, create_graph=False)
    coarse = LayerGradCam(PositiveScore(network), network.stages[-1]).attribute(images, relu_attributions=True)
    expected = LayerAttribution.interpolate(coarse, (16, 16), "bilinear").squeeze(1).detach()
    assert expected.any()
    torch.testing.assert_close(heat, min_max(expected))


def test_guided_backpropagation_is_captums() -> None:
    network, (images, _) = make_grader(), make_inputs(3)
    _, heat = make_evidence("guided_backprop", network)(network, images, None, create_graph=False)
    expected = GuidedBackprop(PositiveScore(network)).attribute(images.requires_grad_())
    torch.testing.assert_close(heat, min_max(expected.abs().amax(dim=1).detach()))
    plain = Saliency(PositiveScore(network)).attribute(images)
    assert not torch.allclose(heat, min_max(plain.amax(dim=1).detach()), atol=0.05)


def test_smooth_grad_without_noise_is_captums_saliency() -> None:
    network, (images, _) = make_grader(), make_inputs(3)
    _, heat = make_evidence("smooth_grad", network, noise=0.0)(network, images, None, create_graph=False)
    expected = Saliency(PositiveScore(network)).attribute(images.requires_grad_(), abs=True)
    torch.testing.assert_close(heat, min_max(expected.amax(dim=1).detach()))


def test_smooth_grad_is_the_mean_over_noisy_copies() -> None:
    network, (images, lesions) = make_grader(), make_inputs(2)
    images[1] = 0.5 + 0.1 * images[1]  # noise goes with each image's own range
    torch.manual_seed(3)
    _, heat = make_evidence("smooth_grad", network)(network, images, lesions, create_graph=False)
    torch.manual_seed(3)
    noise = torch.randn(3, 3, 16, 16, dtype=torch.float64)
    for i, (image, planes) in enumerate(zip(images, lesions, strict=True)):
        total = torch.zeros_like(image)
        for copy in range(3):
            noisy = image + 0.1 * (image.max() - image.min()) * noise[copy]
            noisy.requires_grad_()
            network(noisy[None], planes[None]).logits[:, 1:].sum().backward()
            total += noisy.grad.abs()
        torch.testing.assert_close(heat[i : i + 1], min_max(total.amax(dim=0, keepdim=True)))


def test_gmsv_is_the_modules_map() -> None:
    network, (images, lesions) = make_grader(), make_inputs(2)
    evidence = make_evidence("gmsv", network)
    assert isinstance(evidence, GmsvEvidence)
    _, heat = evidence(network, images, lesions, create_graph=False)
    logits, features = network(images.requires_grad_(), lesions)
    expected = evidence.gmsv(features, logits[:, 1:].sum(dim=1), lesions, create_graph=False)
    assert heat.tolist() == expected.tolist()


# What every map promises


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("size", [(16, 16), (11, 18)])
def test_the_output_is_the_graders_and_the_map_is_in_range(kind: str, size: tuple[int, int]) -> None:
    network, (images, lesions) = make_grader(), make_inputs(2, size)
    returned = []

    def grade(images: Tensor, lesions: Tensor | None) -> Output:
        returned.append(network(images, lesions))
        return returned[-1]

    output, heat = make_evidence(kind, network)(grade, images, lesions, create_graph=False)
    assert output is returned[0]
    torch.testing.assert_close(output.logits, network(images, lesions).logits)
    assert heat.shape == (2, *size)
    assert heat.amin(dim=(1, 2)).tolist() == [0, 0]
    assert heat.amax(dim=(1, 2)).tolist() == [1, 1]


@pytest.mark.parametrize("kind", KINDS)
def test_batch_statistics_are_recorded_of_the_images_alone(kind: str) -> None:
    networks = [make_grader().train() for _ in range(2)]
    images, lesions = make_inputs(2)
    make_evidence(kind, networks[0])(networks[0], images, lesions, create_graph=False)
    networks[1](images, lesions)
    for ours, plain in zip(networks[0].buffers(), networks[1].buffers(), strict=True):
        torch.testing.assert_close(ours, plain, rtol=0, atol=0)


@pytest.mark.parametrize("kind", KINDS)
def test_lesions_may_be_missing(kind: str) -> None:
    network, (images, lesions) = make_grader(), make_inputs(2)
    evidence = make_evidence(kind, network, noise=0.0)
    _, without = evidence(network, images, None, create_graph=False)
    _, none = evidence(network, images, torch.zeros_like(lesions), create_graph=False)
    torch.testing.assert_close(without, none)


@pytest.mark.parametrize("kind", KINDS)
def test_an_image_does_not_change_anothers_map(kind: str) -> None:
    network, (images, lesions) = make_grader(), make_inputs(2)
    evidence = make_evidence(kind, network)
    _, both = evidence(network, images, lesions, create_graph=False)
    alone = [evidence(network, images[i : i + 1], lesions[i : i + 1], create_graph=False)[1] for i in range(2)]
    torch.testing.assert_close(both, torch.cat(alone))


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
def test_works_where_gradients_are_off_and_parts_are_frozen(kind: str, mode: Callable[[], torch.no_grad]) -> None:
    network, (images, lesions) = make_grader(), make_inputs(2)
    evidence = make_evidence(kind, network, noise=0.0)

    def grade(images: Tensor, lesions: Tensor | None) -> Output:
        assert lesions is not None
        return network(images * lesions[:, :1], lesions)  # a product keeps its factors for the backward pass

    _, expected = evidence(grade, images, lesions, create_graph=False)
    for frozen in (False, True):
        network.requires_grad_(not frozen)
        with mode():
            _, heat = evidence(grade, images * 1, lesions * 1, create_graph=False)
            assert not heat.requires_grad
        torch.testing.assert_close(heat, expected)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("case", ["black", "grey", "one pixel", "a network without weights"])
def test_degenerate_images_give_finite_maps_and_gradients(kind: str, case: str) -> None:
    network, (images, lesions) = make_grader(activation=curved), make_inputs(2)
    if case == "black":
        images, lesions = torch.zeros_like(images), torch.zeros_like(lesions)
    elif case == "grey":
        images, lesions = torch.full_like(images, 0.5), torch.zeros_like(lesions)
    elif case == "one pixel":
        images, lesions = images[:1, :, :1, :1].clone(), lesions[:1, :, :1, :1].clone()
    else:
        for parameter in network.parameters():
            nn.init.zeros_(parameter)
    inputs = (images.requires_grad_(), lesions.requires_grad_())
    _, heat = make_evidence(kind, network)(network, *inputs, create_graph=True)
    assert bool(((heat >= 0) & (heat <= 1)).all())
    gradients = torch.autograd.grad(heat.square().sum(), [*inputs, *network.parameters()], allow_unused=True)
    assert all(bool(g.isfinite().all()) for g in gradients if g is not None)


# Gradients


@pytest.mark.parametrize("kind", KINDS)
def test_without_a_graph_the_map_is_detached_and_the_loss_is_untouched(kind: str) -> None:
    network, (images, lesions) = make_grader(), make_inputs(2)

    def gradients(output: Output, images: Tensor) -> list[Tensor]:
        loss = output.logits.square().sum()
        return list(torch.autograd.grad(loss, [images, *network.parameters()]))

    images.requires_grad_()
    output, heat = make_evidence(kind, network)(network, images, lesions, create_graph=False)
    assert not heat.requires_grad
    assert all(parameter.grad is None for parameter in network.parameters())
    # The loss goes back through the very ReLUs that were guided for the map.
    torch.testing.assert_close(gradients(output, images), gradients(network(images, lesions), images))


@pytest.mark.parametrize("kind", KINDS)
def test_gradients_are_those_of_finite_differences(kind: str) -> None:
    network, (images, lesions) = make_grader(activation=curved), make_inputs(1)
    evidence, weight = make_evidence(kind, network), network.stages[1].down.weight

    def heat(images: Tensor, lesions: Tensor, _weight: Tensor) -> Tensor:
        torch.manual_seed(5)  # the noise
        return evidence(network, images, lesions, create_graph=True)[1]

    inputs = (images.requires_grad_(), lesions.requires_grad_(), weight)
    assert torch.autograd.gradcheck(heat, inputs, atol=1e-7, fast_mode=True)
    gradients = torch.autograd.grad(heat(*inputs).square().sum(), inputs)
    assert all(bool(gradient.any()) for gradient in gradients)


@pytest.mark.parametrize(("kind", "reaches"), [*zip(KINDS, [True, True, False, False], strict=True)])
def test_image_gradients_are_locally_constant_in_a_piecewise_linear_network(kind: str, reaches: bool) -> None:
    network, (images, lesions) = make_grader(), make_inputs(2)
    _, heat = make_evidence(kind, network)(network, images.requires_grad_(), lesions, create_graph=True)
    weight = network.stages[1].down.weight
    to_images, to_weight = torch.autograd.grad(heat.square().sum(), [images, weight])
    assert bool(to_images.any()) is reaches
    assert to_weight.any()


@pytest.mark.parametrize("kind", KINDS)
def test_without_feedback_the_same_map_teaches_its_own_parameters_alone(kind: str) -> None:
    network, (images, lesions) = make_grader(), make_inputs(2)
    evidence = make_evidence(kind, network)
    _, expected = evidence(network, images, lesions, create_graph=True)
    inputs = (images.requires_grad_(), lesions.requires_grad_(), *network.parameters())
    output, heat = evidence(network, images, lesions, create_graph=True, feedback=False)
    torch.testing.assert_close(heat, expected)
    assert heat.requires_grad is (kind == "gmsv")
    if isinstance(evidence, GmsvEvidence):
        told = torch.autograd.grad(heat.square().sum(), [*evidence.gmsv.xi, *inputs], allow_unused=True)
        assert [gradient is not None for gradient in told] == [True] * len(CHANNELS) + [False] * len(inputs)
    assert all(bool(g.any()) for g in torch.autograd.grad(output.logits.square().sum(), [images, lesions]))


@pytest.mark.parametrize("kind", KINDS)
def test_the_score_is_differentiated_with_lesions_fixed(kind: str) -> None:
    network, (images, _) = make_grader(), make_inputs(2)
    images.requires_grad_()
    segmented = images.mean(dim=1, keepdim=True).square().expand(-1, 4, -1, -1)
    evidence = make_evidence(kind, network, noise=0.0)
    _, heat = evidence(network, images, segmented, create_graph=False)
    _, expected = evidence(network, images, segmented.detach(), create_graph=False)
    torch.testing.assert_close(heat, expected)


@pytest.mark.parametrize("kind", KINDS)
def test_no_map_waits_for_the_device(kind: str, monkeypatch: pytest.MonkeyPatch) -> None:
    # Meta tensors hold no values: reading one, as a host synchronisation would, raises. Autocast does not know them.
    for module in (evidence_module, gmsv_module):
        monkeypatch.setattr(module, "map_arithmetic", lambda *_args, **_kwargs: nullcontext())
    network = make_grader().to("meta")
    evidence = make_evidence(kind, network)
    if isinstance(evidence, GmsvEvidence):
        evidence.gmsv.to("meta")
    images, lesions = (inputs.to("meta") for inputs in make_inputs(2))
    _, heat = evidence(network, images, lesions, create_graph=True)
    assert heat.shape == (2, 16, 16)


# Guided ReLUs


def test_in_place_and_shared_relus_are_guided_too() -> None:
    shared = nn.ReLU(inplace=True)
    network, shared_network = make_grader(), make_grader(activation=lambda: shared)
    images, lesions = make_inputs(2)
    maps = [
        make_evidence("guided_backprop", net)(net, images, lesions, create_graph=False)[1]
        for net in (network, shared_network)
    ]
    torch.testing.assert_close(maps[0], maps[1])


def test_a_guided_relu_worked_out() -> None:
    relu = nn.ReLU()
    relus, x = GuidedRelus(relu), torch.tensor([2.0, -2.0, 3.0, -3.0], requires_grad=True)
    arriving = torch.tensor([5.0, 5.0, -5.0, -5.0])
    with relus.watched():
        y = relu(x)
    with relus.guided():
        (guided,) = torch.autograd.grad(y, x, arriving, retain_graph=True)
    (true,) = torch.autograd.grad(y, x, arriving)
    assert y.tolist() == [2, 0, 3, 0]
    assert guided.tolist() == [5, 0, 0, 0]
    assert true.tolist() == [5, 0, -5, 0]


def test_no_hook_is_left_behind() -> None:
    network, (images, lesions) = make_grader(), make_inputs(1)
    evidence = make_evidence("guided_backprop", network)
    evidence(network, images, lesions, create_graph=True)
    with pytest.raises(RuntimeError):
        evidence(network, images, lesions[:, :3], create_graph=True)
    assert not any(module._forward_hooks for module in network.modules())


# Errors


def test_unusable_arguments_are_refused() -> None:
    with pytest.raises(ValueError, match="copies must be at least 1, got 0"):
        SmoothGradEvidence("sum", make_grader(), copies=0, noise=0.1)
    with pytest.raises(ValueError, match=r"noise must not be negative, got -0\.1"):
        SmoothGradEvidence("sum", make_grader(), copies=1, noise=-0.1)
    network, (images, lesions) = make_grader(activation=nn.Softplus), make_inputs(1)
    with pytest.raises(ValueError, match=r"TinyGrader has no nn\.ReLU"):
        GuidedBackpropEvidence("sum", network)(network, images, lesions, create_graph=False)
