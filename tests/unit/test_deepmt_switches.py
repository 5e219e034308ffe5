"""Every switch of DeepMT-DR changes the loss or the graph."""

import pytest

from retina_ray.config import dotted_paths
from retina_ray.config_method import DeepMTConfig
from tests.deepmt import TINY, a_batch, built, method_of, step

SWITCHES: dict[str, dict[str, object]] = {
    "scale 2": {"method.scale": 2},
    "without super-resolution": {"method.super_resolution.mode": "none"},
    "fixed super-resolution": {"method.super_resolution.mode": "independent"},
    "residual output": {"method.super_resolution.output": "residual"},
    "without segmentation": {"method.segmentation.mode": "none"},
    "fixed segmentation": {"method.segmentation.mode": "independent"},
    "gamma of the code": {"method.segmentation.gamma": [0.5, 0.5, 0.0]},
    "backbone": {"method.grading.backbone": "resnet34"},
    "Eq. 10 as printed": {"method.grading.loss": "printed"},
    "class weights": {"method.grading.loss": "weighted", "method.grading.class_weights": [1, 10, 1.44, 25, 8]},
    "no map": {"method.evidence.map": "none"},
    "guided backprop": {"method.evidence.map": "guided_backprop"},
    "Grad-CAM": {"method.evidence.map": "grad_cam"},
    "SmoothGrad": {"method.evidence.map": "smooth_grad"},
    "theta_seg": {"method.evidence.theta_seg": 0.9},
    "phi_vis": {"method.evidence.phi_vis": 0.2},
    "hard step": {"method.evidence.step": "hard"},
    "sharpness": {"method.evidence.sharpness": 5.0},
    "learned fusion": {"method.evidence.fusion": "learned"},
    "lambda img": {"method.loss.pixel": 2.0},
    "MSE": {"method.loss.pixel_norm": "mse"},
    "lambda tv": {"method.loss.total_variation": 0.0},
    "weight of Dice": {"method.loss.dice": 0.5},
    "Dice as printed": {"method.loss.dice_per_lesion": False},
    "plane weights": {"method.loss.plane_weights": [1, 2, 1, 1, 0]},
    "focal loss": {"method.loss.focal": 1.0},
    "without SAL": {"method.stages.joint.segmentation_aware": 0.0},
    "without CAL": {"method.stages.joint.classification_aware": 0.0},
    "without Eq. 9": {"method.stages.joint.semi_supervised": 0.0},
    "Eq. 9 against each": {"method.stages.joint.semi_supervised_against": "each"},
    "map fit": {"method.stages.joint.map_fit": 0.3},
}


def fingerprint(changes: dict[str, object]) -> tuple[dict[str, float], float, list[str]]:
    """Return the joint stage's terms and total on one batch, and what learns."""
    method = method_of("joint", changes)
    network = built(method)
    # The grades are more often wrong than right, so that Eq. 10's forms differ.
    terms = step(method, network, a_batch())
    trained = [name for name, parameter in network.named_parameters() if parameter.requires_grad]
    return {name: float(term.detach()) for name, term in terms.items()}, float(method.total(terms).detach()), trained


@pytest.fixture(scope="module")
def plain() -> tuple[dict[str, float], float, list[str]]:
    return fingerprint({})


@pytest.mark.parametrize("switch", SWITCHES)
def test_flipping_a_switch_changes_the_loss_or_the_graph(
    switch: str, plain: tuple[dict[str, float], float, list[str]]
) -> None:
    assert fingerprint(SWITCHES[switch]) != plain


def test_every_switch_of_the_method_is_flipped() -> None:
    flipped = {path for changes in SWITCHES.values() for path in changes}
    elsewhere = {"method.name", "method.tasks", "method.evidence.samples", "method.evidence.noise"}
    # In the tests of the equations and of the maps; the score differs only where grade 0 is predicted.
    elsewhere |= {"method.loss.focal_alpha", "method.loss.focal_gamma", "method.evidence.score"}
    sizes = {path for path in dotted_paths(DeepMTConfig(), "method.") if path in TINY}
    of_stages = {path for path in dotted_paths(DeepMTConfig(), "method.") if path.startswith("method.stages.")}
    assert set(dotted_paths(DeepMTConfig(), "method.")) - flipped - elsewhere - sizes - of_stages == {
        "method.grading.dropout"
    }
