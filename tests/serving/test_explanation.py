"""Maps come from the forward pass that grades, equal those of a pass of their own, and disturb nobody."""

from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torchvision.models import VisionTransformer

from retina_ray.bundle import Bundle
from retina_ray.bundle_manifest import BundleManifest
from retina_ray.data.batch import denormalise, from_unit_range, to_unit_range
from retina_ray.explain.gradcam import TaskLogits, grad_cam
from retina_ray.methods import catalogue
from retina_ray.methods.base import Method
from retina_ray.methods.deepmt.graph import StageNetwork
from retina_ray.methods.deepmt.method import DeepMT
from retina_ray.models.backbones import cam_layer
from retina_ray.models.sall import MultiTaskGrader
from retina_ray.serving.explanation import Explainer
from retina_ray.serving.head_gradient import CutNetwork
from retina_ray.serving.predictor import Predictor
from retina_ray.serving.schema import Explanation
from tests.bundles import SIZE, TASKS, make_config, make_everything
from tests.deepmt import built, method_of

Networks = list[tuple[Method, nn.Module]]
DEEPMT_SIDE = 96
"""The grader's last map is then 3 x 3."""


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_everything(tmp_path_factory.mktemp("dataset")).build(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def manifest(bundle: Bundle) -> BundleManifest:
    return bundle.manifest


def of_size(manifest: BundleManifest, side: int) -> BundleManifest:
    preprocessing = manifest.preprocessing.model_copy(update={"image_size": side})
    return manifest.model_copy(update={"preprocessing": preprocessing})


def photographs(count: int, side: int) -> Tensor:
    """Return images (B, 3, H, W) that differ in coarse and in fine."""
    generator = torch.Generator().manual_seed(5)
    coarse = torch.randn(count, 3, 4, 4, generator=generator)
    fine = torch.randn(count, 3, side, side, generator=generator)
    return nn.functional.interpolate(coarse, size=(side, side), mode="bilinear") + 0.3 * fine


def settled(network: nn.Module, images: Tensor) -> None:
    """Give a network the batch statistics of some images, so that its features are of the size of one."""
    for module in network.modules():
        if isinstance(module, nn.BatchNorm2d):
            module.momentum = 1.0
    with torch.no_grad():
        network.train()(images)
    network.eval()


def sall(backbone: str, side: int, *, multi_task: bool = True) -> Networks:
    config = make_config(**{"method.backbone": backbone, "data.image_size": side, "method.multi_task": multi_task})
    plan = catalogue.plan(config, {task.name: task for task in TASKS})
    networks: Networks = []
    for stage in plan.stages:
        if stage.name in plan.finals:
            method = catalogue.build("sall", stage.settings)
            network = method.build_model()
            assert isinstance(network, MultiTaskGrader)
            for head in network.heads.values():
                nn.init.normal_(head.weight, std=0.1)
            settled(network, photographs(6, side))
            networks.append((method, network))
    return networks


def deepmt(changes: dict[str, object] | None = None) -> tuple[DeepMT, StageNetwork]:
    method = method_of("joint", changes)
    network = built(method)
    settled(network.nets, to_unit_range(method.inputs(photographs(4, DEEPMT_SIDE))))
    return method, network.eval()


@pytest.fixture(scope="module")
def chain() -> tuple[DeepMT, StageNetwork]:
    return deepmt()


def grade_and_explain(
    explainer: Explainer, images: Tensor, kind: Explanation
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    found = explainer.examine(images, kind=kind)
    return found.probabilities, found.maps


def cams_by_captum(network: nn.Module, task: str, images: Tensor) -> np.ndarray:
    assert isinstance(network, MultiTaskGrader)
    with torch.no_grad():
        grades = network(images)[task].argmax(dim=1)
    return grad_cam(TaskLogits(network, task), cam_layer(network.backbone), images, grades).numpy()


@pytest.mark.parametrize(
    ("backbone", "side"), [("resnet18", 96), ("densenet121", 96), ("mobilenet_v3_small", 96), ("inception_v3", 139)]
)
def test_equals_the_map_of_a_pass_of_its_own(manifest: BundleManifest, backbone: str, side: int) -> None:
    networks, images = sall(backbone, side), photographs(2, side)
    explainer = Explainer(networks, of_size(manifest, side))
    probabilities, maps = grade_and_explain(explainer, images, "gradcam")
    [(method, network)] = networks
    with torch.inference_mode():
        expected = method.probabilities(network, images)
    assert maps.keys() == probabilities.keys() == {"dr", "amd"}
    for task, heat in maps.items():
        assert heat.dtype == np.float32
        np.testing.assert_allclose(probabilities[task], expected[task].numpy(), rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(heat, cams_by_captum(network, task, images), atol=1e-4)
    assert sum(heat.any(axis=(1, 2)).sum() for heat in maps.values()) >= 2  # with evidence, so that something is equal


def test_a_network_for_each_task(manifest: BundleManifest) -> None:
    networks, images = sall("mobilenet_v3_small", SIZE, multi_task=False), photographs(2, SIZE)
    assert len(networks) == 2
    maps = Explainer(networks, manifest).examine(images, kind="gradcam").maps
    assert any(heat.any() for heat in maps.values())
    for (_, network), task in zip(networks, ("dr", "amd"), strict=True):
        np.testing.assert_allclose(maps[task], cams_by_captum(network, task, images), atol=1e-4)


def test_behind_the_cut_alone_is_a_graph(bundle: Bundle) -> None:
    [(_, network)] = bundle.network_modules("cpu")
    assert isinstance(network, MultiTaskGrader)
    logits, features = CutNetwork(network, cam_layer(network.backbone))(photographs(2, SIZE))
    assert features.is_leaf
    assert features.requires_grad
    found, waiting = set(), [each.grad_fn for each in logits.values()]
    while waiting:
        node = waiting.pop()
        if node is not None and node not in found:
            found.add(node)
            waiting += [before for before, _ in node.next_functions]
    names = {type(node).__name__ for node in found}
    assert any("Mean" in name or "Pool" in name for name in names)
    assert not any("Convolution" in name or "Norm" in name for name in names)


def test_answers_as_the_predictor_does(bundle: Bundle) -> None:
    images = photographs(3, SIZE)
    explainer = Explainer(bundle.network_modules("cpu"), bundle.manifest)
    graded = Predictor(bundle).probabilities(images)
    for found in (explainer.examine(images).probabilities, grade_and_explain(explainer, images, "gradcam")[0]):
        for task, expected in graded.items():
            np.testing.assert_allclose(found[task], expected, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode])
@pytest.mark.parametrize("kind", ["gradcam", "gmsv"])
def test_works_where_gradients_are_off(manifest: BundleManifest, mode: type[torch.no_grad], kind: Explanation) -> None:
    explainer, images = Explainer([deepmt()], of_size(manifest, DEEPMT_SIDE)), photographs(2, DEEPMT_SIDE)
    expected = explainer.examine(images, kind=kind).maps
    with mode():
        found = explainer.examine(images * 1, kind=kind).maps
        assert torch.is_grad_enabled() is False
    np.testing.assert_array_equal(found["dr"], expected["dr"])
    assert torch.is_grad_enabled()


def test_threads_do_not_disturb_each_other_nor_plain_grading(bundle: Bundle) -> None:
    [(method, network)] = bundle.network_modules("cpu")
    explainer, images = Explainer([(method, network)], bundle.manifest), photographs(8, SIZE)
    alone = [grade_and_explain(explainer, images[[i]], "gradcam") for i in range(len(images))]
    assert np.ptp([probabilities["dr"] for probabilities, _ in alone], axis=0).max() > 1e-3

    def grade(i: int) -> np.ndarray:
        with torch.inference_mode():
            return np.asarray(method.probabilities(network, images[[i]])["dr"])

    with ThreadPoolExecutor(4) as pool:
        turns = [i % len(images) for i in range(32)]
        explained = [pool.submit(grade_and_explain, explainer, images[[i]], "gradcam") for i in turns]
        graded = [pool.submit(grade, i) for i in turns]
        for i, answer, plain in zip(turns, explained, graded, strict=True):
            probabilities, maps = answer.result()
            for task in ("dr", "amd"):
                np.testing.assert_allclose(probabilities[task], alone[i][0][task], rtol=1e-5, atol=1e-7)
                np.testing.assert_allclose(maps[task], alone[i][1][task], atol=1e-4)
            np.testing.assert_allclose(plain.result(), alone[i][0]["dr"], rtol=1e-5, atol=1e-7)


def test_leaves_the_networks_as_they_were(bundle: Bundle, chain: tuple[DeepMT, StageNetwork]) -> None:
    networks = [*bundle.network_modules("cpu"), chain]
    modules = [module for _, network in networks for module in network.modules()]
    tensors = [tensor for _, network in networks for tensor in network.state_dict().values()]
    before = [tensor.clone() for tensor in tensors]
    images = photographs(1, SIZE)
    Explainer(networks[:1], bundle.manifest).examine(images, kind="gradcam")
    for kind in ("gradcam", "gmsv"):
        Explainer(networks[1:], bundle.manifest).examine(images, kind=kind)
    assert [module for _, network in networks for module in network.modules()] == modules
    assert not any(module._forward_hooks or module._forward_pre_hooks or module._backward_hooks for module in modules)
    assert not any(module.training for module in modules)
    assert all(torch.equal(tensor, old) for tensor, old in zip(tensors, before, strict=True))
    parameters = [parameter for _, network in networks for parameter in network.parameters()]
    assert all(parameter.grad is None for parameter in parameters)
    assert not images.requires_grad


def test_shares_the_weights(bundle: Bundle) -> None:
    networks, images = bundle.network_modules("cpu"), photographs(1, SIZE)
    explainer = Explainer(networks, bundle.manifest)
    [(_, network)] = networks
    assert isinstance(network, MultiTaskGrader)
    with torch.no_grad():
        network.heads["dr"].bias += torch.tensor([0.0, 0.0, 0.0, 1e6, 0.0])
    assert grade_and_explain(explainer, images, "gradcam")[0]["dr"].argmax() == 3


def test_a_network_of_tokens_offers_no_map(bundle: Bundle) -> None:
    [(method, _)] = bundle.network_modules("cpu")
    transformer = VisionTransformer(
        image_size=224, patch_size=56, num_layers=1, num_heads=2, hidden_dim=16, mlp_dim=16, num_classes=2
    )
    transformer.heads = nn.Identity()
    network = MultiTaskGrader(transformer, 16, grades={"dr": 5, "amd": 4}, dropout=0.0).eval()
    explainer = Explainer([(method, network)], of_size(bundle.manifest, 224))
    assert explainer.kinds == []
    images = photographs(1, 224)
    with torch.no_grad():
        expected = method.probabilities(network, images)["dr"].numpy()
    np.testing.assert_allclose(explainer.examine(images).probabilities["dr"], expected)
    with pytest.raises(ValueError, match="no maps by gradcam"):
        explainer.examine(images, kind="gradcam")


def test_a_grader_alone_offers_gradcam_alone(bundle: Bundle) -> None:
    explainer = Explainer(bundle.network_modules("cpu"), bundle.manifest)
    assert (explainer.kinds, explainer.lesions, explainer.enhances) == (["gradcam"], False, False)
    images = photographs(1, SIZE)
    with pytest.raises(ValueError, match=r"no maps by gmsv; ask for one of \['gradcam'\]"):
        grade_and_explain(explainer, images, "gmsv")
    with pytest.raises(ValueError, match="no lesions"):
        explainer.examine(images, lesions=True)
    with pytest.raises(ValueError, match="not super-resolve"):
        explainer.examine(images, enhance=True)


def test_deepmt_shows_what_its_nets_see(manifest: BundleManifest, chain: tuple[DeepMT, StageNetwork]) -> None:
    method, network = chain
    explainer, images = Explainer([(method, network)], of_size(manifest, DEEPMT_SIDE)), photographs(2, DEEPMT_SIDE)
    assert (explainer.kinds, explainer.lesions, explainer.enhances) == (["gradcam", "gmsv"], True, True)
    with torch.no_grad():
        output = network.nets(to_unit_range(method.inputs(images)))
        probabilities = method.probabilities(network, method.inputs(images))["dr"].numpy()
    planes = output.segmentation_logits.softmax(dim=1)
    gmsv = network.evidence_map(output.restored, planes)
    assert gmsv is not None
    grades = output.grader.logits.argmax(dim=1)
    last = network.nets.get_submodule("grader.stages.3")
    cam = grad_cam(lambda seen: network.nets.grade(seen, planes[:, :-1]).logits, last, output.restored, grades)

    by_gmsv = explainer.examine(images, kind="gmsv", lesions=True, enhance=True)
    by_gradcam = explainer.examine(images, kind="gradcam", lesions=True, enhance=True)
    for found, expected in ((by_gmsv, gmsv), (by_gradcam, cam)):
        assert found.maps["dr"].any()
        np.testing.assert_allclose(found.maps["dr"], expected.numpy(), atol=1e-4)
        np.testing.assert_allclose(found.probabilities["dr"], probabilities, rtol=1e-5, atol=1e-7)
        np.testing.assert_allclose(found.lesions, planes[:, :-1].numpy(), atol=1e-6)
        np.testing.assert_array_equal(found.enhanced, denormalise(from_unit_range(output.restored)))
    np.testing.assert_array_equal(explainer.examine(images, lesions=True).lesions, by_gmsv.lesions)
    np.testing.assert_array_equal(explainer.examine(images, enhance=True).enhanced, by_gmsv.enhanced)
    plain = explainer.examine(images)
    assert (plain.maps, plain.lesions, plain.enhanced) == ({}, None, None)


@pytest.mark.parametrize("kind", ["gradcam", "gmsv"])
def test_low_resolution_photographs_are_taken_as_they_are(
    manifest: BundleManifest, chain: tuple[DeepMT, StageNetwork], kind: Explanation
) -> None:
    of_bundle, low = of_size(manifest, DEEPMT_SIDE), chain[0].inputs(photographs(2, DEEPMT_SIDE))
    as_they_are = Explainer([chain], of_bundle, low_resolution=True).examine(low, kind=kind, enhance=True)
    degraded = Explainer([chain], of_bundle).examine(photographs(2, DEEPMT_SIDE), kind=kind, enhance=True)
    assert as_they_are.maps["dr"].shape == (2, DEEPMT_SIDE, DEEPMT_SIDE)
    assert as_they_are.enhanced is not None
    assert as_they_are.enhanced.shape == (2, DEEPMT_SIDE, DEEPMT_SIDE, 3)
    np.testing.assert_array_equal(as_they_are.maps["dr"], degraded.maps["dr"])
    np.testing.assert_array_equal(as_they_are.enhanced, degraded.enhanced)


@pytest.mark.parametrize(
    ("changes", "kinds", "lesions", "enhances"),
    [
        ({"method.evidence.map": "smooth_grad"}, ["gradcam"], True, True),
        ({"method.evidence.map": "none"}, ["gradcam"], True, True),
        ({"method.segmentation.mode": "none"}, ["gradcam", "gmsv"], False, True),
        ({"method.super_resolution.mode": "none"}, ["gradcam", "gmsv"], True, False),
        ({"method.evidence.fusion": "learned", "method.evidence.step": "hard"}, ["gradcam", "gmsv"], True, True),
    ],
)
def test_what_deepmt_offers_is_what_it_was_trained_with(
    manifest: BundleManifest, changes: dict[str, object], kinds: list[Explanation], lesions: bool, enhances: bool
) -> None:
    explainer, images = Explainer([deepmt(changes)], of_size(manifest, DEEPMT_SIDE)), photographs(1, DEEPMT_SIDE)
    assert (explainer.kinds, explainer.lesions, explainer.enhances) == (kinds, lesions, enhances)
    for kind in kinds:
        found = explainer.examine(images, kind=kind, lesions=lesions, enhance=enhances)
        assert found.maps["dr"].shape == (1, DEEPMT_SIDE, DEEPMT_SIDE)
        assert (found.lesions is not None, found.enhanced is not None) == (lesions, enhances)
