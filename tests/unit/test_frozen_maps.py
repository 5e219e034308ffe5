"""Lesion maps that stay the same from epoch to epoch: computed once as far as they fit, to the same bits as ever."""

import pytest
import torch
from torch import Tensor

from retina_ray.methods.deepmt.frozen_maps import FrozenMaps
from retina_ray.methods.deepmt.graph import StageNetwork
from retina_ray.models.deepmt.segmentation import Segmentation
from tests.deepmt import a_batch, built, method_of, step


def segmented(network: StageNetwork) -> list[int]:
    """Return a list that grows by the number of images of each forward pass of segmentation."""
    seen: list[int] = []
    network.nets.segmentation.register_forward_hook(lambda _module, inputs, _output: seen.append(len(inputs[0])))
    return seen


def test_fixed_images_pass_a_fixed_segmentation_once() -> None:
    method = method_of("joint", {"method.segmentation.mode": "independent"})
    batch, fixed = (a_batch(side=96, fixed=each) for each in (False, True))  # smaller maps have no contrast
    plain_terms = step(method, built(method), batch)
    network = built(method)
    seen = segmented(network)
    for _ in range(2):
        terms = step(method, network.eval().train(), fixed)
    assert seen == [1, 1, 2, 2]  # the high-resolution images once, the restored ones in every step
    for name, term in plain_terms.items():
        assert float(terms[name].detach()) == pytest.approx(float(term.detach()), rel=2e-2), name


def test_validation_images_of_the_grading_stage_are_segmented_in_the_first_epoch_alone() -> None:
    method = method_of("grading")
    network = built(method).eval()
    seen = segmented(network)
    with torch.inference_mode():
        first, second = (method.evaluate(network, a_batch(fixed=True), final=False) for _ in range(2))
        assert seen == [1, 1]
        plain = method.evaluate(network, a_batch(), final=False)
    torch.testing.assert_close(second, first, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(plain, first, equal_nan=True)


@pytest.mark.parametrize(("stage", "final"), [("joint", False), ("grading", True)])
def test_restored_images_and_the_test_are_segmented_whenever_they_come(stage: str, final: bool) -> None:
    method = method_of(stage, {"method.segmentation.mode": "independent"})
    network = built(method).eval()
    seen = segmented(network)
    with torch.inference_mode():
        for _ in range(2):
            method.evaluate(network, a_batch(fixed=True), final=final)
    assert seen == [2, 2]


def test_what_fits_is_kept_and_saves_its_share_of_every_batch() -> None:
    images = torch.rand(3, 3, 4, 4)
    calls: list[int] = []

    def compute(chosen: Tensor) -> Tensor:
        calls.append(len(chosen))
        return chosen * 2

    maps = FrozenMaps(limit_bytes=2 * images[0].numel() * images.element_size())
    for _ in range(3):
        torch.testing.assert_close(maps.of((7, 8, 9), images, compute), images * 2)
    torch.testing.assert_close(maps.of((8, 7), images[[1, 0]], compute), images[[1, 0]] * 2)
    assert calls == [1, 1, 1, 1, 1]  # all of them, then twice the one without room
    assert len(maps) == 2


@pytest.mark.parametrize("room", [0, 3, 8])
def test_maps_are_the_same_after_a_resume_in_the_middle_of_an_epoch(room: int) -> None:
    torch.manual_seed(0)
    network = Segmentation(width=8, depth=4, gamma=(0.2, 0.2, 0.2, 1.0)).eval().to(memory_format=torch.channels_last)
    images = torch.rand(8, 3, 64, 64).contiguous(memory_format=torch.channels_last)
    epochs = [[(0, 1, 2, 3), (4, 5, 6, 7)], [(0, 4, 5, 6), (7, 3, 1, 2)]]

    def second_epoch(*, first: int) -> list[Tensor]:
        maps = FrozenMaps(limit_bytes=room * 5 * 64 * 64 * 4)
        with torch.no_grad():
            passes = [
                [maps.of(rows, images[list(rows)], network) for rows in epoch]
                for epoch in (epochs[0][first:], epochs[1])
            ]
        assert len(maps) == room
        return passes[1]

    for resumed, whole in zip(second_epoch(first=1), second_epoch(first=0), strict=True):
        torch.testing.assert_close(resumed, whole, rtol=0, atol=0)
        assert resumed.stride() == whole.stride()  # or what follows might round otherwise
