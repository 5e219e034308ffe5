"""DeepMT-DR as a method: its stages, what each trains, predicts and is judged by, and which switches exclude others."""

import math

import numpy as np
import pytest
import torch

from retina_ray.config import dotted_paths, value_at
from retina_ray.data.batch import Batch
from retina_ray.data.selection import Selection
from retina_ray.errors import ConfigError, DataError
from retina_ray.methods import catalogue
from retina_ray.recipes import load_recipe
from retina_ray.training.artifact import stage_keys
from tests.deepmt import SIDE, TASKS, a_batch, built, gradients, method_of, step, tiny


def test_the_authors_stages_follow_each_other() -> None:
    plan = catalogue.plan(load_recipe("deepmt_dr"), TASKS)
    *trained, test = plan.stages
    assert [(stage.name, stage.needs, stage.overrides) for stage in trained] == [
        ("restoration", (), {"train.epochs": 180, "optim.lr": 5e-5}),
        ("grading", ("restoration",), {"train.epochs": 300, "optim.lr": 5e-5}),
        ("joint", ("restoration", "grading"), {"train.epochs": 300, "optim.lr": 5e-5}),
    ]
    assert plan.finals == ("joint",)
    assert test.needs == ("restoration", "grading", "joint")
    assert test.settings == {"models": {"joint": "deepmt"}}


def test_networks_alone_have_nothing_to_prepare() -> None:
    plan = catalogue.plan(load_recipe("deepmt_densenet121"), TASKS)
    assert [stage.name for stage in plan.stages] == ["joint", "test"]


def keys_of(changes: dict[str, object]) -> dict[str, str]:
    config = tiny(changes)
    return stage_keys(catalogue.plan(config, TASKS), config, "data", initial_weights={}, use_gpu=False)


@pytest.mark.parametrize(
    ("changes", "same"),
    [
        ({"method.stages.joint.classification_aware": 3.0}, {"restoration", "grading"}),
        ({"method.evidence.theta_seg": 0.2}, {"restoration", "grading"}),
        ({"method.super_resolution.mode": "independent"}, {"restoration", "grading"}),
        ({"method.segmentation.mode": "independent"}, {"restoration", "grading"}),
        ({"method.stages.grading.lr_grading": 1e-3}, {"restoration"}),
        ({"method.grading.dropout": 0.1}, {"restoration"}),
        ({"method.loss.pixel": 2.0}, set()),
        ({"data.masks": 0.5}, set()),
    ],
)
def test_a_search_repeats_only_what_a_change_concerns(changes: dict[str, object], same: set[str]) -> None:
    before, after = keys_of({}), keys_of(changes)
    assert {name for name in before if before[name] == after[name]} == same


def test_rates_are_those_of_the_configuration() -> None:
    method = method_of("joint")
    network = built(method)
    groups = method.parameter_groups(network)
    assert [group.factor for group in groups] == pytest.approx([1e-5 / 5e-5, 4e-6 / 5e-5, 1.0, 1e-5 / 5e-5])
    members = [id(parameter) for group in groups for parameter in group.parameters]
    assert sorted(members) == sorted(id(parameter) for parameter in network.parameters())


def test_rates_change_where_the_authors_code_changes_them() -> None:
    after = {
        f"method.stages.{stage}.lr_change_epoch": epoch for stage, epoch in (("restoration", 150), ("grading", 10))
    }
    changes = {**after, "method.stages.grading.map_fit": 1.0, "method.evidence.fusion": "learned"}

    def changed(stage: str) -> list[tuple[float, int | None]]:
        method = method_of(stage, changes)
        return [(group.change, group.change_epoch) for group in method.parameter_groups(built(method))]

    assert changed("restoration") == [(0.2, 150), (0.5, 150)]
    assert changed("grading") == [(0.2, 10), (5.0, 10)]
    assert changed("joint") == [(1.0, None)] * 4


@pytest.mark.parametrize(
    ("stage", "learning"),
    [
        ("restoration", {"super_resolution", "segmentation"}),
        ("grading", {"grader"}),
        ("joint", {"super_resolution", "segmentation", "grader", "evidence"}),
    ],
)
def test_each_stage_trains_its_nets(stage: str, learning: set[str]) -> None:
    method = method_of(stage)
    network = built(method)
    terms = step(method, network, a_batch())
    assert all(bool(term.isfinite()) for term in terms.values())
    assert {part for part, size in gradients(method, terms, network).items() if size > 0} == learning


def test_apart_segmentation_tells_super_resolution_nothing() -> None:
    for apart in (False, True):
        method = method_of("restoration", {"method.stages.restoration.apart": apart})
        network = built(method)
        step(method, network, a_batch())["dice"].backward()
        told = [parameter.grad is not None for parameter in network.nets.super_resolution.parameters()]
        assert all(told) != apart
        assert any(told) != apart
        assert all(parameter.grad is not None for parameter in network.nets.segmentation.parameters())


@pytest.mark.parametrize("stage", ["restoration", "joint"])
def test_fig_4b_s_independent_training_is_independent_in_every_stage(stage: str) -> None:
    recipe, plain = load_recipe("deepmt_isr_then_segmentation"), load_recipe("deepmt_dr")
    values = {path: value_at(recipe, path) for path in dotted_paths(recipe)}
    changes = {path: value for path, value in values.items() if path != "name" and value != value_at(plain, path)}
    method = method_of(stage, changes)
    network = built(method)
    terms = step(method, network, a_batch())
    assert "segmentation_aware" not in terms
    others = sum(term for name, term in terms.items() if name not in ("pixel", "total_variation"))
    first = next(network.nets.super_resolution.parameters())
    assert not first.requires_grad or torch.autograd.grad(others, first, allow_unused=True) == (None,)


@pytest.mark.parametrize("part", ["super_resolution", "segmentation"])
def test_an_independent_net_stays_as_it_is_in_the_joint_stage(part: str) -> None:
    method = method_of("joint", {f"method.{part}.mode": "independent"})
    network = built(method)
    before = {name: tensor.clone() for name, tensor in network.state_dict().items() if name.startswith(f"nets.{part}")}
    assert gradients(method, step(method, network, a_batch()), network)[part] == 0
    assert all(torch.equal(network.state_dict()[name], tensor) for name, tensor in before.items())  # statistics too
    assert not any(module.training for module in network.nets.get_submodule(part).modules())
    groups = method.parameter_groups(network)
    assert all(parameter.requires_grad for group in groups for parameter in group.parameters)


@pytest.mark.parametrize("masks", [(True, True), (False, False), (True, False)])
def test_images_with_and_without_masks_mix(masks: tuple[bool, bool]) -> None:
    method = method_of("joint")
    network = built(method)
    terms = step(method, network, a_batch(masks=masks))
    assert (float(terms["dice"].detach()) > 0) == any(masks)
    assert (float(terms["semi_supervised"].detach()) > 0) == (not all(masks))
    sizes = gradients(method, terms, network)
    assert all(math.isfinite(size) for size in sizes.values())


def test_an_image_of_weight_0_counts_for_nothing() -> None:
    method = method_of("restoration")
    network = built(method).eval()
    batch = a_batch()
    alone = a_batch()
    kept = {name: float(term.detach()) for name, term in step(method, network, _first(alone)).items()}
    batch.weight[1] = 0.0
    assert {name: float(term.detach()) for name, term in step(method, network, batch).items()} == pytest.approx(
        kept, rel=1e-4
    )


def _first(batch: Batch) -> Batch:
    assert batch.masks is not None
    return Batch(
        images=batch.images[:1],
        grades={"dr": batch.grades["dr"][:1]},
        soft_logits={},
        masks=batch.masks[:1],
        has_mask=batch.has_mask[:1],
        weight=batch.weight[:1],
        rows=batch.rows[:1],
    )


def test_prediction_is_what_evaluation_computed() -> None:
    method = method_of("joint")
    network = built(method).eval()
    batch = a_batch()
    with torch.inference_mode():
        evaluation = method.evaluate(network, batch, final=True)
        predicted = method.probabilities(network, method.inputs(batch.images))
    torch.testing.assert_close(predicted, evaluation.probabilities)
    assert method.inputs(batch.images).shape[2] == method.input_side(SIDE) == SIDE // 4


def test_the_test_reports_the_paper_s_metrics() -> None:
    method = method_of("joint")
    network = built(method).eval()
    with torch.inference_mode():
        evaluation = method.evaluate(network, a_batch(), final=True)
    figures = method.summarise({name: values.numpy() for name, values in evaluation.measures.items()})
    lesions = {
        f"{kind}_{lesion}" for kind in ("ap", "auc", "image_ap", "chance") for lesion in ("MA", "HM", "HE", "SE")
    }
    maps = {f"evidence_auc_{region}" for region in ("MA", "HM", "HE", "SE", "lesions", "background")}
    assert figures.keys() >= {"psnr", "ssim", "psnr_bicubic", "ssim_bicubic", "loss_dr", "accuracy_dr"} | lesions | maps
    assert figures["evidence_auc_background"] == pytest.approx(1 - figures["evidence_auc_lesions"])
    assert figures["chance_MA"] == pytest.approx(0.2, abs=0.02)


FOCAL_ALONE = {"method.loss.dice": 0.0, "method.loss.focal": 2.0}


def a_selection(*, masks: int) -> Selection:
    return Selection(
        rows={"train": np.arange(4), "validation": np.arange(4, 6), "test": np.arange(6, 8)},
        grades={"dr": np.array([0, -1, 2, -1, 0, 1, 0, 1], np.int8)},
        has_mask=np.arange(8) < masks,
        image_ids=np.array([f"image {row}" for row in range(8)]),
        seed=0,
    )


def test_grading_needs_a_grade_and_the_other_stages_any_image() -> None:
    selection = a_selection(masks=2)
    assert method_of("restoration").training_rows(selection).tolist() == [0, 1, 2, 3]
    assert method_of("grading").training_rows(selection).tolist() == [0, 2]
    assert method_of("joint").training_rows(selection).tolist() == [0, 1, 2, 3]


def test_supervision_without_any_mask_is_refused() -> None:
    with pytest.raises(DataError, match="no training image has a lesion mask") as caught:
        method_of("restoration").training_rows(a_selection(masks=0))
    assert "method.segmentation.mode=none" in caught.value.fix
    with pytest.raises(DataError, match="no training image has a lesion mask"):
        method_of("restoration", FOCAL_ALONE).training_rows(a_selection(masks=0))
    assert len(method_of("joint", {"method.segmentation.mode": "none"}).training_rows(a_selection(masks=0))) == 4


def test_without_masks_or_restored_images_there_is_nothing_to_judge_epochs_by() -> None:
    method = method_of("restoration", {"method.super_resolution.mode": "none"})
    with pytest.raises(DataError, match="no validation image has a lesion mask"):
        method.validation_rows(a_selection(masks=4))
    assert method.validation_rows(a_selection(masks=5)).tolist() == [4, 5]
    assert method_of("restoration").validation_rows(a_selection(masks=4)).tolist() == [4, 5]


def test_epochs_of_restoration_are_judged_by_what_it_learns_from() -> None:
    summary = {"loss_pixel": 0.1, "loss_segmentation": 0.6}
    without = {"method.super_resolution.mode": "none"}
    assert method_of("restoration").criterion(summary) == pytest.approx(0.7)
    assert method_of("restoration").criterion({**summary, "loss_segmentation": math.nan}) == pytest.approx(0.1)
    assert method_of("restoration", without).criterion(summary) == pytest.approx(0.6)
    assert method_of("restoration", {**without, **FOCAL_ALONE}).criterion(summary) == pytest.approx(1.2)


@pytest.mark.parametrize("pixels", [1022, 60])
def test_a_size_that_does_not_fit_the_scale_is_refused(pixels: int) -> None:
    with pytest.raises(ConfigError, match="does not fit the scale"):
        method_of("joint").check_image_size(pixels)


def test_a_size_that_does_not_fit_the_depth_is_padded() -> None:
    method = method_of("joint", {"data.image_size": 68})
    method.check_image_size(68)
    network = built(method).eval()
    images = torch.nn.functional.interpolate(a_batch().images, size=(68, 68))
    with torch.no_grad():
        assert method.probabilities(network, method.inputs(images))["dr"].shape == (2, 5)


def test_a_mask_of_another_size_is_refused() -> None:
    method = method_of("restoration")
    batch = a_batch()
    assert batch.masks is not None
    smaller = Batch(
        images=batch.images,
        grades=batch.grades,
        soft_logits={},
        masks=batch.masks[:, :, ::2, ::2],
        has_mask=batch.has_mask,
        weight=batch.weight,
        rows=batch.rows,
    )
    with pytest.raises(ValueError, match=r"masks must have the segmentation's size \(32, 32\), not \(16, 16\)"):
        step(method, built(method), smaller)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method.scale": 1}, "nothing to super-resolve"),
        ({"method.grading.backbone": "vgg11"}, r"needs the stages of a ResNet, not vgg11; .*such as grad_cam"),
        *(
            (
                {"method.grading.backbone": backbone, "method.evidence.map": "guided_backprop"},
                f"ReLU modules as the only activations, which {backbone} has not; choose",
            )
            for backbone in ("inception_v3", "mobilenet_v2", "mobilenet_v3_small", "efficientnet_b0")
        ),
        *(
            (
                {"method.evidence.map": "none", f"method.stages.{stage}.map_fit": 0.5},
                f"{stage}.map_fit = 0.5 has no map",
            )
            for stage in ("grading", "joint")
        ),
        *(
            (
                {"method.segmentation.mode": "none", f"method.stages.{stage}.map_fit": 0.5},
                rf"{stage}.map_fit = 0.5 has no lesions to fit a map to; set it to 0, .*method.segmentation.mode",
            )
            for stage in ("grading", "joint")
        ),
        ({"method.loss.dice": 0.0}, "nothing teaches segmentation"),
        ({"method.loss.pixel": 0.0, "method.segmentation.mode": "none"}, "nothing teaches super-resolution"),
        ({"method.loss.pixel": 0.0, "method.stages.restoration.apart": True}, "nothing teaches super-resolution"),
        ({"train.batch_norm": "sync"}, r"sync does not go with .*set train.batch_norm=local"),
        ({"method.segmentation.gamma": [1.0]}, "gamma needs depth"),
        ({"method.loss.plane_weights": [0, 0, 0, 0, 0]}, "above 0 for one plane"),
        ({"method.grading.class_weights": [1, 1, 1, 1, 1]}, "loss=weighted"),
    ],
)
def test_switches_that_do_not_fit_each_other_are_refused(changes: dict[str, object], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        tiny(changes)
