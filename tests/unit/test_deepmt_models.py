"""DeepMT-DR's super-resolution, its segmentation and the chain of all three subnets."""

from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.flop_counter import FlopCounterMode

from retina_ray.models.deepmt.grading import Grader
from retina_ray.models.deepmt.network import DeepMTNetwork
from retina_ray.models.deepmt.resampling import degrade, upsample
from retina_ray.models.deepmt.segmentation import Segmentation, lesion_probabilities
from retina_ray.models.deepmt.super_resolution import SuperResolution
from retina_ray.models.deepmt.up_convolution import UpConvolution

MEAN, STD = (0.4, 0.3, 0.2), (0.2, 0.25, 0.5)
GAMMA = (0.4, 0.2, 1.0)


def num_parameters(module: nn.Module) -> int:
    return sum(parameter.numel() for parameter in module.parameters())


def photograph(height: int, width: int) -> np.ndarray:
    """Bytes (H, W, 3): smooth colours, a sharp edge and some noise, within 50 to 200.

    Pillow works in bytes and so clips between rows and columns; no overshoot of a cubic leaves the range from there.
    """
    generator = np.random.default_rng(0)
    rows, columns = np.mgrid[:height, :width]
    smooth = np.stack([np.sin(rows / 9), np.cos(columns / 7), np.sin((rows + columns) / 5)], axis=2) * 40 + 140
    smooth[height // 3 :, width // 2 :] -= 50
    return np.clip(smooth + generator.normal(0, 5, smooth.shape), 50, 200).astype(np.uint8)


def as_images(pixels: np.ndarray) -> Tensor:
    return torch.from_numpy(pixels).permute(2, 0, 1).float().div(255).unsqueeze(0)


# Resampling


@pytest.mark.parametrize("scale", [2, 4, 8])
def test_resampling_is_pillows_bicubic(scale: int) -> None:
    pixels = photograph(64, 48)
    for ours, (height, width) in (
        (degrade(as_images(pixels), scale), (64 // scale, 48 // scale)),
        (upsample(as_images(pixels), scale), (64 * scale, 48 * scale)),
    ):
        theirs = Image.fromarray(pixels).resize((width, height), Image.Resampling.BICUBIC)
        torch.testing.assert_close(ours, as_images(np.array(theirs)), atol=1.5 / 255, rtol=0)


def test_resampling_stays_in_range_and_keeps_flat_images() -> None:
    edge = torch.zeros(1, 3, 16, 16)
    edge[..., 8:] = 1
    for resampled in (degrade(edge, 2), upsample(edge, 2)):
        assert (resampled.min().item(), resampled.max().item()) == (0, 1)
    flat = torch.full((2, 3, 8, 12), 0.3)
    torch.testing.assert_close(degrade(flat, 4), flat[..., :2, :3])
    torch.testing.assert_close(upsample(flat, 1), flat)


def test_degrading_refuses_a_side_that_the_scale_does_not_divide() -> None:
    with pytest.raises(ValueError, match="18 x 16 pixels cannot be made 4 times smaller"):
        degrade(torch.zeros(1, 3, 18, 16), 4)


# Super-resolution


def test_super_resolution_has_the_authors_size() -> None:
    # 3-32 and 32-3 convolutions 896 + 867, five blocks of two 9248, two doublings of 9248.
    assert num_parameters(SuperResolution()) == 896 + 867 + 5 * 2 * 9248 + 2 * 9248 == 112_739


@pytest.mark.parametrize("output", ["tanh", "residual"])
@pytest.mark.parametrize("scale", [2, 4, 8])
def test_super_resolution_enlarges_any_size_into_the_unit_range(scale: int, output: str) -> None:
    network = SuperResolution(width=4, blocks=1, scale=scale, output=output)
    nn.init.normal_(network.layers[-1].weight, std=5)
    images = network(torch.rand(2, 3, 7, 5))
    assert images.shape == (2, 3, 7 * scale, 5 * scale)
    assert 0 <= images.min() < images.max() <= 1


def test_residual_super_resolution_starts_close_to_bicubic_and_every_layer_learns_from_the_first_step() -> None:
    network, low = SuperResolution(width=4, blocks=1, output="residual"), torch.rand(2, 3, 6, 6)
    images = network(low)
    torch.testing.assert_close(images, upsample(low, 4), rtol=0, atol=0.05)
    images.mean().backward()
    assert all(layer.weight.grad.any() for layer in network.modules() if isinstance(layer, nn.Conv2d))


def test_super_resolution_keeps_the_precision_of_its_input_under_autocast() -> None:
    low = torch.rand(1, 3, 8, 8)
    for output in ("tanh", "residual"):
        network = SuperResolution(width=4, blocks=1, output=output)
        with torch.autocast("cpu", torch.bfloat16):
            images = network(low)
        assert images.dtype == torch.float32
        torch.testing.assert_close(images, network(low), atol=0.01, rtol=0)


def test_super_resolution_refuses_other_scales_and_outputs() -> None:
    with pytest.raises(ValueError, match="scale must be 2, 4 or 8, got 3"):
        SuperResolution(scale=3)


# Enlargement and convolution in one


def plain_up_convolution(layer: UpConvolution, maps: Tensor) -> Tensor:
    large = functional.interpolate(maps, scale_factor=2.0, mode="nearest")
    return functional.conv2d(large, layer.weight, layer.bias, padding=layer.kernel_size[0] // 2)


@pytest.mark.parametrize("size", [(1, 1), (2, 3), (9, 4)])
@pytest.mark.parametrize("kernel_size", [1, 3, 5])
@pytest.mark.parametrize("bias", [True, False])
def test_up_convolution_is_enlargement_and_convolution(bias: bool, kernel_size: int, size: tuple[int, int]) -> None:
    layer = UpConvolution(4, 6, kernel_size, bias=bias)
    maps = torch.randn(2, 4, *size, requires_grad=True)
    ours, plain = layer(maps), plain_up_convolution(layer, maps)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    direction, inputs = torch.randn_like(plain), (maps, *layer.parameters())
    for found, expected in zip(
        torch.autograd.grad(ours, inputs, direction), torch.autograd.grad(plain, inputs, direction), strict=True
    ):
        torch.testing.assert_close(found, expected, atol=1e-4, rtol=1e-5)


def test_up_convolution_keeps_channels_last_and_works_under_autocast() -> None:
    layer = UpConvolution(8, 4, 3).to(memory_format=torch.channels_last)
    maps = torch.randn(2, 8, 6, 6).contiguous(memory_format=torch.channels_last)
    ours, plain = layer(maps), plain_up_convolution(layer, maps)
    assert ours.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(ours, plain, atol=1e-5, rtol=1e-5)
    with torch.autocast("cpu", torch.bfloat16):
        half = layer(maps)
    assert half.dtype == torch.bfloat16
    torch.testing.assert_close(half.float(), plain, atol=0.03, rtol=0.02)


@pytest.mark.parametrize(("kernel_size", "saving"), [(3, 2.25), (5, 100 / 36)])
def test_up_convolution_saves_multiplications(kernel_size: int, saving: float) -> None:
    layer, maps = UpConvolution(4, 6, kernel_size), torch.randn(1, 4, 8, 8)
    counts = []
    for call in (plain_up_convolution, UpConvolution.forward):
        with FlopCounterMode(display=False) as counter:
            call(layer, maps)
        counts.append(counter.get_flop_counts()["Global"][torch.ops.aten.convolution])
    assert counts[0] / counts[1] == pytest.approx(saving)


def test_up_convolution_refuses_an_even_kernel() -> None:
    with pytest.raises(ValueError, match="kernel_size must be odd, got 4"):
        UpConvolution(4, 6, 4)


# Segmentation


def small_segmentation(gamma: tuple[float, ...] = GAMMA) -> Segmentation:
    torch.manual_seed(0)
    return Segmentation(width=4, depth=3, gamma=gamma).eval()


def test_segmentation_has_the_authors_size_and_no_layer_without_a_map() -> None:
    with torch.device("meta"):
        whole = Segmentation(gamma=(0.4, 0.2, 0.2, 1.0, 0.5))
        authors = Segmentation(gamma=(0.4, 0.2, 0.2, 1.0, 0.0))
        logits = authors(torch.empty(1, 3, 64, 96))
    assert num_parameters(whole) == 51_243_289
    # Without the last UT layer: 64 from 128 channels by 3 x 3 and 5 x 5, twice (enlarged, and with the skip), then
    # 64 from 64, three batch norms and the map.
    last = 2 * 34 * 128 * 32 + 9 * 64 * 64 + 3 * 2 * 64 + 5 * 65
    assert num_parameters(whole) - num_parameters(authors) == last
    assert sorted(authors.maps) == ["0", "1", "2", "3"]
    assert logits.shape == (1, 5, 64, 96)


@pytest.mark.parametrize("gamma", [GAMMA, (0.0, 0.0, 1.0), (0.4, 0.0, 0.0), (0.0, -2.0, 0.0)])
def test_segmentation_sums_the_maps_of_every_scale(gamma: tuple[float, ...]) -> None:
    network, seen = small_segmentation(gamma), {}
    for name, layer in network.maps.items():
        layer.register_forward_hook(lambda _layer, _inputs, output, name=name: seen.update({int(name): output}))
    images = torch.randn(2, 3, 12, 20)
    logits = network(images)
    assert sorted(seen) == [i for i, weight in enumerate(gamma) if weight]
    assert len(network.up) == max(seen)
    expected = torch.zeros(2, 5, 12, 20)
    for i, maps in seen.items():  # Eq. 1: the map of scale i + 1 of 3 is enlarged 2**(3 - (i + 1)) times
        expected += gamma[i] * maps.repeat_interleave(2 ** (2 - i), 2).repeat_interleave(2 ** (2 - i), 3)
    torch.testing.assert_close(logits, expected)


def test_every_parameter_of_the_segmentation_learns() -> None:
    network = small_segmentation((0.4, 1.0, 0.0)).train()
    network(torch.randn(2, 3, 16, 16)).square().sum().backward()
    assert all(parameter.grad is not None and parameter.grad.any() for parameter in network.parameters())


def test_lesion_probabilities_are_the_softmax_without_the_background() -> None:
    lesions = lesion_probabilities(torch.tensor([0.0, 1.0, 2.0, 3.0, 4.0]).reshape(1, 5, 1, 1))
    exponentials = np.exp(np.arange(5))
    assert lesions.flatten().tolist() == pytest.approx(list(exponentials[:4] / exponentials.sum()))


def test_segmentation_refuses_what_it_cannot_do() -> None:
    with pytest.raises(ValueError, match="multiples of 4, got 12 x 18"):
        small_segmentation()(torch.zeros(1, 3, 12, 18))
    with pytest.raises(ValueError, match="3 weights that are not all 0"):
        small_segmentation((1.0, 1.0))
    with pytest.raises(ValueError, match="3 weights that are not all 0"):
        small_segmentation((0.0, 0.0, 0.0))
    with pytest.raises(ValueError, match="width must be even, got 5"):
        Segmentation(width=5, depth=1, gamma=(1.0,))


# The chain


def small_network(*, lesion_planes: int = 4) -> DeepMTNetwork:
    torch.manual_seed(0)
    return DeepMTNetwork(
        super_resolution=SuperResolution(width=4, blocks=1),
        segmentation=Segmentation(width=4, depth=3, gamma=GAMMA),
        grader=Grader(lesion_planes=lesion_planes, hidden=8),
        scale=4,
        mean=MEAN,
        std=STD,
    ).eval()


@pytest.mark.parametrize("size", [(8, 8), (9, 13)])
def test_the_chain_restores_segments_and_grades(size: tuple[int, int]) -> None:
    network, low = small_network(), torch.rand(2, 3, *size)
    output = network(low)
    height, width = (4 * side for side in size)
    assert output.restored.shape == (2, 3, height, width)
    assert output.segmentation_logits.shape == (2, 5, height, width)
    assert output.grader.logits.shape == (2, 5)
    again = network.grade(output.restored, output.segmentation_logits.softmax(1)[:, :4])
    torch.testing.assert_close(output.grader.logits, again.logits, rtol=0, atol=0)
    torch.testing.assert_close(network(low).grader.logits, output.grader.logits, rtol=0, atol=0)


def test_images_are_normalised_for_segmentation_and_grading_alone() -> None:
    network, images = small_network(), torch.rand(2, 3, 16, 12)
    mean, std = (torch.tensor(values).reshape(1, 3, 1, 1) for values in (MEAN, STD))
    normalised, lesions = (images - mean) / std, torch.rand(2, 4, 16, 12)
    torch.testing.assert_close(network.restore(images), network.super_resolution(images), rtol=0, atol=0)
    torch.testing.assert_close(network.segment(images), network.segmentation(normalised), rtol=0, atol=0)
    torch.testing.assert_close(
        network.grade(images, lesions).logits, network.grader(normalised, lesions).logits, rtol=0, atol=0
    )


def test_a_fitting_size_is_not_padded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(functional, "pad", lambda *_args, **_kwargs: pytest.fail("padded"))
    assert small_network().segment(torch.rand(2, 3, 16, 20)).shape == (2, 5, 16, 20)


def test_odd_sizes_are_continued_for_the_segmentation_and_cut_back() -> None:
    network, images = small_network(), torch.rand(2, 3, 15, 18)
    logits = network.segment(images)
    assert logits.shape == (2, 5, 15, 18)
    continued = torch.cat((images, images[:, :, -1:]), dim=2)
    continued = torch.cat((continued, continued[..., -1:], continued[..., -1:]), dim=3)
    torch.testing.assert_close(logits, network.segment(continued)[:, :, :15, :18], rtol=0, atol=0)


def test_the_loss_of_each_task_reaches_the_first_layer_of_super_resolution() -> None:
    for task in ("segmentation", "grading"):
        network = small_network()
        restored = network.restore(torch.rand(1, 3, 8, 8))
        if task == "segmentation":
            loss = network.segment(restored).square().sum()
        else:
            loss = network.grade(restored, torch.rand(1, 4, 32, 32)).logits.square().sum()
        loss.backward()
        assert network.super_resolution.layers[0].weight.grad.abs().max() > 0, task
    network = small_network()
    network(torch.rand(1, 3, 8, 8)).grader.logits.sum().backward()
    assert network.segmentation.down[0][0].branches[0].weight.grad.abs().max() > 0  # through the lesion maps


def test_absent_subnets() -> None:
    low = torch.rand(1, 3, 8, 8)
    parts = {"super_resolution": None, "segmentation": None, "grader": None}
    bare = DeepMTNetwork(**parts, scale=2, mean=MEAN, std=STD)
    torch.testing.assert_close(bare.restore(low), upsample(low, 2), rtol=0, atol=0)
    assert bare(low)[1:] == (None, None)
    for call, name in ((bare.segment, "segmentation"), (lambda images: bare.grade(images, None), "grading")):
        with pytest.raises(ValueError, match=f"no {name} subnet"):
            call(low)
    deaf = small_network(lesion_planes=0)
    torch.testing.assert_close(deaf(low).grader.logits, deaf.grade(deaf.restore(low), None).logits, rtol=0, atol=0)
    lacking = DeepMTNetwork(**parts | {"grader": Grader(hidden=8)}, scale=2, mean=MEAN, std=STD)
    with pytest.raises(ValueError, match="reads 4 lesion planes, got 0"):
        lacking(low)


def test_a_chain_has_one_scale() -> None:
    with pytest.raises(ValueError, match="enlarges 2 times, the chain 4 times"):
        DeepMTNetwork(
            super_resolution=SuperResolution(scale=2), segmentation=None, grader=None, scale=4, mean=MEAN, std=STD
        )


def test_a_network_survives_safetensors(tmp_path: Path) -> None:
    network, low = small_network(), torch.rand(1, 3, 8, 8)
    safetensors.torch.save_file(network.state_dict(), tmp_path / "model.safetensors")
    torch.manual_seed(1)
    other = small_network()
    for parameter in other.parameters():
        nn.init.zeros_(parameter)
    other.load_state_dict(safetensors.torch.load_file(tmp_path / "model.safetensors"))
    torch.testing.assert_close(other(low).grader.logits, network(low).grader.logits, rtol=0, atol=0)
