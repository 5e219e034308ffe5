"""DeepMT-DR's forward passes: what carries a gradient, what leaves a trace in statistics, what is computed once."""

import pytest
import torch

from retina_ray.data.batch import to_unit_range
from retina_ray.methods.deepmt.terms import TERMS
from retina_ray.models.deepmt.resampling import degrade
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
        ("joint", {"method.evidence.feedback": False}),
        ("joint", {"method.evidence.feedback": False, "method.stages.joint.map_fit": 0.3}),
        ("grading", {"method.evidence.feedback": False, "method.stages.grading.map_fit": 1.0}),
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


@pytest.mark.parametrize("term", ["classification_aware", "map_fit"])
@pytest.mark.parametrize("feedback", [True, False])
def test_a_map_tells_the_nets_that_make_it_unless_it_leaves_the_graph(term: str, feedback: bool) -> None:
    fitted = {"method.evidence.fusion": "learned", "method.stages.joint.map_fit": 0.3}
    method = method_of("joint", {**fitted, "method.evidence.feedback": feedback})
    network = built(method)
    step(method, network, a_batch())[term].backward()
    told = {name.split(".")[1] for name, each in network.named_parameters() if each.grad is not None}
    assert told == ({"super_resolution", "segmentation", "grader"} if feedback else set()) | {"joints", "xi"}


@pytest.mark.parametrize("kind", ["grad_cam", "guided_backprop", "smooth_grad"])
def test_a_map_without_parameters_that_leaves_the_graph_teaches_nothing(kind: str) -> None:
    method = method_of("joint", {"method.evidence.map": kind, "method.evidence.feedback": False})
    assert not step(method, built(method), a_batch())["classification_aware"].requires_grad


@pytest.mark.parametrize("against", ["union", "planes"])
def test_the_map_is_fitted_to_any_lesion_or_to_each_of_the_five_planes(against: str) -> None:
    changes = {"method.stages.joint.map_fit": 0.3, "method.stages.joint.map_fit_against": against}
    method, batch = method_of("joint", changes), a_batch()
    planes = torch.rand(2, 5, 4, 4).softmax(dim=1)
    heat = torch.rand(2, 4, 4)
    found = TERMS["map_fit"](
        {"lesions_hr": planes, "evidence": heat}, to_unit_range(batch.images), batch, method.config, method.task
    )
    truths = [1 - planes[:, 4]] if against == "union" else [planes[:, plane] for plane in range(5)]
    each = [((heat - truth) ** 2).mean(dim=(1, 2)) for truth in truths]
    torch.testing.assert_close(found, torch.stack(each).mean(dim=0))
