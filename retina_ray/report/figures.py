"""The papers' figures, drawn from numbers: each function returns a matplotlib figure and keeps no state.

Colours are Okabe and Ito's, told apart by colour-blind readers; wherever colour carries meaning, a label, a hatch or
a line style carries it too. What is not here: training curves and timings (``progress_figures``), and turning a
figure into a page (``html``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter
from PIL import Image

from retina_ray.metrics.calibration import reliability_bins
from retina_ray.metrics.grading import grading_metrics
from retina_ray.report.tables import display_name

WIDTH = 10.0
"""Inches of every figure: the width of the page at 100 CSS pixels an inch."""

COLOURS = ("#0072B2", "#D55E00", "#009E73", "#AA4499", "#8C6D00", "#56B4E9")
GAP_COLOUR = "#D1344B"
INK = "#27313b"

_PANELS_PER_ROW = 4
_LOGARITHMIC_FROM = 100.0
"""Quotient of the largest and smallest value from which an axis is logarithmic."""
_OVER_CONFIDENT: dict[str, Any] = {
    "color": (GAP_COLOUR, 0.3),
    "edgecolor": GAP_COLOUR,
    "hatch": "////",
    "label": "confidence beyond accuracy",
}
_UNDER_CONFIDENT: dict[str, Any] = {
    "color": (COLOURS[0], 0.3),
    "edgecolor": COLOURS[0],
    "hatch": "....",
    "label": "accuracy beyond confidence",
}


@dataclass(frozen=True)
class CamPanel:
    """An image and what a network looks at in it (SALL Fig. 8).

    Attributes:
        image: (H, W, 3) uint8.
        heatmap: (H, W) or coarser, float, >= 0; drawn relative to its maximum.
        title: what the image shows.
        caption: what the network says.
    """

    image: npt.NDArray[np.uint8]
    heatmap: npt.NDArray[Any]
    title: str
    caption: str


def new_figure(height: float) -> Figure:
    """Return an empty figure of the page's width and a height in inches."""
    return Figure(figsize=(WIDTH, height), layout="constrained", facecolor="white")


def plain(text: str) -> str:
    """Return text that matplotlib shows as it is: a dollar sign would start a formula."""
    return text.replace("$", r"\$")


def tidy(axes: Axes) -> None:
    """Take away what carries no information: the upper and right frame, heavy grid lines."""
    axes.spines[["top", "right"]].set_visible(False)
    axes.grid(color="#e3e7eb", linewidth=0.8)
    axes.set_axisbelow(True)


def scale_for(values: npt.NDArray[np.float64]) -> Literal["log", "linear"]:
    """Return the scale of an axis: logarithmic where a linear one would flatten all but the largest values.

    Args:
        values: of any shape; NaN, zeros and signs do not count.
    """
    sizes = np.abs(values)
    known = sizes[sizes > 0.0]
    return "log" if known.size and known.max() > _LOGARITHMIC_FROM * known.min() else "linear"


def confusion_matrices(matrices: Mapping[str, npt.NDArray[np.int64]], *, grades: Sequence[str]) -> Figure:
    """Draw confusion matrices of one task side by side (SALL Fig. 6).

    Args:
        matrices: (K, K) counts by title, rows = truth.
        grades: K names.

    Returns:
        Cells hold the count and its share of the true grade; colour shows the share.
    """
    num_grades = len(grades)
    figure = new_figure(1.5 + 0.62 * num_grades)
    columns = max(2, len(matrices))
    panels = figure.subplots(1, columns, squeeze=False)[0]
    for axes in panels[len(matrices) :]:
        axes.set_visible(False)
    shown = None
    for axes, (title, counts) in zip(panels, matrices.items(), strict=False):
        total = counts.sum(axis=1, keepdims=True)
        share = np.divide(counts, total, out=np.full(counts.shape, np.nan), where=total > 0)
        shown = axes.imshow(share, cmap="Blues", vmin=0.0, vmax=1.0, aspect="auto")
        for row, column in np.ndindex(counts.shape):
            strong = share[row, column] > 0.65
            text = f"{counts[row, column]:,}"
            if total[row, 0]:
                text += f"\n{share[row, column]:.0%}"
            axes.text(column, row, text, ha="center", va="center", fontsize=9, color="white" if strong else INK)
        names = [plain(name) for name in grades]
        axes.set_xticks(range(num_grades), names, rotation=20, ha="right", rotation_mode="anchor")
        axes.set_yticks(range(num_grades), names)
        axes.set(xlabel="predicted grade", ylabel="true grade")
        axes.set_title(plain(title), fontsize=11)
    if shown is not None:
        figure.colorbar(shown, ax=panels, format=PercentFormatter(1.0), label="share of the true grade", pad=0.01)
    return figure


def reliability_diagrams(predictions: Mapping[str, tuple[npt.NDArray[Any], npt.NDArray[Any]]], *, bins: int) -> Figure:
    """Draw reliability diagrams of one task side by side (SALL Fig. 7), with the images per bin below.

    Args:
        predictions: probabilities (n, K) and truth (n,) by title.
        bins: equal-width bins of confidence.
    """
    figure = new_figure(4.6)
    columns = max(2, len(predictions))
    panels = figure.subplots(2, columns, squeeze=False, height_ratios=(4, 1), sharex=True)
    for axes in panels[:, len(predictions) :].flat:
        axes.set_visible(False)
    for column, (title, (probabilities, truth)) in enumerate(predictions.items()):
        ece = grading_metrics(probabilities, truth, bins=bins)["ece"]
        _reliability(panels[0, column], panels[1, column], probabilities, truth, bins)
        panels[0, column].set_title(plain(f"{title}: ECE {ece:.1%} ({len(truth):,} images)"), fontsize=11)
    panels[0, 0].legend(loc="upper left", frameon=False, fontsize=9)
    return figure


def _reliability(upper: Axes, lower: Axes, probabilities: npt.NDArray[Any], truth: npt.NDArray[Any], bins: int) -> None:
    grouped = reliability_bins(probabilities, truth, bins)
    filled = grouped.count > 0
    width = 1.0 / bins
    centre = grouped.edges[:-1][filled] + width / 2.0
    accuracy, confidence = grouped.accuracy[filled], grouped.confidence[filled]
    tidy(upper)
    tidy(lower)
    settled = np.minimum(accuracy, confidence)
    upper.bar(centre, settled, width * 0.92, color=COLOURS[0], label="accuracy")
    upper.bar(centre, np.maximum(confidence - accuracy, 0.0), width * 0.92, bottom=settled, **_OVER_CONFIDENT)
    upper.bar(centre, np.maximum(accuracy - confidence, 0.0), width * 0.92, bottom=settled, **_UNDER_CONFIDENT)
    upper.plot([0.0, 1.0], [0.0, 1.0], color=INK, linestyle="--", linewidth=1.2, label="perfect calibration")
    upper.set(xlim=(0.0, 1.0), ylim=(0.0, 1.0), ylabel="accuracy (%)")
    lower.bar(centre, grouped.count[filled], width * 0.92, color="#8a96a3")
    lower.set(xlabel="confidence (%)", ylabel="images")
    for axis in (upper.xaxis, upper.yaxis, lower.xaxis):
        axis.set_major_formatter(PercentFormatter(1.0, symbol=""))


def cam_panels(panels: Sequence[CamPanel]) -> Figure:
    """Draw images and, below each, the same image under its heat map (SALL Fig. 8).

    Args:
        panels: at least one.

    Raises:
        ValueError: no panels.
    """
    if not panels:
        raise ValueError("no Grad-CAM panels to draw")
    bands = -(-len(panels) // _PANELS_PER_ROW)
    figure = new_figure(5.4 * bands)
    grid = figure.subplots(2 * bands, _PANELS_PER_ROW, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    for index, panel in enumerate(panels):
        band, column = divmod(index, _PANELS_PER_ROW)
        upper, lower = grid[2 * band, column], grid[2 * band + 1, column]
        height, width = panel.image.shape[:2]
        heat = _heat(panel.heatmap, height=height, width=width)
        upper.imshow(panel.image)
        lower.imshow(panel.image)
        lower.imshow(heat, cmap="inferno", vmin=0.0, vmax=1.0, alpha=0.65 * heat**0.5)
        upper.set_title(plain(panel.title), fontsize=10, wrap=True)
        lower.set_title(plain(panel.caption), fontsize=10, wrap=True)
    return figure


def _heat(heatmap: npt.NDArray[Any], *, height: int, width: int) -> npt.NDArray[np.float32]:
    """Return a heat map at the size of its image, in [0, 1]."""
    enlarged = Image.fromarray(heatmap.astype(np.float32)).resize((width, height), Image.Resampling.BICUBIC)
    heat: npt.NDArray[np.float32] = np.maximum(np.asarray(enlarged), 0.0)
    peak = float(heat.max())
    if peak > 0.0:
        heat /= peak
    return heat


def soft_label_statistics(records: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw how temperature softens the cross labels: mean maximum and mean variance (SALL Table V).

    Args:
        records: ``task``, ``temperature``, ``mean_max`` and ``mean_variance`` each.
    """
    figure = new_figure(3.2)
    panels = figure.subplots(1, 2)
    for axes, key, label in zip(panels, ("mean_max", "mean_variance"), ("mean maximum", "mean variance"), strict=True):
        tidy(axes)
        for index, task in enumerate(dict.fromkeys(record["task"] for record in records)):
            points = sorted((record["temperature"], record[key]) for record in records if record["task"] == task)
            axes.plot(
                *zip(*points, strict=True),
                color=COLOURS[index % len(COLOURS)],
                marker="osD^vP"[index % 6],
                label=plain(display_name(task)),
            )
        axes.set(xlabel="temperature T", ylabel=f"{label} of a label", ylim=(0.0, None))
        axes.legend(frameon=False, fontsize=9)
    return figure
