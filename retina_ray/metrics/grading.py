"""Numbers that say how well a model grades one task, from its probabilities and the true grades.

Shapes: ``n`` images, ``K`` grades. What is not here: calibration fits and reliability bins (``calibration``),
intervals (``bootstrap``), and the choice of which predictions to count (``table``).
"""

from typing import Any, Literal

import numpy as np
import numpy.typing as npt
import torch
from torchmetrics.functional.classification import (
    binary_auroc,
    binary_calibration_error,
    multiclass_cohen_kappa,
    multiclass_confusion_matrix,
    multiclass_f1_score,
    multiclass_precision,
)

from retina_ray.metrics.probabilities import DEFAULT_BINS, checked, per_image_losses, top_label

METRICS = (
    "accuracy",
    "confidence",
    "error",
    "auroc",
    "kappa",
    "kappa_linear",
    "kappa_quadratic",
    "f1_macro",
    "f1_weighted",
    "precision_macro",
    "precision_weighted",
    "ece",
    "mce",
    "nll",
    "brier",
)
"""The keys of `grading_metrics`, in the order in which tables show them."""

Average = Literal["macro", "weighted"]
KappaWeights = Literal["none", "linear", "quadratic"]


def confusion_matrix(probabilities: npt.NDArray[Any], truth: npt.NDArray[Any]) -> npt.NDArray[np.int64]:
    """Count images by true and predicted grade.

    Args:
        probabilities: (n, K), rows sum to 1.
        truth: (n,), in [0, K).

    Returns:
        (K, K); rows are the truth, columns the prediction.

    Raises:
        ValueError: no rows, or shapes that do not fit each other.
        DataError: probabilities that are not distributions, or a grade outside [0, K).
    """
    values, grades = checked(probabilities, truth)
    predicted, _, _ = top_label(values, grades)
    counts = multiclass_confusion_matrix(
        torch.from_numpy(predicted), torch.from_numpy(grades), num_classes=values.shape[1]
    )
    return counts.numpy().astype(np.int64)


def grading_metrics(
    probabilities: npt.NDArray[Any], truth: npt.NDArray[Any], *, bins: int = DEFAULT_BINS
) -> dict[str, float]:
    """Measure the predictions of one task.

    ``confidence`` and ``error`` are SALL's Conf and Err (section IV-C): the mean highest probability over right and
    over wrong predictions. ``auroc`` is the mean of one-vs-rest areas over the grades present; ``ece`` and ``mce``
    are the mean and the largest gap of the top label's confidence to its accuracy; ``brier`` sums over grades.

    Args:
        probabilities: (n, K), rows sum to 1.
        truth: (n,), in [0, K).
        bins: equal-width bins of ``ece`` and ``mce``.

    Returns:
        One value per name in `METRICS`; nan where undefined (``error`` without a wrong prediction, ``auroc`` with
        one grade present, a kappa when truth and prediction are one and the same grade throughout).

    Raises:
        ValueError: no rows, or shapes that do not fit each other.
        DataError: probabilities that are not distributions, or a grade outside [0, K).
    """
    values, grades = checked(probabilities, truth)
    predicted, confidence, right = top_label(values, grades)
    nll, brier = per_image_losses(values, grades)
    labels, target = torch.from_numpy(predicted), torch.from_numpy(grades)
    top, hit = torch.from_numpy(confidence), torch.from_numpy(right.astype(np.int64))
    num_grades = values.shape[1]

    def kappa(weights: KappaWeights) -> float:
        return float(multiclass_cohen_kappa(labels, target, num_classes=num_grades, weights=weights))

    def f1(average: Average) -> float:
        return float(multiclass_f1_score(labels, target, num_classes=num_grades, average=average))

    def precision(average: Average) -> float:
        return float(multiclass_precision(labels, target, num_classes=num_grades, average=average))

    return {
        "accuracy": float(right.mean()),
        "confidence": _mean(confidence[right]),
        "error": _mean(confidence[~right]),
        "auroc": _macro_auroc(values, grades),
        "kappa": kappa("none"),
        "kappa_linear": kappa("linear"),
        "kappa_quadratic": kappa("quadratic"),
        "f1_macro": f1("macro"),
        "f1_weighted": f1("weighted"),
        "precision_macro": precision("macro"),
        "precision_weighted": precision("weighted"),
        "ece": float(binary_calibration_error(top, hit, n_bins=bins, norm="l1")),
        "mce": float(binary_calibration_error(top, hit, n_bins=bins, norm="max")),
        "nll": float(nll.mean()),
        "brier": float(brier.mean()),
    }


def _mean(values: npt.NDArray[np.float64]) -> float:
    return float(values.mean()) if len(values) else float("nan")


def _macro_auroc(probabilities: npt.NDArray[np.float64], truth: npt.NDArray[np.int64]) -> float:
    present = np.unique(truth)
    if len(present) < 2:
        return float("nan")
    # torchmetrics' own multi-class macro counts an absent grade as an area of 0.
    areas = [
        float(binary_auroc(torch.from_numpy(probabilities[:, grade]), torch.from_numpy((truth == grade).astype(int))))
        for grade in present
    ]
    return float(np.mean(areas))
