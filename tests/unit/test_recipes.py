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
    paper = load_recipe("sall").optim.lr
    scratch = [config for name in RECIPES if (config := load_recipe(name)).method.weights == "none"]
    assert scratch
    assert all(config.optim.lr > paper for config in scratch)


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
