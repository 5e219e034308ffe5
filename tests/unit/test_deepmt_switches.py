"""Every switch of DeepMT-DR changes the loss, the graph or the learning rates of the stage that it belongs to."""

import re
from dataclasses import dataclass, field
from functools import cache
from pathlib import Path
from typing import Any

import pytest
import torch

from retina_ray.config import dotted_paths
from retina_ray.config_method import DeepMTConfig
from retina_ray.methods import catalogue, deepmt
from retina_ray.recipes import RECIPES
from tests.deepmt import TASKS, TINY, a_batch, built, gradients, method_of, step, tiny

ROOT = Path(__file__).resolve().parents[2]
DOCS = ROOT / "docs" / "deepmt.md"


@dataclass(frozen=True)
class Switch:
    """What is flipped, in which stage it shows, and under which further values."""

    changes: dict[str, object]
    stage: str = "joint"
    given: dict[str, object] = field(default_factory=dict)


FITTED = {"method.stages.joint.map_fit": 0.3}
FITTED_FIRST = {"method.stages.grading.map_fit": 1.0}
SMOOTH = {"method.evidence.map": "smooth_grad"}
FOCAL = {"method.loss.focal": 1.0}
LATER = "method.stages.{}.lr_change_epoch"

SWITCHES: dict[str, Switch] = {
    "scale 2": Switch({"method.scale": 2}),
    "without super-resolution": Switch({"method.super_resolution.mode": "none"}),
    "fixed super-resolution": Switch({"method.super_resolution.mode": "independent"}),
    "residual output": Switch({"method.super_resolution.output": "residual"}),
    "without segmentation": Switch({"method.segmentation.mode": "none"}),
    "fixed segmentation": Switch({"method.segmentation.mode": "independent"}),
    "gamma of the code": Switch({"method.segmentation.gamma": [0.5, 0.5, 0.0]}),
    "backbone": Switch({"method.grading.backbone": "resnet34"}),
    "dropout": Switch({"method.grading.dropout": 0.1}),
    "Eq. 10 as printed": Switch({"method.grading.loss": "printed"}),
    "class weights": Switch({"method.grading.loss": "weighted", "method.grading.class_weights": [1, 10, 1.44, 25, 8]}),
    "no map": Switch({"method.evidence.map": "none"}),
    "guided backprop": Switch({"method.evidence.map": "guided_backprop"}),
    "Grad-CAM": Switch({"method.evidence.map": "grad_cam"}),
    "SmoothGrad": Switch({"method.evidence.map": "smooth_grad"}),
    "copies of SmoothGrad": Switch({"method.evidence.samples": 2}, given=SMOOTH),
    "noise of SmoothGrad": Switch({"method.evidence.noise": 0.3}, given=SMOOTH),
    "y_DR of the code": Switch({"method.evidence.score": "argmax"}),
    "theta_seg": Switch({"method.evidence.theta_seg": 0.9}),
    "phi_vis": Switch({"method.evidence.phi_vis": 0.2}),
    "hard step": Switch({"method.evidence.step": "hard"}),
    "sharpness": Switch({"method.evidence.sharpness": 5.0}),
    "no selection of features": Switch({"method.evidence.select": False}),
    "maps as they are": Switch({"method.evidence.binarise": False}),
    "maps that tell the nets nothing": Switch({"method.evidence.feedback": False}),
    "learned fusion": Switch({"method.evidence.fusion": "learned"}),
    "lambda img": Switch({"method.loss.pixel": 2.0}),
    "MSE": Switch({"method.loss.pixel_norm": "mse"}),
    "lambda tv": Switch({"method.loss.total_variation": 0.0}),
    "weight of Dice": Switch({"method.loss.dice": 0.5}),
    "Dice as printed": Switch({"method.loss.dice_per_lesion": False}),
    "Dice without the factor 2": Switch({"method.loss.dice_factor": 1}),
    "plane weights": Switch({"method.loss.plane_weights": [1, 2, 1, 1, 0]}),
    "focal loss": Switch(FOCAL),
    "alpha of the focal loss": Switch({"method.loss.focal_alpha": 0.5}, given=FOCAL),
    "gamma of the focal loss": Switch({"method.loss.focal_gamma": 1.0}, given=FOCAL),
    "without SAL": Switch({"method.stages.joint.segmentation_aware": 0.0}),
    "without CAL": Switch({"method.stages.joint.classification_aware": 0.0}),
    "without Eq. 9": Switch({"method.stages.joint.semi_supervised": 0.0}),
    "Eq. 9 against each": Switch({"method.stages.joint.semi_supervised_against": "each"}),
    "map fit": Switch(FITTED),
    "fit of the other image's map": Switch({"method.stages.joint.map_fit_of": "high"}, given=FITTED),
    "fit to each plane": Switch({"method.stages.joint.map_fit_against": "planes"}, given=FITTED),
    "without SAL at first": Switch({"method.stages.restoration.segmentation_aware": 0.0}, "restoration"),
    "Eq. 4 on logits": Switch({"method.stages.restoration.segmentation_aware_on": "logits"}, "restoration"),
    "apart": Switch({"method.stages.restoration.apart": True}, "restoration"),
    "map fit at first": Switch(FITTED_FIRST, "grading"),
    **{
        f"{path} of {stage}": Switch({f"method.stages.{stage}.{path}": value}, stage, given)
        for stage, path, value, given in (
            *((stage, "epochs", 7, {}) for stage in ("restoration", "grading", "joint")),
            ("restoration", "lr_super_resolution", 1e-3, {}),
            ("restoration", "lr_segmentation", 1e-3, {}),
            ("restoration", "lr_change_epoch", 150, {}),
            ("restoration", "lr_change_super_resolution", 0.5, {LATER.format("restoration"): 150}),
            ("restoration", "lr_change_segmentation", 0.2, {LATER.format("restoration"): 150}),
            ("grading", "lr_grading", 1e-3, {}),
            ("grading", "lr_evidence", 1e-3, FITTED_FIRST),
            ("grading", "lr_change_epoch", 10, {}),
            ("grading", "lr_change_grading", 0.5, {LATER.format("grading"): 10}),
            ("grading", "lr_change_evidence", 2.0, {LATER.format("grading"): 10, **FITTED_FIRST}),
            ("joint", "lr_super_resolution", 1e-3, {}),
            ("joint", "lr_segmentation", 1e-3, {}),
            ("joint", "lr_grading", 1e-3, {}),
            ("joint", "lr_evidence", 1e-3, {}),
        )
    },
}


def fingerprint(stage: str, changes: dict[str, object]) -> dict[str, Any]:
    """Return a stage's terms and total on one batch, what learns and how much, at which rates, for how many epochs."""
    method = method_of(stage, changes)
    network = built(method)
    if network.nets.grader is not None:
        with (
            torch.no_grad()
        ):  # grade 0 is predicted, so that y_DR's forms differ; for one image it is wrong, for Eq. 10
            network.nets.grader.head[-1].bias[0] += 2
    terms = step(method, network, a_batch())
    (planned,) = [each for each in catalogue.plan(tiny(changes), TASKS).stages if each.name == stage]
    return {
        "terms": {name: float(term.detach()) for name, term in terms.items()},
        "total": float(method.total(terms).detach()),
        "trained": [name for name, parameter in network.named_parameters() if parameter.requires_grad],
        "gradients": gradients(method, terms, network),
        "rates": [(each.factor, each.change, each.change_epoch) for each in method.parameter_groups(network)],
        "overrides": planned.overrides,
    }


@cache
def plain(stage: str, given: tuple[tuple[str, object], ...]) -> dict[str, Any]:
    return fingerprint(stage, dict(given))


@pytest.mark.parametrize("name", SWITCHES)
def test_flipping_a_switch_changes_the_loss_the_graph_or_the_rates(name: str) -> None:
    switch = SWITCHES[name]
    before = plain(switch.stage, tuple(switch.given.items()))
    assert fingerprint(switch.stage, {**switch.given, **switch.changes}) != before


@pytest.mark.parametrize("stage", ["restoration", "grading", "joint"])
def test_flipping_nothing_changes_nothing(stage: str) -> None:
    assert fingerprint(stage, {}) == plain(stage, ())


@pytest.mark.parametrize("text", [deepmt.__doc__, DOCS.read_text(encoding="utf-8")], ids=["register", "docs"])
def test_the_documentation_names_keys_tests_and_recipes_that_exist(text: str) -> None:
    keys = {"method", *dotted_paths(DeepMTConfig(), "method.")}
    keys |= {path.rsplit(".", depth)[0] for path in keys for depth in (1, 2)}
    named = {key.rstrip(".") for key in re.findall(r"(?<!\w)method\.[a-z_.]+(?![a-z_.*])", text)}
    assert named - keys == set()
    assert [path for path in re.findall(r"tests/[\w/]+\.py", text) if not (ROOT / path).is_file()] == []
    tests = "".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("test_*.py"))
    assert [name for name in re.findall(r"(?<![\w/])test_\w+", text) if f"def {name}(" not in tests] == []
    assert set(re.findall(r"\bdeepmt_\w+", text)) - RECIPES.keys() - {"deepmt_step", "deepmt_learning"} == set()


def test_every_switch_of_the_method_is_flipped() -> None:
    flipped = {path for switch in SWITCHES.values() for path in switch.changes}
    fixed = {"method.name", "method.tasks"}
    sizes = {path for path in dotted_paths(DeepMTConfig(), "method.") if path in TINY}
    assert set(dotted_paths(DeepMTConfig(), "method.")) - flipped - fixed - sizes == set()
