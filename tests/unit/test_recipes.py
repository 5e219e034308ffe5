"""The named runs: their numbers, and that the debug run walks the path of the real one."""

import pytest

from retina_ray.config import RunConfig, dotted_paths, from_mapping, value_at
from retina_ray.errors import ConfigError
from retina_ray.recipes import RECIPES, load_recipe


def flat(config: RunConfig) -> dict[str, object]:
    return {path: value_at(config, path) for path in dotted_paths(config)}


@pytest.mark.parametrize("name", RECIPES)
def test_a_recipe_is_a_valid_configuration_with_a_docstring(name: str) -> None:
    config = load_recipe(name)
    assert from_mapping(config.model_dump(mode="json")) == config
    assert RECIPES[name].__doc__


def test_sall_has_the_numbers_of_the_paper() -> None:
    config = load_recipe("sall")
    # Table II
    assert (config.optim.name, config.optim.lr, config.optim.betas) == ("adam", 1e-5, (0.9, 0.999))
    assert (config.optim.eps, config.optim.weight_decay, config.optim.schedule) == (1e-8, 0.0, "constant")
    # Section IV-A
    assert (config.method.backbone, config.method.weights) == ("inception_v3", "imagenet")
    assert (config.augment.scale, config.augment.rotate90, config.augment.flip, config.augment.skew) == (
        0.1,
        True,
        True,
        0.2,
    )
    # Table III's best row
    assert (config.method.synergic_labels, config.method.multi_task, config.method.temperature) == (True, True, 3.0)
    # The authors' public code
    assert (config.data.image_size, config.train.global_batch_size, config.train.epochs) == (299, 32, 32)
    assert (config.method.dropout, config.train.patience) == (0.5, 10)


def test_every_recipe_from_scratch_states_its_own_rate() -> None:
    paper, ours = load_recipe("sall"), load_recipe("sall_debug")
    assert ours.method.weights == "none"
    assert ours.optim.lr > paper.optim.lr
    stages, debug = load_recipe("deepmt_dr").method.stages, load_recipe("deepmt_debug").method.stages
    for stage, rate in (
        ("restoration", "lr_super_resolution"),
        ("restoration", "lr_segmentation"),
        ("grading", "lr_grading"),
        ("joint", "lr_super_resolution"),
        ("joint", "lr_segmentation"),
    ):
        assert getattr(getattr(debug, stage), rate) > getattr(getattr(stages, stage), rate)


def test_deepmt_dr_has_the_numbers_of_the_paper_and_of_the_authors_code() -> None:
    config = load_recipe("deepmt_dr")
    method, stages = config.method, config.method.stages
    # Section IV: input, output, layers, backbone
    assert (config.data.image_size, method.scale) == (1024, 4)
    assert (method.super_resolution.blocks, method.segmentation.depth) == (5, 5)
    assert (method.grading.backbone, method.evidence.map, method.loss.pixel_norm) == ("resnet18", "gmsv", "l1")
    # The authors' public code
    assert (method.super_resolution.width, method.segmentation.width, method.grading.hidden) == (32, 64, 512)
    assert (method.loss.pixel, method.loss.total_variation) == (1.0, 1e-6)
    assert (stages.restoration.segmentation_aware, stages.joint.segmentation_aware) == (0.4, 1.0)
    assert stages.joint.classification_aware == 10.0
    assert (stages.restoration.lr_super_resolution, stages.restoration.lr_segmentation) == (5e-5, 2e-5)
    assert (stages.joint.lr_super_resolution, stages.joint.lr_segmentation, stages.joint.lr_grading) == (
        1e-5,
        4e-6,
        5e-5,
    )
    assert (stages.restoration.epochs, stages.grading.epochs, stages.joint.epochs) == (180, 300, 300)
    assert not any((config.augment.scale, config.augment.rotate90, config.augment.flip, config.augment.skew))


def test_the_debug_run_of_deepmt_keeps_every_switch_of_the_paper() -> None:
    real, debug = flat(load_recipe("deepmt_dr")), flat(load_recipe("deepmt_debug"))
    differing = {path for path in real if real[path] != debug[path]}
    assert "method.evidence.map" not in differing
    assert not [path for path in differing if path.endswith(("mode", "classification_aware", "semi_supervised"))]


def test_ablations_differ_from_the_paper_s_run_in_what_they_are_named_for() -> None:
    real = flat(load_recipe("deepmt_dr"))
    seen: set[frozenset[tuple[str, str]]] = set()
    for name in RECIPES:
        if name.startswith("deepmt_") and name not in ("deepmt_dr", "deepmt_debug"):
            changed = flat(load_recipe(name))
            difference = frozenset((path, str(changed[path])) for path in real if real[path] != changed[path])
            assert difference, name
            assert difference not in seen, name
            seen.add(difference)


def test_the_debug_run_differs_in_values_only() -> None:
    real, debug = flat(load_recipe("sall")), flat(load_recipe("sall_debug"))
    assert real.keys() == debug.keys()
    differing = {path for path in real if real[path] != debug[path]}
    print("sall_debug differs in", sorted(differing))
    assert differing == {
        "name",
        "data.image_size",
        "method.backbone",
        "method.weights",
        "method.dropout",
        "optim.lr",
        "optim.schedule",
        "train.epochs",
        "train.patience",
        "train.batch_norm_momentum",
        "evaluate.bootstrap",
        "runtime.workers",
        "runtime.checkpoint.every_s",
    }


def test_an_unknown_recipe_names_the_nearest() -> None:
    with pytest.raises(ConfigError, match="did you mean sall_debug"):
        load_recipe("sall_dbug")
