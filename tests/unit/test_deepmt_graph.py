"""DeepMT-DR's forward passes: what carries a gradient, what leaves a trace in statistics, what is computed once."""

import pytest
import torch
from torch import Tensor

from retina_ray.data.batch import to_unit_range
from retina_ray.methods.deepmt.frozen_maps import FrozenMaps
from retina_ray.models.deepmt.resampling import degrade
from retina_ray.models.deepmt.segmentation import Segmentation
from tests.deepmt import a_batch, built, method_of, step


@pytest.mark.parametrize("term", ["segmentation_aware", "classification_aware", "grading", "dice"])
def test_each_task_tells_super_resolution_s_first_layer(term: str) -> None:
    method = method_of("joint")
    network = built(method)
    step(method, network, a_batch())[term].backward()
    first = next(network.nets.super_resolution.parameters())
    assert first.grad is not None
    assert float(first.grad.abs().max()) > 0


@pytest.mark.parametrize("kind", ["gmsv", "grad_cam", "guided_backprop", "smooth_grad", "none"])
def test_a_perfectly_restored_image_has_no_loss_of_segmentation_or_evidence(kind: str) -> None:
    method = method_of("joint", {"method.evidence.map": kind, "method.grading.hidden": 64})
    network = built(method)
    batch = a_batch(side=96)  # maps of the usual size are too coarse to have a contrast
    network.nets.restore = lambda _low: to_unit_range(batch.images)
    terms = {name: float(term.detach()) for name, term in step(method, network, batch).items()}
    assert terms["segmentation_aware"] == terms["classification_aware"] == 0
    assert terms["grading"] > 0


@pytest.mark.parametrize("kind", ["gmsv", "smooth_grad", "none"])
def test_running_statistics_are_those_of_restored_images(kind: str) -> None:
    method = method_of("joint", {"method.evidence.map": kind})
    network, twin = built(method), built(method)
    batch = a_batch()
    step(method, network, batch)
    twin.nets(degrade(to_unit_range(batch.images), method.config.scale))  # what prediction passes through
    expected = dict(twin.named_buffers())
    for name, found in network.named_buffers():
        torch.testing.assert_close(found, expected[name], rtol=0, atol=0, msg=lambda text, name=name: name + text)


def test_the_loss_of_grades_is_behind_dropout() -> None:
    method = method_of("joint", {"method.grading.hidden": 64})
    network = built(method)
    batch = a_batch()
    losses = [method.losses(network, batch, method.counts(batch))["grading"].detach() for _ in range(3)]
    assert len({float(loss) for loss in losses}) == 3


def test_what_a_term_compares_with_passes_no_gradient() -> None:
    method = method_of("joint")
    network = built(method)
    batch = a_batch()
    outputs = network(batch.images.sigmoid().requires_grad_())
    assert not outputs["lesions_hr"].requires_grad
    assert not outputs["evidence_hr"].requires_grad


def test_the_printed_threshold_passes_no_gradient() -> None:
    method = method_of("joint", {"method.evidence.step": "hard"})
    assert not step(method, built(method), a_batch())["classification_aware"].requires_grad


@pytest.mark.parametrize(
    ("stage", "changes"),
    [
        ("joint", {}),
        ("joint", {"method.evidence.step": "hard"}),
        ("joint", {"method.evidence.step": "hard", "method.evidence.binarise": False}),
        ("joint", {"method.evidence.select": False}),
        ("joint", {"method.stages.joint.map_fit": 0.3, "method.stages.joint.classification_aware": 0.0}),
        ("joint", {"method.stages.joint.map_fit": 0.3, "method.stages.joint.map_fit_of": "high"}),
        ("grading", {}),
        ("grading", {"method.stages.grading.map_fit": 1.0}),
        ("restoration", {"method.stages.restoration.segmentation_aware": 0.0, "method.loss.pixel": 0.0}),
    ],
)
def test_what_learns_has_a_gradient(stage: str, changes: dict[str, object]) -> None:
    # Ranks wait for every parameter that requires a gradient.
    method = method_of(stage, {"method.evidence.fusion": "learned", **changes})
    network = built(method)
    method.total(step(method, network, a_batch())).backward()
    idle = [name for name, each in network.named_parameters() if each.requires_grad and each.grad is None]
    assert idle == []


def test_the_map_that_is_fitted_can_be_that_of_the_high_resolution_image() -> None:
    changes = {"method.evidence.fusion": "learned", "method.stages.joint.map_fit": 0.3}
    for image, tells in (("restored", True), ("high", False)):
        method = method_of("joint", {**changes, "method.stages.joint.map_fit_of": image})
        network = built(method)
        terms = step(method, network, a_batch())
        terms["map_fit"].backward()
        assert any(parameter.grad is not None for parameter in network.nets.super_resolution.parameters()) == tells
        assert all(parameter.grad is not None for parameter in network.evidence_parameters.joints.parameters())


def test_fixed_images_pass_a_fixed_segmentation_once() -> None:
    method = method_of("joint", {"method.segmentation.mode": "independent"})
    batch, fixed = a_batch(), a_batch(fixed=True)
    plain_terms = step(method, built(method), batch)
    network = built(method)
    seen: list[int] = []
    network.nets.segmentation.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    for _ in range(2):
        terms = step(method, network.eval().train(), fixed)
    assert seen == [2, 2, 2]  # the restored images twice, the high-resolution ones once
    for name, term in plain_terms.items():
        assert float(terms[name].detach()) == pytest.approx(float(term.detach()), rel=2e-2), name


def test_frozen_maps_keep_what_fits() -> None:
    images = torch.rand(3, 3, 4, 4)
    calls: list[int] = []

    def compute(chosen: Tensor) -> Tensor:
        calls.append(len(chosen))
        return chosen * 2

    maps = FrozenMaps(limit_bytes=2 * images[0].numel() * images.element_size())
    for _ in range(2):
        torch.testing.assert_close(maps.of((7, 8, 9), images, compute), images * 2)
    torch.testing.assert_close(maps.of((8, 7), images[[1, 0]], compute), images[[1, 0]] * 2)
    assert calls == [3, 3]
    assert len(maps) == 2


def test_frozen_maps_are_the_same_after_a_resume_in_the_middle_of_an_epoch() -> None:
    torch.manual_seed(0)
    network = Segmentation(width=8, depth=4, gamma=(0.2, 0.2, 0.2, 1.0)).eval().to(memory_format=torch.channels_last)
    images = torch.rand(8, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    epochs = [[(0, 1, 2, 3), (4, 5, 6, 7)], [(0, 4, 5, 6), (7, 3, 1, 2)]]

    def second_epoch(*, first: int) -> list[Tensor]:
        maps = FrozenMaps()
        with torch.no_grad():
            passes = [
                [maps.of(rows, images[list(rows)], network) for rows in epoch]
                for epoch in (epochs[0][first:], epochs[1])
            ]
        return passes[1]

    for resumed, whole in zip(second_epoch(first=1), second_epoch(first=0), strict=True):
        torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
