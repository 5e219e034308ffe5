"""DeepMT-DR, Eqs. 8 and 9 and the focal loss: ours against slow plain Python and numbers worked out by hand."""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from retina_ray.losses import segmentation, steps

PLANE_WEIGHTS = (1.0, 1.0, 1.0, 1.0, 0.1)


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=generator(seed))


def lesion_logits(count: int = 2, seed: int = 0, size: tuple[int, int] = (3, 4)) -> Tensor:
    return torch.randn(count, 5, *size, dtype=torch.float64, generator=generator(seed))


def lesion_masks(count: int = 2, seed: int = 0, size: tuple[int, int] = (3, 4)) -> Tensor:
    """Masks in which lesions overlap, and in which some pixel is background."""
    masks = uniform(count, 4, *size, seed=seed + 100) < 0.4
    masks[:, :, 0, 0] = False
    return masks


def with_background(masks: Tensor) -> Tensor:
    return torch.cat([masks, ~masks.any(dim=1, keepdim=True)], dim=1)


seeds = st.integers(0, 2**31)


# Equation 8


def slow_ratio(probabilities: list[float], truth: list[bool]) -> float:
    overlap = sum(p for p, inside in zip(probabilities, truth, strict=True) if inside)
    return 1 - 2 * overlap / (sum(probabilities) + sum(truth))


def dice(probabilities: Tensor, masks: Tensor, *, per_lesion: bool) -> Tensor:
    return segmentation.dice_loss(probabilities, masks, plane_weights=PLANE_WEIGHTS, per_lesion=per_lesion)


def test_eq_8_printed_is_one_ratio_over_the_lesion_planes() -> None:
    # Eight true pixels in the second plane of which a quarter is seen, nothing elsewhere: 1 - 2 * 2 / (2 + 8).
    masks = torch.zeros(1, 4, 2, 4, dtype=torch.bool)
    masks[0, 1] = True
    probabilities = torch.zeros(1, 5, 2, 4)
    probabilities[0, 1], probabilities[0, 4] = 0.25, 0.75
    assert dice(probabilities, masks, per_lesion=False).item() == pytest.approx(0.6)
    probabilities, masks = lesion_logits().softmax(1), lesion_masks()
    slow = [
        slow_ratio(p[:4].flatten().tolist(), s.flatten().tolist()) for p, s in zip(probabilities, masks, strict=True)
    ]
    assert dice(probabilities, masks, per_lesion=False).tolist() == pytest.approx(slow, rel=1e-12)


@pytest.mark.parametrize("per_lesion", [False, True])
def test_eq_8_without_the_factor_2_is_one_half_for_a_perfect_overlap(per_lesion: bool) -> None:
    masks = torch.ones(1, 4, 3, 3, dtype=torch.bool)
    masks[..., 0] = False
    perfect = with_background(masks).double()
    loss = segmentation.dice_loss(perfect, masks, plane_weights=PLANE_WEIGHTS, per_lesion=per_lesion, factor=1.0)
    assert loss.item() == pytest.approx(0.5)


def test_eq_8_per_lesion_is_the_weighted_mean_over_the_five_planes() -> None:
    probabilities, masks = lesion_logits().softmax(1), lesion_masks()
    slow = [
        sum(
            weight * slow_ratio(p[plane].flatten().tolist(), s[plane].flatten().tolist())
            for plane, weight in enumerate(PLANE_WEIGHTS)
        )
        / sum(PLANE_WEIGHTS)
        for p, s in zip(probabilities, with_background(masks), strict=True)
    ]
    assert dice(probabilities, masks, per_lesion=True).tolist() == pytest.approx(slow, rel=1e-12)


def test_eq_8_printed_hides_a_small_lesion_behind_a_large_one() -> None:
    masks = torch.zeros(1, 4, 10, 10, dtype=torch.bool)
    masks[0, 0, 0, 0] = True  # one pixel of a microaneurysm
    masks[0, 1, 1:] = True  # 90 of a haemorrhage
    seen = with_background(masks).double()
    seen[0, 0], seen[0, 4, 0, 0] = 0.0, 1.0
    assert dice(seen, masks, per_lesion=False).item() == pytest.approx(1 - 180 / 181)
    missed_plane = 1 / 4.1
    absent_planes = 2 / 4.1
    background = 0.1 / 4.1 * (1 - 18 / 19)
    assert dice(seen, masks, per_lesion=True).item() == pytest.approx(missed_plane + absent_planes + background)


@pytest.mark.parametrize("per_lesion", [False, True])
def test_eq_8_is_0_for_a_perfect_overlap_and_1_for_none(per_lesion: bool) -> None:
    masks = torch.zeros(1, 4, 3, 3, dtype=torch.bool)
    for plane in range(4):
        masks[0, plane, plane % 3, plane // 3] = True
    perfect = with_background(masks).double()
    assert dice(perfect, masks, per_lesion=per_lesion).item() == 0.0
    assert dice((1 - perfect) / 4, masks, per_lesion=per_lesion).item() == 1.0


def test_eq_8_of_a_mask_without_lesions_is_1_and_passes_no_gradient() -> None:
    masks = torch.zeros(2, 4, 2, 2, dtype=torch.bool)
    probabilities = torch.zeros(2, 5, 2, 2, dtype=torch.float64)
    probabilities[1] = 0.2  # the first image sees nothing, the second something
    probabilities.requires_grad_()
    loss = dice(probabilities, masks, per_lesion=False)
    assert loss.tolist() == [1.0, 1.0]
    (gradient,) = torch.autograd.grad(loss.sum(), probabilities)
    assert not gradient.any()


@given(seed=seeds, per_lesion=st.booleans())
def test_eq_8_lies_between_0_and_1_and_does_not_depend_on_the_order_of_pixels(seed: int, per_lesion: bool) -> None:
    probabilities, masks = lesion_logits(seed=seed).softmax(1), lesion_masks(seed=seed)
    loss = dice(probabilities, masks, per_lesion=per_lesion)
    assert 0 <= loss.min() <= loss.max() <= 1
    order = torch.randperm(12, generator=generator(seed))
    shuffled, shuffled_masks = (x.flatten(2)[..., order].view(x.shape) for x in (probabilities, masks))
    torch.testing.assert_close(dice(shuffled, shuffled_masks, per_lesion=per_lesion), loss)


@pytest.mark.parametrize("weights", [(1.0,) * 4, (1.0, 1.0, 1.0, 1.0, -0.1), (0.0,) * 5])
def test_eq_8_refuses_weights_that_give_no_mean(weights: tuple[float, ...]) -> None:
    with pytest.raises(ValueError, match="5 plane weights"):
        segmentation.dice_loss(lesion_logits().softmax(1), lesion_masks(), plane_weights=weights, per_lesion=True)


# The focal loss next to Equation 8


def test_focal_loss_against_plain_python() -> None:
    logits, masks = lesion_logits(), lesion_masks()
    expected = []
    for z, truth in zip(logits, with_background(masks), strict=True):
        total = 0.0
        for h in range(3):
            for w in range(4):
                exponentials = [math.exp(value) for value in z[:, h, w].tolist()]
                for e, inside in zip(exponentials, truth[:, h, w].tolist(), strict=True):
                    p = e / sum(exponentials)
                    total += -0.25 * (1 - p) ** 2 * math.log(p) if inside else 0.0
        expected.append(total / 12)
    loss = segmentation.focal_loss(logits, masks, alpha=0.25, gamma=2.0)
    assert loss.tolist() == pytest.approx(expected, rel=1e-12)


@given(seed=seeds)
def test_focal_loss_at_gamma_0_is_the_cross_entropy(seed: int) -> None:
    logits = lesion_logits(seed=seed)
    plane = torch.randint(5, (2, 3, 4), generator=generator(seed))
    masks = nn.functional.one_hot(plane, 5).permute(0, 3, 1, 2)[:, :4].bool()
    cross_entropy = nn.functional.cross_entropy(logits, plane, reduction="none").mean(dim=(1, 2))
    torch.testing.assert_close(segmentation.focal_loss(logits, masks, alpha=1.0, gamma=0.0), cross_entropy)
    focal = segmentation.focal_loss(logits, masks, alpha=1.0, gamma=2.0)
    assert bool(((focal > 0) & (focal < cross_entropy)).all())


@pytest.mark.parametrize("gamma", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("scale", [1.0, -1.0])
def test_focal_loss_of_saturated_logits_is_finite(gamma: float, scale: float) -> None:
    masks = torch.zeros(1, 4, 1, 1, dtype=torch.bool)
    logits = scale * torch.tensor([-500.0, -500.0, -500.0, -500.0, 500.0]).view(1, 5, 1, 1)
    logits.requires_grad_()
    loss = segmentation.focal_loss(logits, masks, alpha=1.0, gamma=gamma)
    assert loss.item() == pytest.approx(0.0 if scale > 0 else 1000 + math.log(4))
    (gradient,) = torch.autograd.grad(loss.sum(), logits)
    assert bool(gradient.isfinite().all())


# Equation 9


def pseudo(probabilities: Tensor, map_hr: Tensor, kind: steps.Step, against: segmentation.Against) -> Tensor:
    return segmentation.semi_supervised(probabilities, map_hr, threshold=0.5, kind=kind, sharpness=9.0, against=against)


def slow_label(value: float, kind: steps.Step) -> float:
    if kind == "none":
        return value
    return 1 / (1 + math.exp(-9 * (value - 0.5))) if kind == "soft" else float(value > 0.5)


@pytest.mark.parametrize("kind", ["soft", "hard", "none"])
def test_eq_9_against_plain_python(kind: steps.Step) -> None:
    probabilities, map_hr = lesion_logits().softmax(1), uniform(2, 3, 4)
    union, each = [0.0, 0.0], [0.0, 0.0]
    for image in range(2):
        for h in range(3):
            for w in range(4):
                label = slow_label(map_hr[image, h, w].item(), kind)
                lesions = probabilities[image, :4, h, w].tolist()
                union[image] += (sum(lesions) - label) ** 2 / 12
                each[image] += sum((p - label) ** 2 for p in lesions) / 48
    assert pseudo(probabilities, map_hr, kind, "union").tolist() == pytest.approx(union, rel=1e-9)
    assert pseudo(probabilities, map_hr, kind, "each").tolist() == pytest.approx(each, rel=1e-12)


def test_eq_9_against_each_plane_cannot_be_met_where_the_map_shows_a_lesion() -> None:
    shown = torch.ones(1, 3, 4, dtype=torch.float64)
    four_at_once = torch.tensor([0.25] * 4 + [0.0], dtype=torch.float64).view(1, 5, 1, 1).expand(1, 5, 3, 4)
    one = torch.tensor([1.0] + [0.0] * 4, dtype=torch.float64).view(1, 5, 1, 1).expand(1, 5, 3, 4)
    # At best all four probabilities are 1/4, which says less than the one lesion that is there.
    assert pseudo(four_at_once, shown, "hard", "each").item() == pytest.approx(0.75**2)
    assert pseudo(one, shown, "hard", "each").item() == pytest.approx(0.75)
    assert pseudo(four_at_once, shown, "hard", "union").item() == pseudo(one, shown, "hard", "union").item() == 0.0


@pytest.mark.parametrize("against", ["union", "each"])
def test_eq_9_trains_the_segmentation_but_as_printed_not_the_map(against: segmentation.Against) -> None:
    logits, map_hr = lesion_logits().requires_grad_(), uniform(2, 3, 4).requires_grad_()
    loss = pseudo(logits.softmax(1), map_hr, "hard", against).sum()
    to_logits, to_map = torch.autograd.grad(loss, (logits, map_hr), allow_unused=True)
    assert to_logits.any()
    assert to_map is None
    (to_map,) = torch.autograd.grad(pseudo(logits.softmax(1), map_hr, "soft", against).sum(), map_hr)
    assert to_map.any()


# All of them

# Of any five planes in [0, 1], which serve as probabilities, as logits and, the first of them, as an evidence map.
LOSSES: dict[str, Callable[[Tensor], Tensor]] = {
    "eq_8": lambda x: dice(x, lesion_masks(), per_lesion=False),
    "eq_8_per_lesion": lambda x: dice(x, lesion_masks(), per_lesion=True),
    "focal": lambda x: segmentation.focal_loss(x, lesion_masks(), alpha=0.25, gamma=2.0),
    "eq_9_union": lambda x: pseudo(x, x[:, 0], "soft", "union"),
    "eq_9_each": lambda x: pseudo(x, x[:, 0], "soft", "each"),
}


@pytest.mark.parametrize("name", LOSSES)
def test_gradients_match_difference_quotients(name: str) -> None:
    assert torch.autograd.gradcheck(LOSSES[name], uniform(2, 5, 3, 4).requires_grad_())


@pytest.mark.parametrize("name", LOSSES)
def test_every_image_has_its_own_loss(name: str) -> None:
    planes = uniform(2, 5, 3, 4).requires_grad_()
    losses = LOSSES[name](planes)
    assert losses.shape == (2,)
    (gradient,) = torch.autograd.grad(losses[0], planes)
    assert gradient[0].any()
    assert not gradient[1].any()


@pytest.mark.parametrize("name", LOSSES)
def test_bfloat16_is_computed_in_float32(name: str) -> None:
    coarse = uniform(2, 5, 3, 4).bfloat16()
    loss = LOSSES[name](coarse)
    assert loss.dtype == torch.float32
    torch.testing.assert_close(loss.double(), LOSSES[name](coarse.double()), atol=1e-6, rtol=1e-5)


def test_a_bfloat16_sum_over_many_pixels_is_exact() -> None:
    # In bfloat16 a sum of ones stops at 256.
    masks = torch.zeros(1, 4, 64, 64, dtype=torch.bool)
    masks[0, 2, :32] = True
    assert dice(with_background(masks).bfloat16(), masks, per_lesion=False).item() == 0.0


def test_a_mask_or_map_of_another_size_is_named_with_both_sizes() -> None:
    logits, masks, map_hr = lesion_logits(), lesion_masks(size=(6, 8)), uniform(2, 6, 8)
    for call in (
        lambda: dice(logits.softmax(1), masks, per_lesion=False),
        lambda: segmentation.focal_loss(logits, masks, alpha=1.0, gamma=2.0),
        lambda: pseudo(logits.softmax(1), map_hr, "soft", "union"),
    ):
        with pytest.raises(ValueError, match=r"size \(3, 4\), not \(6, 8\)"):
            call()


def test_no_function_waits_for_the_device() -> None:
    # Meta tensors hold no values: reading one, as a host synchronisation would, raises.
    planes = torch.zeros(2, 5, 4, 4, device="meta")
    masks = planes[:, :4].bool()
    for per_lesion in (False, True):
        dice(planes, masks, per_lesion=per_lesion)
    segmentation.focal_loss(planes, masks, alpha=0.25, gamma=2.0)
    for kind in ("soft", "hard"):
        pseudo(planes, planes[:, 0], kind, "union")
