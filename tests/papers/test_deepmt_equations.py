"""DeepMT-DR, Eqs. 4 to 7, 10, 11 and Table V: ours against slow plain Python and numbers worked out by hand.

Eqs. 8 and 9 are in ``test_deepmt_segmentation_equations.py``.
"""

import math
from collections.abc import Callable

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from retina_ray.losses import deepmt, steps


def generator(seed: int) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def uniform(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, dtype=torch.float64, generator=generator(seed))


def slow_step(value: float, threshold: float, kind: steps.Step, sharpness: float) -> float:
    if kind == "none":
        return value
    if kind == "hard":
        return 1.0 if value > threshold else 0.0
    return 1 / (1 + math.exp(-sharpness * (value - threshold)))


def slow_mean_square(ours: Tensor, theirs: Tensor) -> list[float]:
    """Mean squared difference of each image."""
    return [
        sum((a - b) ** 2 for a, b in zip(x.flatten().tolist(), y.flatten().tolist(), strict=True)) / x.numel()
        for x, y in zip(ours, theirs, strict=True)
    ]


def slow_stepped(values: Tensor, threshold: float, kind: steps.Step, sharpness: float) -> Tensor:
    stepped = [slow_step(value, threshold, kind, sharpness) for value in values.flatten().tolist()]
    return torch.tensor(stepped, dtype=torch.float64).view(values.shape)


seeds = st.integers(0, 2**31)


# The thresholds of Equations 5 and 9


@pytest.mark.parametrize("kind", ["soft", "hard", "none"])
def test_step_against_plain_python(kind: steps.Step) -> None:
    values = uniform(2, 3, 4)
    expected = slow_stepped(values, 0.4, kind, 12.0)
    torch.testing.assert_close(steps.step(values, 0.4, kind=kind, sharpness=12.0), expected, atol=1e-12, rtol=0)


def test_step_at_the_threshold_itself() -> None:
    values = torch.tensor([0.25])
    assert steps.hard_step(values, 0.25).item() == 0.0  # Eq. 5 prints >
    assert steps.soft_step(values, 0.25, 8.0).item() == 0.5


def test_hard_step_passes_no_gradient_and_the_soft_one_a_quarter_of_its_sharpness() -> None:
    values = torch.full((1,), 0.5, dtype=torch.float64, requires_grad=True)
    assert not steps.step(values, 0.5, kind="hard", sharpness=8.0).requires_grad
    (slope,) = torch.autograd.grad(steps.step(values, 0.5, kind="soft", sharpness=8.0), values)
    assert slope.item() == pytest.approx(2.0)


@given(seed=seeds, threshold=st.floats(0.1, 0.9))
def test_soft_step_rises_and_tends_to_the_hard_one(seed: int, threshold: float) -> None:
    values = uniform(50, seed=seed).sort().values
    soft = steps.soft_step(values, threshold, 10.0)
    assert bool((soft.diff() >= 0).all())
    assert 0 <= soft.min() <= soft.max() <= 1
    clear = (values - threshold).abs() > 1e-3
    torch.testing.assert_close(
        steps.soft_step(values, threshold, 1e5)[clear], steps.hard_step(values, threshold)[clear]
    )


@pytest.mark.parametrize("sharpness", [0.0, -1.0, math.nan])
def test_soft_step_refuses_a_sharpness_that_is_not_positive(sharpness: float) -> None:
    with pytest.raises(ValueError, match="sharpness must be positive"):
        steps.step(torch.zeros(2), 0.5, kind="soft", sharpness=sharpness)


# Equation 4


def test_eq_4_is_the_mean_square_error_of_the_segmentations() -> None:
    # Four planes of two pixels, of which one plane differs by 1/2 in both: 2 / 8 * 1/4.
    maps_hr = torch.zeros(1, 4, 1, 2)
    maps_sr = maps_hr.clone()
    maps_sr[0, 2] = 0.5
    assert deepmt.segmentation_aware(maps_sr, maps_hr).tolist() == [0.0625]
    ours, theirs = uniform(2, 5, 3, 4), uniform(2, 5, 3, 4, seed=1)
    assert deepmt.segmentation_aware(ours, theirs).tolist() == pytest.approx(slow_mean_square(ours, theirs), rel=1e-12)


# Equation 5

DIFFERENT = torch.tensor([[[0.9, 0.1], [0.6, 0.4]]], dtype=torch.float64)
REFERENCE = torch.tensor([[[0.8, 0.2], [0.4, 0.6]]], dtype=torch.float64)


def test_eq_5_printed_is_the_share_of_pixels_that_differ() -> None:
    def loss(threshold: float) -> float:
        return deepmt.classification_aware(DIFFERENT, REFERENCE, threshold=threshold, kind="hard", sharpness=1.0).item()

    assert loss(0.5) == 0.5  # the lower two of four
    assert loss(0.15) == 0.25  # 0.1 against 0.2
    assert loss(0.95) == 0.0


@pytest.mark.parametrize("kind", ["soft", "hard", "none"])
def test_eq_5_against_plain_python(kind: steps.Step) -> None:
    ours, theirs = uniform(3, 4, 5), uniform(3, 4, 5, seed=1)
    expected = slow_mean_square(slow_stepped(ours, 0.3, kind, 9.0), slow_stepped(theirs, 0.3, kind, 9.0))
    loss = deepmt.classification_aware(ours, theirs, threshold=0.3, kind=kind, sharpness=9.0)
    assert loss.tolist() == pytest.approx(expected, rel=1e-12)


def test_eq_5_as_printed_passes_no_gradient_and_the_soft_form_does() -> None:
    ours, theirs = uniform(2, 3, 4).requires_grad_(), uniform(2, 3, 4, seed=1)
    assert not deepmt.classification_aware(ours, theirs, threshold=0.5, kind="hard", sharpness=9.0).requires_grad
    soft = deepmt.classification_aware(ours, theirs, threshold=0.5, kind="soft", sharpness=9.0)
    (gradient,) = torch.autograd.grad(soft.sum(), ours)
    assert bool((gradient != 0).all())


@given(seed=seeds)
def test_eq_5_printed_sees_only_the_side_of_the_threshold(seed: int) -> None:
    ours, theirs = uniform(1, 4, 4, seed=seed), uniform(1, 4, 4, seed=seed + 1)

    def loss(map_sr: Tensor) -> Tensor:
        return deepmt.classification_aware(map_sr, theirs, threshold=0.5, kind="hard", sharpness=1.0)

    assert torch.equal(loss(ours), loss(0.5 + (ours - 0.5) / 2))


# Table V


def test_table_v_without_a_map_compares_the_scores() -> None:
    loss = deepmt.classification_aware_scores(torch.tensor([3.0, -1.0]), torch.tensor([1.0, 0.5]))
    assert loss.tolist() == [4.0, 2.25]


# Equation 6


def test_eq_6_is_the_mean_absolute_difference_of_the_pixels() -> None:
    high = torch.zeros(2, 3, 1, 2)
    restored = high.clone()
    restored[0, 0] = torch.tensor([0.5, -0.25])  # two of six values
    assert deepmt.pixel_loss(restored, high, norm="l1").tolist() == [0.125, 0.0]
    assert deepmt.pixel_loss(restored, high, norm="mse").tolist() == pytest.approx([0.3125 / 6, 0.0])
    ours, theirs = uniform(2, 3, 4, 5), uniform(2, 3, 4, 5, seed=1)
    slow = [(a - b).abs().sum().item() / 60 for a, b in zip(ours, theirs, strict=True)]
    assert deepmt.pixel_loss(ours, theirs, norm="l1").tolist() == pytest.approx(slow, rel=1e-12)
    slow = slow_mean_square(ours, theirs)
    assert deepmt.pixel_loss(ours, theirs, norm="mse").tolist() == pytest.approx(slow, rel=1e-12)


# Equation 7


def slow_total_variation(image: list[list[list[float]]]) -> float:
    channels, height, width = len(image), len(image[0]), len(image[0][0])
    total = 0.0
    for c in range(channels):
        for h in range(height):
            for w in range(width):
                if w + 1 < width:
                    total += (image[c][h][w + 1] - image[c][h][w]) ** 2
                if h + 1 < height:
                    total += (image[c][h + 1][w] - image[c][h][w]) ** 2
    return total


def test_eq_7_sums_the_squared_steps_between_neighbours() -> None:
    # Along the width 1 + 9, along the height 9 + 1, in each of three channels.
    image = torch.tensor([[0.0, 1.0], [3.0, 0.0]]).expand(1, 3, 2, 2)
    assert deepmt.total_variation(image).item() == 60.0
    images = uniform(2, 3, 4, 6)
    slow = [slow_total_variation(image) for image in images.tolist()]
    assert deepmt.total_variation(images).tolist() == pytest.approx(slow, rel=1e-12)


@given(seed=seeds, shift=st.floats(-1, 1), factor=st.floats(0, 3))
def test_eq_7_ignores_brightness_and_mirroring_and_is_quadratic_in_contrast(
    seed: int, shift: float, factor: float
) -> None:
    images = uniform(2, 3, 5, 4, seed=seed)
    variation = deepmt.total_variation(images)
    for same in (images + shift, images.flip(2), images.flip(3), images.transpose(2, 3)):
        torch.testing.assert_close(deepmt.total_variation(same), variation)
    torch.testing.assert_close(deepmt.total_variation(factor * images), factor**2 * variation)
    assert not deepmt.total_variation(torch.full_like(images, shift)).any()


# Equation 10


def slow_grade_loss(logits: list[float], grade: int, offset: int) -> float:
    exponentials = [math.exp(z) for z in logits]
    predicted = logits.index(max(logits))
    weight = (abs(predicted - grade) + offset) / sum(abs(i - grade) + 1 for i in range(len(logits)))
    return -weight * math.log(exponentials[grade] / sum(exponentials))


def grade_loss(logits: Tensor, grades: Tensor, mode: deepmt.GradeWeighting) -> Tensor:
    return deepmt.grade_distance_cross_entropy(logits, grades, mode=mode)


def test_eq_10_by_hand() -> None:
    # Five equal logits but one, log 5 = 1.609438: graded 0 by the argmax of equals, truth 0, 2 and 4.
    # The denominators are 0+1+2+3+4+5 = 15, 2+1+0+1+2+5 = 11 and 15 again; the distances 0, 2 and 4.
    logits, grades = torch.zeros(3, 5, dtype=torch.float64), torch.tensor([0, 2, 4])
    logits[:, 0] = 1e-12
    printed = [0.0, 2 / 11 * math.log(5), 4 / 15 * math.log(5)]
    assert grade_loss(logits, grades, "printed").tolist() == pytest.approx(printed, abs=1e-9)
    plus_one = [1 / 15 * math.log(5), 3 / 11 * math.log(5), 5 / 15 * math.log(5)]
    assert grade_loss(logits, grades, "plus_one").tolist() == pytest.approx(plus_one, abs=1e-9)


@given(seed=seeds, num_grades=st.integers(2, 6))
def test_eq_10_against_plain_python(seed: int, num_grades: int) -> None:
    logits = torch.randn(8, num_grades, dtype=torch.float64, generator=generator(seed))
    grades = torch.randint(num_grades, (8,), generator=generator(seed + 1))
    for mode, offset in (("printed", 0), ("plus_one", 1)):
        slow = [slow_grade_loss(z, g, offset) for z, g in zip(logits.tolist(), grades.tolist(), strict=True)]
        assert grade_loss(logits, grades, mode).tolist() == pytest.approx(slow, rel=1e-9)


@given(seed=seeds)
def test_eq_10_as_printed_teaches_nothing_about_images_that_are_graded_right(seed: int) -> None:
    logits = torch.randn(6, 5, dtype=torch.float64, generator=generator(seed)).requires_grad_()
    right = logits.argmax(dim=1)
    printed = grade_loss(logits, right, "printed")
    assert not printed.any()
    assert not torch.autograd.grad(printed.sum(), logits)[0].any()
    (gradient,) = torch.autograd.grad(grade_loss(logits, right, "plus_one").sum(), logits)
    assert bool((gradient.gather(1, right.unsqueeze(1)) < 0).all())


@given(seed=seeds)
def test_eq_10_takes_the_predicted_grade_as_a_constant(seed: int) -> None:
    logits = torch.randn(6, 5, dtype=torch.float64, generator=generator(seed)).requires_grad_()
    grades = torch.randint(5, (6,), generator=generator(seed + 1))
    (gradient,) = torch.autograd.grad(grade_loss(logits, grades, "plus_one").sum(), logits)
    distance = (logits.argmax(1) - grades).abs()
    weight = (distance + 1) / torch.tensor([15.0, 12.0, 11.0, 12.0, 15.0], dtype=torch.float64)[grades]
    expected = weight.unsqueeze(1) * (logits.softmax(1) - nn.functional.one_hot(grades, 5))
    torch.testing.assert_close(gradient, expected)


def test_eq_10_weighted_is_torchs_cross_entropy_with_class_weights() -> None:
    logits, grades, weights = uniform(5, 5), torch.tensor([0, 1, 2, 3, 4]), (1.0, 10.0, 1.44, 25.0, 8.0)
    loss = deepmt.grade_distance_cross_entropy(logits, grades, mode="weighted", class_weights=weights)
    tensor = torch.tensor(weights, dtype=torch.float64)
    torch.testing.assert_close(loss, nn.functional.cross_entropy(logits, grades, weight=tensor, reduction="none"))
    plain = nn.functional.cross_entropy(logits, grades, reduction="none")
    torch.testing.assert_close(grade_loss(logits, grades, "weighted"), plain)


@pytest.mark.parametrize("mode", ["printed", "plus_one", "weighted"])
def test_eq_10_of_an_image_without_a_grade_is_0(mode: deepmt.GradeWeighting) -> None:
    logits = uniform(3, 5).requires_grad_()
    with torch.no_grad():
        logits[1, 0] = math.inf  # whatever such a row holds
    loss = grade_loss(logits, torch.tensor([-1, -1, 4]), mode)
    assert loss[:2].tolist() == [0.0, 0.0]
    assert loss[2] > 0


def test_eq_10_refuses_another_number_of_weights_than_grades() -> None:
    with pytest.raises(ValueError, match="need 5 class weights"):
        deepmt.grade_distance_cross_entropy(
            uniform(2, 5), torch.tensor([0, 1]), mode="weighted", class_weights=[1.0, 2.0]
        )


# Equation 11


def test_eq_11_is_the_weighted_sum_of_the_terms() -> None:
    terms = {"img": torch.tensor([1.0, 2.0]), "tv": torch.tensor([1000.0, 0.0]), "sa": torch.tensor([0.5, 0.25])}
    weights = {"img": 1.0, "tv": 0.001, "sa": 0.4, "ca": 0.0}
    assert deepmt.super_resolution_loss(terms, weights).tolist() == pytest.approx([2.2, 2.1])
    means = {name: term.mean() for name, term in terms.items()}
    assert deepmt.super_resolution_loss(means, weights).item() == pytest.approx(2.15)


def test_eq_11_refuses_terms_and_weights_that_do_not_match() -> None:
    term = torch.tensor(1.0)
    for terms, weights in (({}, {}), ({"img": term}, {}), ({"img": term}, {"img": 1.0, "ca": 10.0})):
        with pytest.raises(ValueError, match="do not match the terms"):
            deepmt.super_resolution_loss(terms, weights)


# All of them

Loss = Callable[[Tensor, Tensor], Tensor]


def maps_loss(kind: steps.Step) -> Loss:
    return lambda a, b: deepmt.classification_aware(a[:, 0], b[:, 0], threshold=0.5, kind=kind, sharpness=9.0)


DISTANCES: dict[str, Loss] = {
    "eq_4": deepmt.segmentation_aware,
    "eq_5_hard": maps_loss("hard"),
    "eq_5_soft": maps_loss("soft"),
    "table_v": lambda a, b: deepmt.classification_aware_scores(a[:, 0, 0, 0], b[:, 0, 0, 0]),
    "eq_6_l1": lambda a, b: deepmt.pixel_loss(a, b, norm="l1"),
    "eq_6_mse": lambda a, b: deepmt.pixel_loss(a, b, norm="mse"),
}


@pytest.mark.parametrize("name", DISTANCES)
@given(seed=seeds)
def test_distances_are_symmetric_between_0_and_1_and_0_at_equality(name: str, seed: int) -> None:
    distance, ours, theirs = DISTANCES[name], uniform(2, 3, 4, 5, seed=seed), uniform(2, 3, 4, 5, seed=seed + 1)
    there, back = distance(ours, theirs), distance(theirs, ours)
    torch.testing.assert_close(there, back)
    assert 0 < there.min() <= there.max() <= 1
    assert not distance(ours, ours).any()


SMOOTH: dict[str, Callable[[Tensor], Tensor]] = {
    "step": lambda x: steps.soft_step(x, 0.5, 7.0),
    "eq_4": lambda x: deepmt.segmentation_aware(x, uniform(2, 5, 3, 4, seed=1)),
    "eq_5": lambda x: deepmt.classification_aware(
        x[:, 0], uniform(2, 3, 4, seed=1), threshold=0.5, kind="soft", sharpness=7.0
    ),
    "table_v": lambda x: deepmt.classification_aware_scores(x[:, 0, 0, 0], uniform(2, seed=1)),
    "eq_6_l1": lambda x: deepmt.pixel_loss(x[:, :3], uniform(2, 3, 3, 4, seed=1), norm="l1"),
    "eq_6_mse": lambda x: deepmt.pixel_loss(x[:, :3], uniform(2, 3, 3, 4, seed=1), norm="mse"),
    "eq_7": deepmt.total_variation,
    "eq_10": lambda x: grade_loss(x[:, :, 0, 0], torch.tensor([4, 0]), "plus_one"),
}


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_match_difference_quotients(name: str) -> None:
    assert torch.autograd.gradcheck(SMOOTH[name], uniform(2, 5, 3, 4).requires_grad_())


@pytest.mark.parametrize("name", [name for name in SMOOTH if name != "step"])
def test_every_image_has_its_own_loss(name: str) -> None:
    values = uniform(2, 5, 3, 4).requires_grad_()
    losses = SMOOTH[name](values)
    assert losses.shape == (2,)
    (gradient,) = torch.autograd.grad(losses[0], values)
    assert gradient[0].any()
    assert not gradient[1].any()


@pytest.mark.parametrize("name", SMOOTH)
def test_bfloat16_is_computed_in_float32_or_better(name: str) -> None:
    coarse = uniform(2, 5, 3, 4).bfloat16()
    loss = SMOOTH[name](coarse)
    assert loss.dtype in (torch.float32, torch.float64)  # float64 where the other argument is
    torch.testing.assert_close(loss.double(), SMOOTH[name](coarse.double()), atol=1e-5, rtol=1e-5)


def test_a_bfloat16_sum_over_many_pixels_is_exact() -> None:
    # In bfloat16 a sum of ones stops at 256.
    stripes = torch.arange(64).remainder(2).bfloat16().expand(1, 3, 64, 64)
    assert deepmt.total_variation(stripes).item() == 3 * 64 * 63


def test_no_function_waits_for_the_device() -> None:
    # Meta tensors hold no values: reading one, as a host synchronisation would, raises.
    images = torch.zeros(2, 3, 4, 4, device="meta")
    maps, logits = images[:, 0], images[:, :, 0, 0]
    grades = torch.zeros(2, dtype=torch.int64, device="meta")
    terms = {
        "eq_4": deepmt.segmentation_aware(images, images),
        "eq_5": deepmt.classification_aware(maps, maps, threshold=0.5, kind="soft", sharpness=9.0),
        "table_v": deepmt.classification_aware_scores(logits[:, 0], logits[:, 0]),
        "eq_6": deepmt.pixel_loss(images, images, norm="l1"),
        "eq_7": deepmt.total_variation(images),
        "eq_10": grade_loss(logits, grades, "plus_one"),
        "class_weights": grade_loss(logits, grades, "weighted"),
    }
    assert deepmt.super_resolution_loss(terms, dict.fromkeys(terms, 0.5)).shape == (2,)
