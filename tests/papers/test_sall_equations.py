"""SALL, Eqs. 1 to 10 and Table V: ours against slow plain Python and against numbers worked out by hand."""

import math

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor, nn

from retina_ray.losses import sall
from retina_ray.models.sall import MultiTaskGrader

LN2, LN3, LN4 = math.log(2), math.log(3), math.log(4)
NAN = math.nan


def slow_softmax(logits: list[float], temperature: float) -> list[float]:
    exponentials = [math.exp(z / temperature) for z in logits]
    return [e / sum(exponentials) for e in exponentials]


def slow_cross_entropy(target: list[float], logits: list[float], temperature: float) -> float:
    return -sum(y * math.log(p) for y, p in zip(target, slow_softmax(logits, temperature), strict=True))


def slow_task_loss(
    logits: list[list[float]], grades: list[int], soft_logits: list[list[float]], temperature: float
) -> float:
    """Mean over the rows that have a label, hard before soft."""
    total, count = 0.0, 0
    for z, grade, teacher in zip(logits, grades, soft_logits, strict=True):
        if grade >= 0:
            target = [1.0 if j == grade else 0.0 for j in range(len(z))]
        elif not any(map(math.isnan, teacher)):
            target = slow_softmax(teacher, temperature)
        else:
            continue
        total += slow_cross_entropy(target, z, temperature)
        count += 1
    return total / count


def rows(*values: list[float]) -> Tensor:
    return torch.tensor(values, dtype=torch.float64)


def ones(count: int) -> Tensor:
    return torch.ones(count, dtype=torch.float64)


def flat_network(tasks: dict[str, int], *, features: int = 3, dropout: float = 0.0) -> MultiTaskGrader:
    """Images (B, 3, 1, 2) -> 6 numbers -> tanh of a shared linear layer -> heads, in float64."""
    torch.manual_seed(0)
    backbone = nn.Sequential(nn.Flatten(), nn.Linear(6, features), nn.Tanh())
    return MultiTaskGrader(backbone, features, grades=tasks, dropout=dropout).double()


def images(count: int) -> Tensor:
    return torch.randn(count, 3, 1, 2, dtype=torch.float64, generator=torch.Generator().manual_seed(1))


# Equation 1


def test_eq_1_cross_entropy_of_the_separate_model() -> None:
    # softmax(0, ln 2, ln 3) = (1/6, 2/6, 3/6), grade 1: -ln(2/6) = ln 3
    # softmax(ln 4, 0, 0) = (4/6, 1/6, 1/6), grade 0: -ln(4/6) = ln(3/2); mean = (1.098612 + 0.405465) / 2
    logits, grades = rows([0.0, LN2, LN3], [LN4, 0.0, 0.0]), torch.tensor([1, 0])
    hard_count, _ = sall.label_counts(grades, None, ones(2))
    loss = sall.hard_cross_entropy(logits, grades, ones(2), 1.0) / hard_count
    assert loss.item() == pytest.approx(0.7520387, abs=1e-7)
    slow = slow_task_loss(logits.tolist(), [1, 0], [[NAN] * 3] * 2, 1.0)
    assert loss.item() == pytest.approx(slow, rel=1e-12)


# Equation 2


def test_eq_2_synergic_labels_are_the_other_tasks_softmax() -> None:
    # Section III-B's example of a DR image seen by the AMD network.
    paper = rows([0.1, 0.1, 0.5, 0.3])
    torch.testing.assert_close(sall.synergic_labels(paper.log(), 1.0), paper)
    # At T = 2 the square roots 0.316228 0.316228 0.707107 0.547723, divided by their sum 1.887285.
    expected = rows([0.167557, 0.167557, 0.374669, 0.290218])
    torch.testing.assert_close(sall.synergic_labels(paper.log(), 2.0), expected, atol=1e-6, rtol=0)


def test_eq_2_leaves_the_teacher_unchanged() -> None:
    teacher = flat_network({"amd": 4})
    logits = teacher(images(5))["amd"]
    labels = sall.synergic_labels(logits, 3.0)
    assert not labels.requires_grad
    for label, z in zip(labels.tolist(), logits.tolist(), strict=True):
        assert label == pytest.approx(slow_softmax(z, 3.0), rel=1e-12)


# Equation 3


def test_eq_3_hard_parameter_sharing() -> None:
    network = flat_network({"dr": 2, "amd": 2}, features=2).eval()
    with torch.no_grad():
        network.backbone[1].weight.copy_(rows([1, 0, 0, 0, 0, 0], [0, 1, 1, 0, 0, 0]))
        network.backbone[1].bias.zero_()
        for task, weight in {"dr": rows([1, 2], [3, 4]), "amd": rows([0, 1], [1, 0])}.items():
            network.heads[task].weight.copy_(weight)
            network.heads[task].bias.copy_(torch.tensor([0.5, -0.5]))
        logits = network(torch.tensor([[[[0.1, 0.2]], [[0.3, 9.0]], [[9.0, 9.0]]]], dtype=torch.float64))
    f0, f1 = math.tanh(0.1), math.tanh(0.2 + 0.3)
    assert logits["dr"][0].tolist() == pytest.approx([f0 + 2 * f1 + 0.5, 3 * f0 + 4 * f1 - 0.5], rel=1e-12)
    assert logits["amd"][0].tolist() == pytest.approx([f1 + 0.5, f0 - 0.5], rel=1e-12)


# Equations 4, 5 and 6

# Two DR images, then one AMD image, then one image that no one has labelled for either.
DR_LOGITS = rows([0.0, LN2, LN3], [LN4, 0.0, 0.0], [0.0, 0.0, LN2], [5.0, -5.0, 0.0])
DR_GRADES = torch.tensor([1, 0, -1, -1])
DR_TEACHER = rows([9.0, 0.0, 0.0], [NAN] * 3, [0.0, 0.0, 0.0], [NAN] * 3)
AMD_LOGITS = rows([0.0, LN3], [0.0, 0.0], [LN3, 0.0], [1.0, 2.0])
AMD_GRADES = torch.tensor([-1, -1, 0, -1])
AMD_TEACHER = rows([0.0, LN3], [LN4, 0.0], [NAN] * 2, [NAN] * 2)


def dr_loss(temperature: float) -> Tensor:
    total = sall.task_cross_entropy(DR_LOGITS, DR_GRADES, DR_TEACHER, ones(4), temperature)
    return total / sall.task_count(DR_GRADES, DR_TEACHER, ones(4))


def amd_loss(temperature: float) -> Tensor:
    total = sall.task_cross_entropy(AMD_LOGITS, AMD_GRADES, AMD_TEACHER, ones(4), temperature)
    return total / sall.task_count(AMD_GRADES, AMD_TEACHER, ones(4))


def test_eq_4_hard_labels_of_own_images_and_soft_labels_of_the_others() -> None:
    # Rows 0 and 1 as in Eq. 1: ln 3 and ln(3/2); the teacher's opinion of row 0 does not count. Row 2: the uniform
    # soft label against (1/4, 1/4, 2/4): (ln 4 + ln 4 + ln 2) / 3 = 1.155245. Row 3 has no label, so N = 3.
    assert dr_loss(1.0).item() == pytest.approx((1.0986123 + 0.4054651 + 1.1552453) / 3, abs=1e-7)
    slow = slow_task_loss(DR_LOGITS.tolist(), DR_GRADES.tolist(), DR_TEACHER.tolist(), 3.0)
    assert dr_loss(3.0).item() == pytest.approx(slow, rel=1e-12)


def test_eq_5_is_eq_4_for_the_other_task_with_its_own_count() -> None:
    # Row 0: soft (1/4, 3/4) against itself: 0.562335. Row 1: soft (4/5, 1/5) against (1/2, 1/2): ln 2.
    # Row 2: hard 0 against (3/4, 1/4): ln(4/3).
    assert amd_loss(1.0).item() == pytest.approx((0.5623351 + 0.6931472 + 0.2876821) / 3, abs=1e-7)
    slow = slow_task_loss(AMD_LOGITS.tolist(), AMD_GRADES.tolist(), AMD_TEACHER.tolist(), 8.0)
    assert amd_loss(8.0).item() == pytest.approx(slow, rel=1e-12)


def test_eqs_4_and_5_without_synergic_labels_use_own_images_alone() -> None:
    total = sall.task_cross_entropy(DR_LOGITS, DR_GRADES, None, ones(4), 1.0)
    assert (total / sall.task_count(DR_GRADES, None, ones(4))).item() == pytest.approx(0.7520387, abs=1e-7)


def test_eqs_4_and_5_weights_count_in_sum_and_in_n() -> None:
    weight = torch.tensor([2.0, 0.0, 0.5, 7.0], dtype=torch.float64)
    assert [count.item() for count in sall.label_counts(DR_GRADES, DR_TEACHER, weight)] == [2.0, 0.5]
    assert sall.task_count(DR_GRADES, DR_TEACHER, weight).item() == 2.5
    total = sall.task_cross_entropy(DR_LOGITS, DR_GRADES, DR_TEACHER, weight, 1.0)
    assert total.item() == pytest.approx(2 * 1.0986123 + 0.5 * 1.1552453, abs=1e-6)


def test_eq_6_total_is_the_sum_of_the_tasks() -> None:
    terms = {"dr": torch.tensor(1.5), "amd": torch.tensor(0.25), "arteriosclerosis": torch.tensor(2.0)}
    assert sall.total_loss(terms, {}).item() == 3.75
    assert sall.total_loss(terms, {"amd": 4.0, "dr": 0.0}).item() == 3.0
    with pytest.raises(ValueError, match="dme"):
        sall.total_loss(terms, {"dme": 1.0})
    with pytest.raises(ValueError, match="do not match"):
        sall.total_loss({}, {})


# Equations 7 and 8


def two_task_losses(network: MultiTaskGrader) -> dict[str, Tensor]:
    logits = network(images(4))
    labels = {"dr": (DR_GRADES, DR_TEACHER), "amd": (AMD_GRADES, AMD_TEACHER)}
    return {
        task: sall.task_cross_entropy(logits[task], grades, teacher, ones(4), 3.0)
        / sall.task_count(grades, teacher, ones(4))
        for task, (grades, teacher) in labels.items()
    }


def difference_quotients(network: MultiTaskGrader, parameter: nn.Parameter) -> dict[str, Tensor]:
    """Central differences of each task's loss for every entry of a parameter."""
    step, entries = 1e-6, parameter.detach().view(-1)
    quotients = {task: torch.zeros_like(entries) for task in network.heads}
    with torch.no_grad():
        for index, value in enumerate(entries.tolist()):
            entries[index] = value + step
            above = two_task_losses(network)
            entries[index] = value - step
            below = two_task_losses(network)
            entries[index] = value
            for task, quotient in quotients.items():
                quotient[index] = (above[task] - below[task]) / (2 * step)
    return {task: quotient.view_as(parameter) for task, quotient in quotients.items()}


def test_eq_8_shared_gradient_is_the_sum_and_a_heads_gradient_its_own_tasks() -> None:
    network = flat_network({"dr": 3, "amd": 2})
    sall.total_loss(two_task_losses(network), {}).backward()
    for task, other in (("dr", "amd"), ("amd", "dr")):
        head = network.heads[task].weight
        slow = difference_quotients(network, head)
        torch.testing.assert_close(head.grad, slow[task], atol=1e-8, rtol=1e-6)
        assert not slow[other].any()
    shared = network.backbone[1].weight
    slow = difference_quotients(network, shared)
    torch.testing.assert_close(shared.grad, slow["dr"] + slow["amd"], atol=1e-8, rtol=1e-6)
    assert all(quotient.abs().max() > 1e-3 for quotient in slow.values())


def test_eq_7_one_step_of_gradient_descent() -> None:
    network, rate = flat_network({"dr": 3, "amd": 2}), 0.1
    before = {name: value.detach().clone() for name, value in network.named_parameters()}
    own_loss = {"heads.dr": "dr", "heads.amd": "amd"}  # Delta_A and Delta_B; the shared layers follow the total
    gradients = {}
    for name, parameter in network.named_parameters():
        losses = two_task_losses(network)
        task = own_loss.get(name.rpartition(".")[0])
        loss = losses[task] if task else sall.total_loss(losses, {})
        (gradients[name],) = torch.autograd.grad(loss, parameter)

    total_before = sall.total_loss(two_task_losses(network), {})
    total_before.backward()
    torch.optim.SGD(network.parameters(), lr=rate).step()
    for name, parameter in network.named_parameters():
        torch.testing.assert_close(parameter.detach(), before[name] - rate * gradients[name])
    assert sall.total_loss(two_task_losses(network), {}) < total_before


# Equation 9


def test_eq_9_prediction_is_the_largest_probability_of_each_task() -> None:
    dr = rows([0.1, 0.2, 0.4, 0.2, 0.1], [0.9, 0.025, 0.025, 0.025, 0.025])
    amd = rows([0.1, 0.1, 0.2, 0.6], [0.3, 0.4, 0.2, 0.1])
    predicted = sall.predict({"dr": dr, "amd": amd})
    assert {task: grade.tolist() for task, grade in predicted.items()} == {"dr": [2, 0], "amd": [3, 1]}


# Equation 10


def test_eq_10_temperature_softmax() -> None:
    # exp(0 / 2) = 1 and exp(ln 4 / 2) = 2.
    torch.testing.assert_close(sall.temperature_softmax(rows([0.0, LN4]), 2.0), rows([1 / 3, 2 / 3]))
    torch.testing.assert_close(sall.temperature_log_softmax(rows([0.0, LN4]), 2.0), rows([-LN3, LN2 - LN3]))


@pytest.mark.parametrize("temperature", [0.0, -1.0, NAN])
def test_eq_10_refuses_a_temperature_that_is_not_positive(temperature: float) -> None:
    for call in (sall.temperature_softmax, sall.temperature_log_softmax, sall.synergic_labels):
        with pytest.raises(ValueError, match="temperature must be positive"):
            call(rows([0.0, 1.0]), temperature)


def test_eq_10_is_stable_and_at_least_float32() -> None:
    huge = rows([1e4, -1e4])
    assert sall.temperature_log_softmax(huge, 1.0).tolist() == [[0.0, -2e4]]
    assert sall.temperature_softmax(torch.zeros(1, 3, dtype=torch.bfloat16), 2.0).dtype == torch.float32


# Table V


def test_table_v_mean_maximum_and_mean_variance() -> None:
    # One-hot of 4: variance (1 - 1/4) / 4 = 0.1875; flat: 0. Means: (1 + 0.25) / 2 and 0.1875 / 2.
    maximum, variance = sall.soft_label_statistics(rows([1, 0, 0, 0], [0.25] * 4))
    assert (maximum.item(), variance.item()) == pytest.approx((0.625, 0.09375))


# Properties

finite = st.floats(-20, 20)
temperatures = st.floats(0.25, 50)


@st.composite
def logit_rows(draw: st.DrawFn) -> Tensor:
    count, grades = draw(st.integers(1, 5)), draw(st.integers(2, 6))
    return rows(*[draw(st.lists(finite, min_size=grades, max_size=grades)) for _ in range(count)])


@settings(max_examples=50, deadline=None)
@given(logits=logit_rows(), data=st.data())
def test_temperature_one_is_torchs_cross_entropy(logits: Tensor, data: st.DataObject) -> None:
    grades = torch.tensor([data.draw(st.integers(0, logits.shape[1] - 1)) for _ in logits])
    ours = sall.hard_cross_entropy(logits, grades, ones(len(logits)), 1.0)
    torch.testing.assert_close(ours, nn.functional.cross_entropy(logits, grades, reduction="sum"))


@settings(max_examples=50, deadline=None)
@given(logits=logit_rows(), temperature=temperatures, data=st.data())
def test_a_one_hot_soft_label_is_the_hard_label(logits: Tensor, temperature: float, data: st.DataObject) -> None:
    grades = torch.tensor([data.draw(st.integers(0, logits.shape[1] - 1)) for _ in logits])
    one_hot = nn.functional.one_hot(grades, logits.shape[1]).double()
    weight = torch.tensor([data.draw(st.floats(0, 3)) for _ in logits], dtype=torch.float64)
    soft = sall.soft_cross_entropy(logits, one_hot, weight, temperature)
    torch.testing.assert_close(soft, sall.hard_cross_entropy(logits, grades, weight, temperature))


@settings(max_examples=50, deadline=None)
@given(logits=logit_rows(), temperature=temperatures)
def test_softmax_matches_plain_python_and_flattens_with_temperature(logits: Tensor, temperature: float) -> None:
    probabilities = sall.temperature_softmax(logits, temperature)
    for ours, z in zip(probabilities.tolist(), logits.tolist(), strict=True):
        assert ours == pytest.approx(slow_softmax(z, temperature), rel=1e-9)
    flatter = sall.temperature_softmax(logits, 2 * temperature)
    assert bool((flatter.amax(1) <= probabilities.amax(1) + 1e-12).all())
    flat = torch.full_like(logits, 1 / logits.shape[1])
    torch.testing.assert_close(sall.temperature_softmax(logits, 1e9), flat, atol=1e-6, rtol=0)


@settings(max_examples=50, deadline=None)
@given(logits=logit_rows(), temperature=temperatures, data=st.data())
def test_rows_without_a_label_or_weight_count_for_nothing(
    logits: Tensor, temperature: float, data: st.DataObject
) -> None:
    count = len(logits)
    kinds = data.draw(st.lists(st.sampled_from(["hard", "soft", "none", "padding"]), min_size=count, max_size=count))
    grades = torch.tensor([1 if kind in ("hard", "padding") else -1 for kind in kinds])
    soft_logits = torch.where(torch.tensor([kind == "soft" for kind in kinds])[:, None], logits.flip(1), NAN)
    weight = torch.tensor([0.0 if kind == "padding" else 1.0 for kind in kinds], dtype=torch.float64)
    live = [i for i, kind in enumerate(kinds) if kind in ("hard", "soft")]

    logits.requires_grad_()
    total = sall.task_cross_entropy(logits, grades, soft_logits, weight, temperature)
    (gradient,) = torch.autograd.grad(total, logits)
    dead = [i for i in range(count) if i not in live]
    assert not gradient[dead].any()
    assert bool(gradient.isfinite().all())
    assert sall.task_count(grades, soft_logits, weight).item() == len(live)
    alone = sall.task_cross_entropy(logits[live], grades[live], soft_logits[live], weight[live], temperature)
    torch.testing.assert_close(total, alone)


def test_a_padded_row_may_hold_infinity() -> None:
    logits = rows([math.inf, 0.0], [0.0, LN3]).requires_grad_()
    weight = torch.tensor([0.0, 1.0], dtype=torch.float64)
    assert sall.hard_cross_entropy(logits, torch.tensor([1, 1]), weight, 1.0).item() == pytest.approx(LN4 - LN3)


def test_sums_over_micro_batches_add_up() -> None:
    whole = sall.task_cross_entropy(DR_LOGITS, DR_GRADES, DR_TEACHER, ones(4), 3.0)
    halves = [
        sall.task_cross_entropy(DR_LOGITS[part], DR_GRADES[part], DR_TEACHER[part], ones(2), 3.0)
        for part in (slice(0, 2), slice(2, 4))
    ]
    torch.testing.assert_close(whole, halves[0] + halves[1])


def test_no_function_waits_for_the_device() -> None:
    # Meta tensors hold no values: reading one, as a host synchronisation would, raises.
    logits, grades = torch.zeros(4, 3, device="meta"), torch.zeros(4, dtype=torch.int64, device="meta")
    weight = torch.zeros(4, device="meta")
    total = sall.task_cross_entropy(logits, grades, logits, weight, 3.0)
    count = sall.task_count(grades, logits, weight)
    sall.total_loss({"dr": total / count}, {"dr": 2.0})
    sall.predict({"dr": sall.temperature_softmax(logits, 3.0)})
    sall.soft_label_statistics(logits)
