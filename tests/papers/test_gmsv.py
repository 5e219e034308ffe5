"""DeepMT-DR, Eqs. 2 and 3 and Algorithm 1: GMSV against a slow, explicit form and numbers worked out by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn
from torch.nn import functional

from retina_ray.explain.gmsv import Fusion, Gmsv, lesion_iou
from retina_ray.explain.maps import min_max
from retina_ray.losses.steps import Step
from tests.tiny_grader import CHANNELS, make_grader, make_inputs

FORMS = [(step, fusion) for step in ("hard", "soft", "none") for fusion in ("sum", "learned")]
SHARPNESS = 9.0

Plane = list[list[float]]


def make_gmsv(
    channels: tuple[int, ...] = CHANNELS,
    *,
    theta_seg: float = 0.5,
    step: Step = "soft",
    sharpness: float = SHARPNESS,
    fusion: Fusion = "sum",
) -> Gmsv:
    return Gmsv(channels, theta_seg=theta_seg, step=step, sharpness=sharpness, fusion=fusion).double()


def plane(*rows: list[float]) -> Tensor:
    return torch.tensor(rows, dtype=torch.float64)


# The slow form: one image, one channel, one pixel at a time, on plain numbers.


def slow_step(value: float, threshold: float, kind: str) -> float:
    if kind == "hard":
        return float(value > threshold)
    return 1 / (1 + math.exp(-SHARPNESS * (value - threshold)))


def slow_up(channel: Plane, height: int, width: int) -> Plane:
    """Nearest: pixel (y, x) shows the cell in which it lies."""
    h, w = len(channel), len(channel[0])
    return [[channel[y * h // height][x * w // width] for x in range(width)] for y in range(height)]


def slow_iou(mask: Plane, lesions: Plane) -> float:
    """The IoU of Eq. 2 on the lesion map's pixels."""
    pixels = [
        (m, s)
        for mask_row, row in zip(slow_up(mask, len(lesions), len(lesions[0])), lesions, strict=True)
        for m, s in zip(mask_row, row, strict=True)
    ]
    union = sum(m + s - m * s for m, s in pixels)
    return sum(m * s for m, s in pixels) / union if union > 0 else 0.0


def slow_selection(layer: list[Plane], xi: list[float], lesions: Plane, theta: float, kind: str) -> list[float]:
    """Each channel's part in the set U of Eq. 2, 0 or 1 if hard."""
    if kind == "none":
        return [1.0] * len(layer)
    ious = []
    for channel, threshold in zip(layer, xi, strict=True):
        top = max(max(row) for row in channel) or 1.0
        mask = [[slow_step(value / top, threshold, kind) for value in row] for row in channel]
        ious.append(slow_iou(mask, lesions))
    best = max(ious)
    if best == 0:
        return [1.0] * len(layer)
    if kind == "hard":
        return [float(iou > theta * best) for iou in ious]
    return [slow_step(iou / best, theta, kind) for iou in ious]


def slow_bilinear(values: Tensor, size: tuple[int, int]) -> Tensor:
    return functional.interpolate(values[None, None], size, mode="bilinear")[0, 0]


def slow_gmsv(gmsv: Gmsv, features: tuple[Tensor, ...], score: Tensor, lesions: Tensor) -> Tensor:
    """Algorithm 1, line by line, for each image by itself."""
    maps = []
    for image in range(len(score)):
        gradients = torch.autograd.grad(score[image], features, retain_graph=True)
        union = [[min(1.0, sum(pixel)) for pixel in row] for row in lesions[image].permute(1, 2, 0).tolist()]
        fused = torch.zeros(0)
        for j in reversed(range(len(features))):
            layer, gradient = features[j][image].detach(), gradients[j][image]
            selection = slow_selection(layer.tolist(), gmsv.xi[j].tolist(), union, gmsv.theta_seg, gmsv.step)
            cells = gradient[0].numel()
            weights = [part * sum(map(sum, g.tolist())) / cells for part, g in zip(selection, gradient, strict=True)]
            v = sum((w * f for w, f in zip(weights, layer, strict=True)), torch.zeros_like(layer[0]))
            if gmsv.joints is not None:
                v = slow_rescaled(v.clamp(min=0))
            if j == len(features) - 1:
                fused = v
                continue
            enlarged = slow_bilinear(fused, (len(v), len(v[0])))
            if gmsv.joints is None:
                fused = enlarged + sum(weights) * v
            else:
                joint = gmsv.joints[len(features) - 2 - j]
                a, b = joint.weight.flatten().tolist()
                fused = (a * enlarged + b * v + joint.bias.item()).clamp(min=0)
        maps.append(slow_rescaled(slow_bilinear(fused, (lesions.shape[2], lesions.shape[3])).clamp(min=0)))
    return torch.stack(maps)


def slow_rescaled(values: Tensor) -> Tensor:
    low, high = values.min(), values.max()
    return (values - low) / (high - low) if high > low else torch.zeros_like(values)


@pytest.mark.parametrize("size", [(16, 16), (16, 24), (13, 21)])
@pytest.mark.parametrize(("step", "fusion"), FORMS)
def test_gmsv_is_the_slow_form(step: Step, fusion: Fusion, size: tuple[int, int]) -> None:
    network, (images, lesions) = make_grader(), make_inputs(3, size)
    gmsv = make_gmsv(step=step, fusion=fusion)
    with torch.no_grad():
        for xi in gmsv.xi:
            xi.uniform_(0.2, 0.8)
        for joint in gmsv.joints or []:
            joint.weight.copy_(torch.tensor([0.8, 0.3]).view(1, 2, 1, 1))
            joint.bias.fill_(-0.05)
    logits, features = network(images.requires_grad_(), lesions)
    score = logits[:, 1:].sum(dim=1)
    ours = gmsv(features, score, lesions, create_graph=False)
    slow = slow_gmsv(gmsv, features, score, lesions)
    torch.testing.assert_close(ours, slow)
    assert slow.amax(dim=(1, 2)).tolist() == [1, 1, 1]  # the comparison is one of maps, not of zeros


# Equation 2


def test_eq_2_iou_worked_out() -> None:
    # The mask's one cell covers the 4 pixels at the top left; 2 of them and 1 other are lesion: 2 / (4 + 3 - 2).
    lesions = plane([1, 0, 0, 0], [1, 0, 0, 0], [0, 0, 0, 1], [0, 0, 0, 0])
    mask = plane([1, 0], [0, 0])
    assert lesion_iou(mask[None, None], lesions[None]).item() == pytest.approx(2 / 5)
    # Probabilities: intersection 4 * 0.5 * 0.5, union 4 * (0.5 + 0.5 - 0.25) + 12 * 0.5.
    half = torch.full((1, 4, 4), 0.5, dtype=torch.float64)
    assert lesion_iou(0.5 * mask[None, None], half).item() == pytest.approx(1 / 9)


@settings(max_examples=60)
@given(cells=st.tuples(*[st.integers(1, 6)] * 2), pixels=st.tuples(*[st.integers(1, 9)] * 2), seed=st.integers(0, 99))
def test_eq_2_iou_is_exact_at_the_resolution_of_the_features(
    cells: tuple[int, int], pixels: tuple[int, int], seed: int
) -> None:
    random = torch.Generator().manual_seed(seed)
    masks = torch.rand(2, 2, *cells, generator=random, dtype=torch.float64)
    masks[:, 1] = (masks[:, 1] > 0.5).double()
    lesions = torch.rand(2, *pixels, generator=random, dtype=torch.float64)
    lesions[1] = (lesions[1] > 0.5).double()
    ours = lesion_iou(masks, lesions)
    slow = [
        [slow_iou(mask.tolist(), image.tolist()) for mask in layer] for layer, image in zip(masks, lesions, strict=True)
    ]
    torch.testing.assert_close(ours, plane(*slow))


@pytest.mark.parametrize(("cells", "pixels"), [(4, 16), (2, 13), (7, 16), (11, 21)])
def test_eq_2_up_is_torchs_nearest(cells: int, pixels: int) -> None:
    channel = torch.rand(cells, cells, dtype=torch.float64)
    enlarged = functional.interpolate(channel[None, None], (pixels, pixels), mode="nearest")[0, 0]
    assert slow_up(channel.tolist(), pixels, pixels) == enlarged.tolist()


# One layer of 2 x 2 cells. Channel 0 is hot on the left, where the lesions are (IoU 1); channel 1 in one cell of it
# (IoU 1/2); channel 2 on the right (IoU 0). Each has gradient 1 in every cell.
LAYER = torch.stack([plane([2, 0], [2, 0]), plane([0, 0], [4, 0]), plane([0, 8], [0, 8])])[None]
LEFT = torch.cat([torch.ones(1, 1, 4, 2), torch.zeros(1, 1, 4, 2)], dim=3).double()


def map_of(layer: Tensor, lesions: Tensor, gmsv: Gmsv) -> Tensor:
    """The map under a score that is the sum of all features."""
    layer = layer.detach().clone().requires_grad_()
    return gmsv([layer], layer.sum(dim=(1, 2, 3)), lesions, create_graph=False)


@pytest.mark.parametrize(
    ("theta_seg", "kept"),
    [(0.0, [0, 1]), (0.49, [0, 1]), (0.5, [0]), (0.99, [0])],
)
def test_eq_2_selects_what_exceeds_theta_times_the_largest_iou(theta_seg: float, kept: list[int]) -> None:
    heat = map_of(LAYER, LEFT, make_gmsv((3,), theta_seg=theta_seg, step="hard"))
    expected = min_max(functional.interpolate(LAYER[:, kept].sum(dim=1, keepdim=True), (4, 4), mode="bilinear")[:, 0])
    torch.testing.assert_close(heat, expected)


@pytest.mark.parametrize("step", ["hard", "soft"])
def test_eq_2_without_lesions_keeps_every_channel(step: Step) -> None:
    heat = map_of(LAYER, torch.zeros_like(LEFT), make_gmsv((3,), step=step))
    expected = min_max(functional.interpolate(LAYER.sum(dim=1, keepdim=True), (4, 4), mode="bilinear")[:, 0])
    torch.testing.assert_close(heat, expected)


def test_eq_2_lesions_are_the_union_of_the_planes() -> None:
    # A pixel that two planes claim counts once, as one lesion.
    planes = torch.cat([LEFT, LEFT, torch.zeros_like(LEFT), torch.zeros_like(LEFT)], dim=1)
    gmsv = make_gmsv((3,), theta_seg=0.6)
    assert map_of(LAYER, planes, gmsv).tolist() == map_of(LAYER, LEFT, gmsv).tolist()


def test_eq_2_a_sharp_step_is_the_printed_one() -> None:
    network, (images, lesions) = make_grader(), make_inputs(2)
    logits, features = network(images.requires_grad_(), lesions)
    hard, sharp = make_gmsv(step="hard"), make_gmsv(step="soft", sharpness=1e6)
    maps = [gmsv(features, logits[:, 1:].sum(dim=1), lesions, create_graph=False) for gmsv in (hard, sharp)]
    torch.testing.assert_close(maps[0], maps[1])


def test_eq_2_as_printed_learns_no_xi() -> None:
    network, (images, lesions) = make_grader(), make_inputs(2)
    logits, features = network(images.requires_grad_(), lesions.requires_grad_())
    score = logits[:, 1:].sum(dim=1)
    hard, soft = make_gmsv(step="hard"), make_gmsv(step="soft")
    assert not any(xi.requires_grad for gmsv in (hard, make_gmsv(step="none")) for xi in gmsv.xi)
    hard.xi.requires_grad_()
    heat = hard(features, score, lesions, create_graph=True)
    assert torch.autograd.grad(heat.square().sum(), list(hard.xi), allow_unused=True) == (None, None, None)
    heat = soft(features, score, lesions, create_graph=True)
    assert all(g.any() for g in torch.autograd.grad(heat.square().sum(), list(soft.xi)))


# Equation 3 and Algorithm 1


def two_layers() -> tuple[list[Tensor], Tensor, Tensor]:
    """F^1 of 2 x 2 and F^2 of 1 x 2 cells, one channel each, with mean gradients 3 and -2; no lesions."""
    fine, coarse = plane([1, 0], [0, 2])[None, None].requires_grad_(), plane([-1, 3])[None, None].requires_grad_()
    gradient = plane([0, 6], [2, 4])  # mean 3, which Eq. 3 takes, not the gradient cell by cell
    score = (gradient * fine).sum().view(1) - 2 * coarse.sum()
    return [fine, coarse], score, torch.zeros(1, 4, 2, 2, dtype=torch.float64)


def test_algorithm_1_worked_out() -> None:
    features, score, lesions = two_layers()
    heat = make_gmsv((1, 1))(features, score, lesions, create_graph=False)
    # V^2 = -2 * (-1, 3) = (2, -6), enlarged to two rows of it. V^1 = V^2 + 3 * (3 * F^1) = (11, -6; 2, 12).
    # The negative part cut off: (11, 0; 2, 12); divided by 12.
    torch.testing.assert_close(heat[0], plane([11, 0], [2, 12]) / 12)


def test_the_authors_fusion_worked_out() -> None:
    features, score, lesions = two_layers()
    heat = make_gmsv((1, 1), fusion="learned")(features, score, lesions, create_graph=False)
    # V^2 = (2, -6) cut off and scaled: (1, 0). V^1 = 3 * F^1 = (3, 0; 0, 6) scaled: (1/2, 0; 0, 1).
    # Their mean: (3/4, 0; 1/2, 1/2); divided by 3/4.
    torch.testing.assert_close(heat[0], plane([1, 0], [2 / 3, 2 / 3]))


@pytest.mark.parametrize(("step", "fusion"), FORMS)
def test_an_image_does_not_change_anothers_map(step: Step, fusion: Fusion) -> None:
    network, (images, lesions) = make_grader(), make_inputs(2)
    gmsv = make_gmsv(step=step, fusion=fusion)

    def heat(rows: slice) -> Tensor:
        logits, features = network(images[rows].clone().requires_grad_(), lesions[rows])
        return gmsv(features, logits[:, 1:].sum(dim=1), lesions[rows], create_graph=False)

    torch.testing.assert_close(heat(slice(0, 2)), torch.cat([heat(slice(0, 1)), heat(slice(1, 2))]))


# Gradients


@pytest.mark.parametrize("fusion", ["sum", "learned"])
def test_gradients_are_those_of_finite_differences(fusion: Fusion) -> None:
    random = torch.Generator().manual_seed(4)
    shapes = [(1, 2, 4, 3), (1, 3, 2, 2)]
    features = [torch.rand(shape, generator=random, dtype=torch.float64).requires_grad_() for shape in shapes]
    lesions = (0.2 * torch.rand(1, 3, 5, 4, generator=random, dtype=torch.float64)).requires_grad_()
    gmsv = make_gmsv((2, 3), fusion=fusion)

    def heat(fine: Tensor, coarse: Tensor, lesions: Tensor, *_parameters: Tensor) -> Tensor:
        # Neither linear nor separable, so that Eq. 3's weights have a gradient of their own.
        score = (fine.square().mean(dim=(1, 2, 3)) + 0.3) * coarse.sin().sum(dim=(1, 2, 3))
        return gmsv([fine, coarse], score, lesions, create_graph=True)

    assert torch.autograd.gradcheck(heat, (*features, lesions, *gmsv.parameters()))


def test_gradients_reach_images_lesions_and_the_grader() -> None:
    network, (images, lesions) = make_grader(activation=nn.Softplus), make_inputs(1, (8, 8))
    gmsv = make_gmsv()

    def heat(images: Tensor, lesions: Tensor) -> Tensor:
        logits, features = network(images, lesions)
        return gmsv(features, logits[:, 1:].sum(dim=1), lesions, create_graph=True)

    inputs = (images.requires_grad_(), lesions.requires_grad_())
    assert torch.autograd.gradcheck(heat, inputs, fast_mode=True)
    gradients = torch.autograd.grad(heat(*inputs).square().sum(), [*inputs, *network.parameters()], allow_unused=True)
    names = ["images", "lesions", *(name for name, _ in network.named_parameters())]
    silent = [name for name, g in zip(names, gradients, strict=True) if g is None or not g.any()]
    assert silent == ["head.bias"]  # a constant in the score


def test_without_a_graph_the_map_is_detached_and_the_scores_graph_lives_on() -> None:
    network, (images, lesions) = make_grader(), make_inputs(2)
    logits, features = network(images.requires_grad_(), lesions)
    gmsv = make_gmsv(fusion="learned")
    heat = gmsv(features, logits[:, 1:].sum(dim=1), lesions, create_graph=False)
    assert not heat.requires_grad
    assert all(parameter.grad is None for parameter in [*network.parameters(), *gmsv.parameters()])
    logits.square().sum().backward()
    assert images.grad is not None


# Precision


def test_nan_is_not_hidden() -> None:
    layer = LAYER.clone()
    layer[0, 0, 0, 0] = math.nan
    assert bool(map_of(layer, LEFT, make_gmsv((3,))).isnan().all())


def test_low_precision_and_autocast_do_not_reach_the_map() -> None:
    layer, lesions = torch.rand(2, 3, 4, 4).bfloat16(), torch.rand(2, 4, 8, 8)
    gmsv = make_gmsv((3,)).float()
    low = map_of(layer, lesions.bfloat16(), gmsv)
    assert low.dtype == torch.float32
    torch.testing.assert_close(low, map_of(layer.float(), lesions.bfloat16().float(), gmsv))
    plain = map_of(layer.float(), lesions, gmsv)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert map_of(layer.float(), lesions, gmsv).tolist() == plain.tolist()


# What the module is


def test_parameters_and_their_start() -> None:
    state = make_gmsv(fusion="learned").state_dict()
    joints = [f"joints.{j}.{name}" for j in (0, 1) for name in ("weight", "bias")]
    assert list(state) == ["xi.0", "xi.1", "xi.2", *joints]
    assert [state[f"xi.{j}"].tolist() for j in range(3)] == [[0.5] * count for count in CHANNELS]
    assert list(make_gmsv(fusion="sum").state_dict()) == ["xi.0", "xi.1", "xi.2"]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: make_gmsv(()), "at least one layer"),
        (lambda: make_gmsv(theta_seg=1.0), "1.0"),
        (lambda: make_gmsv(theta_seg=-0.1), "-0.1"),
        (lambda: make_gmsv(theta_seg=math.nan), "nan"),
        (lambda: make_gmsv(sharpness=0.0), "0.0"),
        (lambda: map_of(LAYER, LEFT, make_gmsv((4,))), r"\(4,\).*\(3,\)"),
        (lambda: map_of(LAYER, LEFT, make_gmsv((3, 3))), r"\(3, 3\).*\(3,\)"),
    ],
)
def test_unusable_arguments_are_refused(make: Callable[[], object], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        make()
