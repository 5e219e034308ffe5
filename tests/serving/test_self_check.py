"""What may not be served is refused with its figures: damaged, dead and untrue networks."""

from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from retina_ray.bundle import Bundle, TrainedNetwork
from retina_ray.data.schema import KNOWN_TASKS
from retina_ray.errors import BundleError
from retina_ray.methods.base import Method
from retina_ray.serving.acceleration import Precision, accelerate
from retina_ray.serving.predictor import Predictor
from retina_ray.serving.self_check import (
    PHOTOGRAPHS,
    TOLERANCE,
    CheckReport,
    Networks,
    _file,
    check_answers,
    drawn_photographs,
    self_check,
)
from tests.bundles import SIZE, TASKS, Made, make_everything

pytestmark = pytest.mark.serving

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    """Networks that are not all too sure, as the tests' usual random ones are."""
    torch.manual_seed(0)
    made = make_everything(tmp_path_factory.mktemp("dataset"), size=96)
    for name, tensor in made.networks[0].weights.items():
        if name.startswith("heads."):
            tensor.mul_(0.005)
    return made


@pytest.fixture(scope="module")
def bundle(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return made.build(tmp_path_factory.mktemp("bundle"))


@pytest.fixture
def networks(bundle: Bundle) -> list[tuple[Method, nn.Module]]:
    return bundle.network_modules(CPU)


def accelerated(networks: Networks, precision: Precision = "float32") -> list[tuple[Method, nn.Module]]:
    example = torch.zeros(1, 3, SIZE, SIZE)
    return [(method, accelerate(method, each, precision=precision, example=example)) for method, each in networks]


def check(bundle: Bundle, reference: Networks, served: Networks, precision: Precision = "float32") -> CheckReport:
    return self_check(bundle, reference, served, precision=precision, device=CPU)


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_a_true_copy_passes_with_room_to_spare(bundle: Bundle, networks: Networks, precision: Precision) -> None:
    report = check(bundle, networks, accelerated(networks, precision), precision)
    assert report.photographs == PHOTOGRAPHS
    assert 0 < report.largest_difference < 0.5 * TOLERANCE[precision]
    assert report.least_spread > 1e-2
    assert report.task in {task.name for task in TASKS}


def test_photographs_are_prepared_as_those_of_patients(bundle: Bundle) -> None:
    images = drawn_photographs(bundle)
    assert images.shape == (PHOTOGRAPHS, 3, SIZE, SIZE)
    predictor = Predictor(bundle)
    assert torch.equal(images[:1], predictor.preprocess(_file("dr", severity=0.0, patient=0)))
    assert torch.equal(images[-1:], predictor.preprocess(_file("amd", severity=1.0, patient=PHOTOGRAPHS - 1)))
    apart = [float((one - other).abs().mean()) for one, other in combinations(images, 2)]
    assert min(apart) > 0.05


def test_a_disease_that_cannot_be_drawn_is_shown_another(bundle: Bundle) -> None:
    dme = bundle.manifest.model_copy(update={"tasks": (KNOWN_TASKS["dme"],)})
    images = drawn_photographs(Bundle(bundle.store, dme, b"", b""))
    assert images.shape == (PHOTOGRAPHS, 3, SIZE, SIZE)


def last_convolution(network: nn.Module) -> nn.Conv2d:
    return [module for module in network.modules() if isinstance(module, nn.Conv2d)][-1]


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_refused(bundle: Bundle, networks: Networks, value: float) -> None:
    last_convolution(networks[0][1]).weight.data[0, 0] = value
    with pytest.raises(BundleError, match=r"numbers that are not finite: nan in 4 of 4 photographs; its weights"):
        check(bundle, networks, accelerated(networks))


def test_a_rewriting_that_breaks_down_is_refused(bundle: Bundle, networks: Networks) -> None:
    served = accelerated(networks)
    last_convolution(served[0][1]).weight.data[0, 0] = float("nan")
    with pytest.raises(BundleError, match="differs by inf"):
        check(bundle, networks, served)


def test_a_wrong_fold_is_refused_with_the_difference(bundle: Bundle, networks: Networks) -> None:
    served = accelerated(networks)
    last_convolution(served[0][1]).weight.data.mul_(1.3)  # as if a scale had been taken in twice
    with pytest.raises(BundleError) as refused:
        check(bundle, networks, served)
    images = drawn_photographs(bundle)
    right, wrong = (check_answers(each, bundle.manifest, images) for each in (networks, served))
    largest = max(float(np.abs(right[task] - wrong[task]).max()) for task in right)
    assert f"a probability differs by {largest:.3g}, the most allowed in float32 is 0.001" in str(refused.value)
    assert "serve another version" in str(refused.value)


def test_a_network_that_is_all_too_sure_is_not_dead(bundle: Bundle, networks: Networks) -> None:
    for head in networks[0][1].heads.values():
        head.weight.data.mul_(200)
    answers = check_answers(networks, bundle.manifest, drawn_photographs(bundle))
    assert min(float(np.ptp(found, axis=0).max()) for found in answers.values()) < 1e-3


def test_rounding_that_changes_the_grades_is_refused(bundle: Bundle, networks: Networks) -> None:
    for head in networks[0][1].heads.values():
        head.weight.data.mul_(40)
    assert check(bundle, networks, accelerated(networks)).largest_difference < TOLERANCE["float32"]
    with pytest.raises(BundleError, match=r"most allowed in bfloat16 is 0\.02; serve it in float32"):
        check(bundle, networks, accelerated(networks, "bfloat16"), "bfloat16")


def test_answers_that_depend_on_the_neighbours_are_refused(bundle: Bundle, networks: Networks) -> None:
    class Together(nn.Module):
        """Answers a batch right and a photograph alone wrong."""

        def __init__(self, network: nn.Module) -> None:
            super().__init__()
            self.network = network

        def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
            shift = 1.0 if len(images) == 1 else 0.0
            return {
                task: logits + shift * torch.arange(logits.shape[1]) for task, logits in self.network(images).items()
            }

    served = [(method, Together(network)) for method, network in networks]
    with pytest.raises(BundleError, match="otherwise than the trained ones"):
        check(bundle, networks, served)


@pytest.mark.parametrize("task", ["dr", "amd"])
def test_a_head_that_answers_always_the_same_is_refused(bundle: Bundle, networks: Networks, task: str) -> None:
    nn.init.zeros_(networks[0][1].heads[task].weight)
    with pytest.raises(BundleError, match=rf"4 photographs the same {task} grades: .* differ by 0\.0e"):
        check(bundle, networks, accelerated(networks))


def test_a_task_that_nothing_answers_is_refused(bundle: Bundle, networks: Networks) -> None:
    manifest = bundle.manifest.model_copy(update={"tasks": (*TASKS, KNOWN_TASKS["dme"])})
    with pytest.raises(BundleError, match="do not answer dme for 4 photographs with 3 grades: None"):
        check_answers(networks, manifest, drawn_photographs(bundle))


def test_numbers_that_are_no_probabilities_are_refused(bundle: Bundle, networks: Networks) -> None:
    class Halved:
        """A method that forgets half."""

        def inputs(self, images: torch.Tensor) -> torch.Tensor:
            return images

        def probabilities(self, model: nn.Module, inputs: torch.Tensor) -> dict[str, torch.Tensor]:
            method, network = networks[0]
            return {task: 0.5 * found for task, found in method.probabilities(network, inputs).items()}

    with pytest.raises(BundleError, match=r"no probabilities: their sum is off by 0\.5"):
        check_answers([(Halved(), networks[0][1])], bundle.manifest, drawn_photographs(bundle))


def test_a_bundle_whose_training_diverged_is_refused(made: Made, tmp_path: Path) -> None:
    [trained] = made.networks
    weights = {**trained.weights, "heads.dr.bias": torch.full_like(trained.weights["heads.dr.bias"], float("nan"))}
    diverged = made.build(tmp_path / "bundle", networks=[TrainedNetwork(trained.settings, weights)])
    networks = diverged.network_modules(CPU)
    with pytest.raises(BundleError, match="answer dr with numbers that are not finite"):
        check(diverged, networks, accelerated(networks))
