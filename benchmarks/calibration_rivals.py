"""Calibration and grading figures of the same probabilities, ours against torchmetrics' and MONAI's, and their cost.

Run with ``python -m benchmarks.calibration_rivals`` after ``pip install monai``; a few minutes. The probabilities are
drawn: overconfident ones of several sizes, and some whose confidence lies exactly on the edge of a bin. Writes
``benchmarks/results/calibration-rivals.json`` and ``.md``.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from itertools import product
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import one_hot
from torchmetrics import MetricCollection
from torchmetrics.classification import (
    MulticlassAccuracy,
    MulticlassAUROC,
    MulticlassCalibrationError,
    MulticlassCohenKappa,
    MulticlassF1Score,
    MulticlassPrecision,
)
from torchmetrics.functional import mean_squared_error
from torchmetrics.wrappers import BootStrapper

from benchmarks.in_turn import in_turn, raw_log, require, table, versions, write
from retina_ray.metrics.bootstrap import bootstrap_samples, draw_group_counts
from retina_ray.metrics.calibration import reliability_bins
from retina_ray.metrics.grading import grading_metrics
from retina_ray.metrics.probabilities import top_label

Probabilities = NDArray[np.float64]
Grades = NDArray[np.int64]
Figures = dict[str, float]

CASES = tuple(product((200, 2000, 20000), (2, 5), (10, 15, 20)))
"""Images, grades, bins."""
IMAGES, GRADES, BINS, RESAMPLES, CHECKED, ROUNDS = 2000, 5, 15, 1000, 50, 3


def drawn(images: int, grades: int, seed: int) -> tuple[Probabilities, Grades]:
    """Return overconfident probabilities (n, K) in float64 and the true grades (n,)."""
    rng = np.random.default_rng(seed)
    logits = 1.5 * rng.standard_normal((images, grades))
    truth = np.array([rng.choice(grades, p=row) for row in softmax(logits)])
    return softmax(2.0 * logits), truth


def on_edges(images: int, bins: int, seed: int) -> tuple[Probabilities, Grades]:
    """Return probabilities (n, 2) whose confidence is an edge of the bins, as single precision has it."""
    rng = np.random.default_rng(seed)
    edges = torch.linspace(0, 1, bins + 1)[bins // 2 + 1 : -1].double().numpy()
    confidence = rng.choice(edges, size=images)
    return np.stack([confidence, 1.0 - confidence], axis=1), (rng.random(images) > 0.7).astype(np.int64)


def softmax(logits: Probabilities) -> Probabilities:
    """Return probabilities (n, K) of logits (n, K)."""
    powers = np.exp(logits - logits.max(axis=1, keepdims=True))
    normalised: Probabilities = powers / powers.sum(axis=1, keepdims=True)
    return normalised


def ours(probabilities: Probabilities, truth: Grades, bins: int) -> Figures:
    """Return the product's figures."""
    return grading_metrics(probabilities, truth, bins=bins)


def collection(grades: int, bins: int) -> MetricCollection:
    """Return torchmetrics' metrics as its guide combines them."""
    kappas = {f"kappa{end}": MulticlassCohenKappa(grades, weights=weights) for end, weights in KAPPAS.items()}
    averages = {
        f"{name}_{average}": kind(grades, average=average)
        for name, kind in (("f1", MulticlassF1Score), ("precision", MulticlassPrecision))
        for average in ("macro", "weighted")
    }
    return MetricCollection(
        {
            "accuracy": MulticlassAccuracy(grades, average="micro"),
            "auroc": MulticlassAUROC(grades, average="macro", thresholds=None),
            "ece": MulticlassCalibrationError(grades, n_bins=bins, norm="l1"),
            "mce": MulticlassCalibrationError(grades, n_bins=bins, norm="max"),
            **kappas,
            **averages,
        },
        compute_groups=True,
    )


KAPPAS: dict[str, Any] = {"": None, "_linear": "linear", "_quadratic": "quadratic"}


def torchmetrics(probabilities: Probabilities, truth: Grades, bins: int) -> Figures:
    """Return torchmetrics' figures by its classes for several grades; of Brier's score it has the mean square."""
    values, target = torch.from_numpy(probabilities), torch.from_numpy(truth)
    metrics = collection(probabilities.shape[1], bins)
    metrics.update(values, target)
    brier = probabilities.shape[1] * mean_squared_error(values, one_hot(target, probabilities.shape[1]))
    return {**{name: float(value) for name, value in metrics.compute().items()}, "brier": float(brier)}


def monai(probabilities: Probabilities, truth: Grades, bins: int) -> Figures:
    """Return MONAI's figures; ``ece`` and ``mce`` are of the top label, ``ece_by_class`` as its guide has it."""
    from monai.metrics import CalibrationErrorMetric, LossMetric, MSEMetric, compute_roc_auc

    values = torch.from_numpy(probabilities)
    target = torch.from_numpy(truth)
    classes = one_hot(target, probabilities.shape[1])
    top, hits = as_channel(probabilities, truth)

    def error(reduction: str, y_pred: Tensor, y: Tensor) -> float:
        metric = CalibrationErrorMetric(num_bins=bins, calibration_reduction=reduction)
        metric(y_pred=y_pred, y=y)
        return float(metric.aggregate())

    square, likelihood = MSEMetric(), LossMetric(torch.nn.NLLLoss())
    square(values, classes)
    likelihood(values.log(), target)
    return {
        "ece": error("expected", top, hits),
        "mce": error("maximum", top, hits),
        "ece_by_class": error("expected", values.T[None], classes.T[None]),
        "auroc": float(compute_roc_auc(values, classes)),
        "nll": float(likelihood.aggregate()),
        "brier": probabilities.shape[1] * float(square.aggregate()),
    }


def as_channel(probabilities: Probabilities, truth: Grades) -> tuple[Tensor, Tensor]:
    """Return confidence and hits of the top label as MONAI takes them: batch, channel, one dimension of space."""
    _, confidence, hit = top_label(probabilities, truth)
    return torch.from_numpy(confidence)[None, None], torch.from_numpy(hit.astype(np.float64))[None, None]


def in_other_bins(probabilities: Probabilities, truth: Grades, bins: int) -> float:
    """Return how many images at least MONAI has in another bin of the reliability diagram than we have."""
    from monai.metrics.calibration import calibration_binning

    _, _, theirs = calibration_binning(*as_channel(probabilities, truth), bins)
    return float(np.abs(reliability_bins(probabilities, truth, bins).count - theirs[0, 0].numpy()).sum() / 2)


def differences(one: Figures, other: Figures) -> Figures:
    """Return how far apart the figures are that both have."""
    return {name: abs(one[name] - other[name]) for name in one if name in other}


def agreement(log: Callable[[Mapping[str, Any]], None]) -> dict[str, Figures]:
    """Return the largest difference of each figure from each rival's, over the drawn cases and those on edges."""
    kinds = {
        "drawn": [(*drawn(n, k, seed=n + k), bins) for n, k, bins in CASES],
        "on edges": [(*on_edges(2000, bins, seed=bins), bins) for bins in (10, 15, 20)],
    }
    rivals = {"torchmetrics": torchmetrics, "MONAI": monai}
    largest: dict[str, Figures] = {}
    for kind, cases in kinds.items():
        for probabilities, truth, bins in cases:
            own = ours(probabilities, truth, bins)
            for name, rival in rivals.items():
                found = differences(own, rival(probabilities, truth, bins))
                if name == "MONAI":
                    found["images in another bin"] = in_other_bins(probabilities, truth, bins)
                log({"kind": kind, "shape": probabilities.shape, "bins": bins, "rival": name, "differences": found})
                so_far = largest.setdefault(f"{name}, {kind}", {})
                for figure, difference in found.items():
                    so_far[figure] = max(so_far.get(figure, 0.0), difference)
    return largest


def resampled_agreement(log: Callable[[Mapping[str, Any]], None]) -> Figures:
    """Return how far our bootstrap's figures are at most from torchmetrics' on the same resamples, spelt out."""
    probabilities, truth = drawn(IMAGES, GRADES, seed=0)
    samples = bootstrap_samples(probabilities, truth, np.arange(IMAGES), resamples=CHECKED, bins=BINS, seed=0)
    counts = draw_group_counts(np.random.default_rng(0), IMAGES, CHECKED)
    largest: Figures = {}
    for number, count in enumerate(counts):
        rows = np.repeat(np.arange(IMAGES), count)
        rival = torchmetrics(probabilities[rows], truth[rows], BINS)
        found = differences({name: float(values[number]) for name, values in samples.items()}, rival)
        largest = {name: max(largest.get(name, 0.0), difference) for name, difference in found.items()}
    log({"resamples": CHECKED, "differences": largest})
    return largest


def milliseconds(work: Callable[[], object]) -> Callable[[], float]:
    """Return what measures the milliseconds that some work takes."""

    def measure() -> float:
        begin = time.perf_counter()
        work()
        return 1e3 * (time.perf_counter() - begin)

    return measure


def intervals(resamples: int) -> dict[str, Callable[[], float]]:
    """Return what measures a bootstrap: ours of 15 figures, torchmetrics' in a loop of its 11, its own of one."""
    probabilities, truth = drawn(IMAGES, GRADES, seed=0)
    values, grades = torch.from_numpy(probabilities), torch.from_numpy(truth)
    generator = torch.Generator().manual_seed(0)

    def loop() -> None:
        metrics = collection(GRADES, BINS)
        for _ in range(resamples):
            rows = torch.randint(IMAGES, (IMAGES,), generator=generator)
            metrics.reset()
            metrics.update(values[rows], grades[rows])
            metrics.compute()

    def wrapper() -> None:
        error = MulticlassCalibrationError(GRADES, n_bins=BINS)
        strapped = BootStrapper(error, num_bootstraps=resamples, quantile=torch.tensor([0.025, 0.975]))
        strapped.update(values, grades)
        strapped.compute()

    def own() -> None:
        bootstrap_samples(probabilities, truth, np.arange(IMAGES), resamples=resamples, bins=BINS, seed=0)

    return {
        "retina_ray": milliseconds(own),
        "torchmetrics, loop": milliseconds(loop),
        "BootStrapper, ECE alone": milliseconds(wrapper),
    }


def once() -> dict[str, Callable[[], float]]:
    """Return what measures the milliseconds of all figures without intervals."""
    probabilities, truth = drawn(IMAGES, GRADES, seed=0)

    return {
        "retina_ray": milliseconds(lambda: ours(probabilities, truth, BINS)),
        "torchmetrics": milliseconds(lambda: torchmetrics(probabilities, truth, BINS)),
        "MONAI": milliseconds(lambda: monai(probabilities, truth, BINS)),
    }


def figures_table(found: Mapping[str, Figures], title: str, form: str) -> str:
    """Return a Markdown table of figures by whose they are."""
    lines = [f"| {title} | {' | '.join(found)} |", "|---|" + "---|" * len(found)]
    for figure in dict.fromkeys(name for figures in found.values() for name in figures):
        cells = [format(figures[figure], form) if figure in figures else "" for figures in found.values()]
        lines.append(f"| {figure} | {' | '.join(cells)} |")
    return "\n".join(lines) + "\n"


def main() -> None:
    """Compare, time, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--resamples", type=int, default=RESAMPLES)
    parser.add_argument("--rounds", type=int, default=ROUNDS)
    arguments = parser.parse_args()
    require("monai")
    log = raw_log("calibration-rivals", "torchmetrics", "monai")
    agreed = agreement(log)
    agreed["torchmetrics, resamples"] = resampled_agreement(log)
    single = in_turn(once(), arguments.rounds, log=log)
    case = drawn(IMAGES, GRADES, seed=0)
    values = {"retina_ray": ours(*case, BINS), "torchmetrics": torchmetrics(*case, BINS), "MONAI": monai(*case, BINS)}
    bootstrap = in_turn(intervals(arguments.resamples), arguments.rounds, log=log)
    settings = {"images": IMAGES, "grades": GRADES, "bins": BINS, "resamples": arguments.resamples, "cases": CASES}
    write(
        "calibration-rivals",
        {
            "rivals": versions("torchmetrics", "monai"),
            "settings": settings,
            "largest_difference": agreed,
            "values": values,
            "once_ms": single,
            "bootstrap_ms": bootstrap,
        },
        {
            f"{IMAGES} images, {GRADES} grades, {BINS} bins": figures_table(values, "figure", ".6f"),
            "Largest difference of our figures from the rivals'": figures_table(agreed, "figure", ".1e"),
            f"All figures of {IMAGES} images, {GRADES} grades, once": table(single, ours="retina_ray", unit="ms"),
            f"The same from {arguments.resamples} resamples": table(bootstrap, ours="retina_ray", unit="ms"),
        },
    )


if __name__ == "__main__":
    main()
