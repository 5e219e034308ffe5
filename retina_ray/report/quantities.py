"""The figures that a search is judged by, such as ``accuracy_dr``, as the report writes them: label, unit, digits."""

from dataclasses import dataclass

from retina_ray.report.tables import LABELS, display_name

_LABELS = {
    **LABELS,
    "error": "Error (%)",
    "psnr": "PSNR (dB)",
    "ssim": "SSIM",
    "criterion": "Criterion",
    "loss": "Loss",
    "ap": "Average precision",
    "auc": "ROC area",
}


@dataclass(frozen=True)
class Quantity:
    """A figure.

    Attributes:
        label: what it is, with its unit.
        scale: factor from the value to that unit.
    """

    label: str
    scale: float

    def text(self, value: float) -> str:
        """Return a value that is in the unit as text without it: two decimals of per cent, else about four digits."""
        if self.label.endswith("(%)"):
            return f"{value:.2f}"
        return f"{value:.4f}" if 0.001 <= abs(value) < 10.0 or not value else f"{value:.4g}"


def split_metric(metric: str) -> tuple[str, str]:
    """Return what a figure measures and of what: ``accuracy_dr`` is ``accuracy`` of ``dr``; either may be empty."""
    known = [name for name in _LABELS if metric == name or metric.startswith(f"{name}_")]
    name = max(known, key=len, default="")
    return name, metric.removeprefix(name).removeprefix("_")


def quantity(metric: str) -> Quantity:
    """Return how to write a figure: one of a metric, ``accuracy``, or of a metric and its subject, ``accuracy_dr``."""
    metric_name, subject = split_metric(metric)
    if not metric_name:
        return Quantity(metric.replace("_", " "), 1.0)
    name, bracket, unit = _LABELS[metric_name].partition(" (")
    name += f", {display_name(subject)}" if subject else ""
    initial = name[0] if name[:2].isupper() or name[1].isdigit() else name[0].lower()
    return Quantity(initial + name[1:] + bracket + unit, 100.0 if unit == "%)" else 1.0)
