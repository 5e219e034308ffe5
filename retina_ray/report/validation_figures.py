"""The figure of an external validation: what is reached on the images kept, against the share referred."""

from collections.abc import Sequence

import numpy as np
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import PercentFormatter

from retina_ray.metrics.referral import REFERRAL_METRICS, SHARES
from retina_ray.report.figures import COLOURS, INK, new_figure, plain, tidy
from retina_ray.report.tables import LABELS, display_name
from retina_ray.report.validation import Referral

FEWEST = 10
"""Images that must be kept for a point to be drawn; below, one image moves the line by a tenth and more."""

_LINES = ("-", "--", "-.", (0, (5, 1, 1, 1, 1, 1)))
_MARGIN = 0.02
"""Of the axis beyond the lowest and the best value, so that no line lies on the frame."""


def referral_figure(referrals: Sequence[Referral]) -> Figure:
    """Draw the referral curves: a row per task, accuracy and quadratic kappa side by side, a line per model.

    Bands are intervals at each share by itself; dotted lines are what referring images at random keeps. A line ends
    where fewer than `FEWEST` images are kept.

    Args:
        referrals: at least one.

    Raises:
        ValueError: no curves.
    """
    if not referrals:
        raise ValueError("no referral curves to draw")
    tasks = list(dict.fromkeys(each.task for each in referrals))
    figure = new_figure(3.9 * len(tasks))
    grid = figure.subplots(len(tasks), len(REFERRAL_METRICS), squeeze=False)
    for row, task in zip(grid, tasks, strict=True):
        for axes, metric in zip(row, REFERRAL_METRICS, strict=True):
            _panel(axes, [each for each in referrals if each.task == task], metric)
    return figure


def _panel(axes: Axes, referrals: Sequence[Referral], metric: str) -> None:
    tidy(axes)
    lowest = 1.0
    for index, each in enumerate(referrals):
        drawn = (1.0 - SHARES) * each.curve.n >= FEWEST
        values, colour = each.curve.values[metric][drawn], COLOURS[index % len(COLOURS)]
        label = plain(f"{display_name(each.model).replace('_', ' ')}, area {each.curve.areas[metric]:.3f}")
        line = _LINES[index % len(_LINES)]
        axes.plot(SHARES[drawn], values, color=colour, linestyle=line, linewidth=1.8, label=label)
        axes.axhline(each.curve.values[metric][0], color=colour, linestyle=":", linewidth=1.0)
        low = values
        if metric in each.curve.bands:
            low, high = each.curve.bands[metric][drawn].T
            axes.fill_between(SHARES[drawn], low, high, color=colour, alpha=0.15, linewidth=0.0)
        lowest = min(lowest, float(np.nanmin(np.append(low, 1.0))))
    images = max(each.curve.n for each in referrals)
    if images < FEWEST / (1.0 - SHARES[1]):
        axes.text(
            0.5, 0.5, f"{images} images are too few for a curve", transform=axes.transAxes, ha="center", fontsize=9
        )
    axes.plot([], [], color=INK, linestyle=":", linewidth=1.0, label="referred at random")
    axes.set(xlim=(0.0, 1.0), ylim=(lowest - _MARGIN, 1.0 + _MARGIN), xlabel=f"images referred (%), of {images:,}")
    axes.xaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=2, frameon=False, fontsize=9)
    name, bracket, unit = LABELS[metric].partition(" (")
    if unit:
        axes.yaxis.set_major_formatter(PercentFormatter(1.0, symbol=""))
    axes.set_ylabel(plain(f"{display_name(referrals[0].task)}: {name.lower()}, images kept{bracket}{unit}"))
