"""SALL's equations as pure functions of tensors.

What lives here: Eqs. 1, 2, 4 to 6, 9, 10 and the numbers of Table V. What does not: Eq. 3, which is the network
(``models/sall.py``), and Eqs. 7 and 8, which are autograd and the optimiser: the gradient of Eq. 6 with respect to a
head is its own task's alone, and with respect to the shared layers the sum.

Cross-entropies come as sums over the rows next to their counts N, because a batch is split over micro-batches and
processes: only sums and counts add up to the mean over the whole batch. No function waits for the device.

Shapes: ``B`` batch, ``K`` grades of one task, ``n`` soft labels. ``weight`` is 0 for padding and damaged images.
"""

from collections.abc import Mapping

import torch
from jaxtyping import Float, Int
from torch import Tensor


def temperature_softmax(logits: Float[Tensor, "B K"], temperature: float) -> Float[Tensor, "B K"]:
    """Turn logits into probabilities, flatter for a higher temperature (SALL, Eq. 10).

    ``p_i = exp(z_i / T) / sum_j exp(z_j / T)``, computed in float32 or better.

    Args:
        logits: (B, K), any real numbers; a row with NaN gives a row of NaN.
        temperature: T > 0; 1 is the plain softmax.

    Returns:
        (B, K), each row in [0, 1] with sum 1.

    Raises:
        ValueError: the temperature is not positive.
    """
    return _scaled(logits, temperature).softmax(dim=1)


def temperature_log_softmax(logits: Float[Tensor, "B K"], temperature: float) -> Float[Tensor, "B K"]:
    """Return the logarithm of ``temperature_softmax``, stable for logits of any size (SALL, Eq. 10).

    Raises:
        ValueError: the temperature is not positive.
    """
    return _scaled(logits, temperature).log_softmax(dim=1)


def synergic_labels(teacher_logits: Float[Tensor, "B K"], temperature: float) -> Float[Tensor, "B K"]:
    """Make synergic adversarial labels of a frozen teacher's logits (SALL, Eqs. 2 and 10).

    ``y* = F(x, theta_other)``: the softmax output, at temperature T, of the network trained for the other task.
    The result is detached, since the paper keeps the teacher's parameters unchanged.

    Differs from the paper: Eq. 2 prints a plain softmax; section III-D adds the temperature, which is followed here.

    Args:
        teacher_logits: (B, K); a row of NaN (no label) stays a row of NaN.
        temperature: T > 0.

    Returns:
        (B, K) soft labels in [0, 1], rows with sum 1.

    Raises:
        ValueError: the temperature is not positive.
    """
    return temperature_softmax(teacher_logits.detach(), temperature)


def hard_cross_entropy(
    logits: Float[Tensor, "B K"], grades: Int[Tensor, " B"], weight: Float[Tensor, " B"], temperature: float
) -> Float[Tensor, ""]:
    """Sum the cross-entropies of the rows that have a grade (SALL, numerator of Eqs. 1, 4 and 5).

    ``sum_i w_i * -log softmax(z_i / T)[y_i]`` over the rows with ``y_i >= 0``.

    Differs from the paper: Eqs. 1, 4 and 5 print the plain softmax; Eq. 10's temperature is inside, as section III-D
    says. There is no factor T**2 as in Hinton et al.; neither the paper nor the authors' code has one.

    Args:
        logits: (B, K).
        grades: (B,), 0..K-1, or -1 for none.
        weight: (B,), >= 0.
        temperature: T > 0.

    Returns:
        The sum, a scalar >= 0; divide by ``label_counts``' first number for the printed loss.

    Raises:
        ValueError: the temperature is not positive.
    """
    log_probabilities = temperature_log_softmax(logits, temperature)
    row = -log_probabilities.gather(1, grades.clamp(min=0).long().unsqueeze(1)).squeeze(1)
    return _weighted_sum(row, torch.where(grades >= 0, weight, 0.0))


def soft_cross_entropy(
    logits: Float[Tensor, "B K"], soft: Float[Tensor, "B K"], weight: Float[Tensor, " B"], temperature: float
) -> Float[Tensor, ""]:
    """Sum the cross-entropies of the rows that have a soft label (SALL, numerator of Eqs. 4 and 5 with ``y*``).

    ``sum_i w_i * -sum_j y*_ij log softmax(z_i / T)[j]`` over the rows without NaN; the others pass no gradient.

    Differs from the paper: as ``hard_cross_entropy``.

    Args:
        logits: (B, K).
        soft: (B, K), rows with sum 1, or NaN for none.
        weight: (B,), >= 0.
        temperature: T > 0, of the student; the labels carry theirs already.

    Returns:
        The sum, a scalar >= 0.

    Raises:
        ValueError: the temperature is not positive.
    """
    labelled = ~soft.isnan().any(dim=1)
    target = torch.where(labelled.unsqueeze(1), soft, 0.0)
    row = -(target * temperature_log_softmax(logits, temperature)).sum(dim=1)
    return _weighted_sum(row, torch.where(labelled, weight, 0.0))


def label_counts(
    grades: Int[Tensor, " B"], soft: Float[Tensor, "B K"] | None, weight: Float[Tensor, " B"]
) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Count, by weight, the rows with a hard grade and those that only have a soft label.

    Args:
        grades: (B,), -1 for none.
        soft: (B, K) soft labels or the logits they come from, rows of NaN for none; or None if there are none at all.
        weight: (B,), >= 0.

    Returns:
        Two scalars: the total weight of rows with a grade, and of rows without one but with a soft label.
    """
    graded = grades >= 0
    hard_count = torch.where(graded, weight, 0.0).sum()
    if soft is None:
        return hard_count, torch.zeros_like(hard_count)
    softly = ~graded & ~soft.isnan().any(dim=1)
    return hard_count, torch.where(softly, weight, 0.0).sum()


def task_cross_entropy(
    logits: Float[Tensor, "B K"],
    grades: Int[Tensor, " B"],
    soft_logits: Float[Tensor, "B K"] | None,
    weight: Float[Tensor, " B"],
    temperature: float,
) -> Float[Tensor, ""]:
    """Sum one task's cross-entropies over all images (SALL, numerator of Eqs. 4 and 5 under Algorithm 1's labels).

    Where an image has a hard grade for the task it is used; where it has none the teacher's soft label is; where it
    has neither the term is masked.

    Args:
        logits: (B, K) of the student.
        grades: (B,), 0..K-1, or -1 for none.
        soft_logits: (B, K) of the teacher, before the softmax, rows of NaN for none; None without synergic labels.
        weight: (B,), >= 0.
        temperature: T > 0, of teacher and student alike (section III-D).

    Returns:
        The sum, a scalar >= 0; ``task_count`` is the N to divide it by.

    Raises:
        ValueError: the temperature is not positive.
    """
    hard = hard_cross_entropy(logits, grades, weight, temperature)
    if soft_logits is None:
        return hard
    soft = synergic_labels(soft_logits, temperature)
    return hard + soft_cross_entropy(logits, soft, torch.where(grades < 0, weight, 0.0), temperature)


def task_count(
    grades: Int[Tensor, " B"], soft_logits: Float[Tensor, "B K"] | None, weight: Float[Tensor, " B"]
) -> Float[Tensor, ""]:
    """Return the N of ``task_cross_entropy``: the total weight of the rows that have any label (SALL, Eqs. 4 and 5).

    Args:
        grades: (B,), -1 for none.
        soft_logits: (B, K), rows of NaN for none; None without synergic labels.
        weight: (B,), >= 0.
    """
    hard_count, soft_count = label_counts(grades, soft_logits, weight)
    return hard_count + soft_count


def total_loss(terms: Mapping[str, Float[Tensor, ""]], loss_weight: Mapping[str, float]) -> Float[Tensor, ""]:
    """Add up the losses of the tasks (SALL, Eq. 6).

    ``l_total = sum_t w_t * l_t``.

    Differs from the paper: Eq. 6 has two tasks and no weights, which is every weight 1, the default. Algorithm 1
    requires a ``lambda`` that no equation uses; these weights are one reading of it.

    Args:
        terms: the mean loss of each task.
        loss_weight: the weight of tasks whose weight is not 1.

    Raises:
        ValueError: there is no term, or a weight names a task without one.
    """
    if not terms or not loss_weight.keys() <= terms.keys():
        raise ValueError(f"loss weights for {sorted(loss_weight)} do not match the terms {sorted(terms)}")
    return torch.stack([loss_weight.get(task, 1.0) * term for task, term in terms.items()]).sum()


def predict(probabilities: Mapping[str, Float[Tensor, "B _"]]) -> dict[str, Int[Tensor, " B"]]:
    """Return the most probable grade of every task (SALL, Eq. 9).

    Args:
        probabilities: (B, K) for each task; logits give the same result, as the softmax keeps the order.

    Returns:
        (B,) int64 for each task, 0..K-1.
    """
    return {task: values.argmax(dim=1) for task, values in probabilities.items()}


def soft_label_statistics(soft: Float[Tensor, "n K"]) -> tuple[Float[Tensor, ""], Float[Tensor, ""]]:
    """Return how peaked soft labels are (SALL, Table V): mean maximum and mean variance.

    The variance is the population variance over a label's K entries: 0 for a flat label, (K - 1) / K**2 for a one-hot.

    Differs from the paper: it does not say which variance it prints.

    Args:
        soft: (n, K), n >= 1, rows with sum 1.
    """
    return soft.amax(dim=1).mean(), soft.var(dim=1, correction=0).mean()


def _scaled(logits: Tensor, temperature: float) -> Tensor:
    if not temperature > 0:
        raise ValueError(f"temperature must be positive, got {temperature}")
    return logits.to(torch.promote_types(logits.dtype, torch.float32)) / temperature


def _weighted_sum(row: Tensor, weight: Tensor) -> Tensor:
    # Not a plain product: 0 * inf is NaN, and a padded row must not matter whatever it holds.
    return torch.where(weight > 0, weight * row, 0.0).sum()
