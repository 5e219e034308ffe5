"""Figures of the training itself: its curves over the epochs and where its time went.

What is not here: figures of what was learned (``figures``).
"""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.ticker import MaxNLocator

from retina_ray.report.figures import COLOURS, INK, new_figure, plain, scale_for, tidy
from retina_ray.report.quantities import quantity, split_metric

Floats = npt.NDArray[np.float64]

PHASES = ("first_batch", "data_wait", "compute", "checkpoint", "validation", "restore", "report")
"""Phases of a stage's timing in the order in which they are drawn; each is a key with ``_s`` for seconds."""

_PHASE_COLOURS = ("#AA4499", "#D55E00", "#0072B2", "#8C6D00", "#009E73", "#56B4E9", "#8a96a3")
_PANELS_PER_ROW = 3
_LEGEND = {"fontsize": 7, "handlelength": 1.8, "columnspacing": 0.8}
_LOSS = "loss"
_LEAST_SPAN = 1e-3
"""Height of a panel of validation figures at least."""
_SCORE = "validation score (0 to 1)"
_TABLES_ONLY = ("validation_image_ap_", "validation_image_auc_", "validation_chance_")


def training_curves(history: Sequence[Mapping[str, Any]]) -> Figure:
    """Draw one stage's losses, validation scores and learning rate over its epochs, and mark the best epoch.

    Args:
        history: epoch records; ``train_*`` are losses, and of ``validation_*`` those with ``loss`` in
            their name; any may be missing from a record. The best epoch is the one of the lowest
            ``validation_criterion``, or else ``validation_loss``. Records of another ``kind`` are left out.

    Raises:
        ValueError: no epoch record with a number to draw.
    """
    epochs = _epochs(history)
    groups = _groups(epochs)
    if not groups:
        raise ValueError("no epoch record with a number to draw")
    rows = -(-len(groups) // _PANELS_PER_ROW)
    figure = new_figure(3.6 * rows)
    grid = figure.subplots(rows, min(len(groups), _PANELS_PER_ROW), squeeze=False)
    for axes in grid.flat[len(groups) :]:
        axes.set_visible(False)
    position = np.array([record.get("epoch", index + 1) for index, record in enumerate(epochs)], dtype=np.float64)
    criterion = next((key for key in ("validation_criterion", "validation_loss") if key in epochs[0]), None)
    for axes, (label, keys) in zip(grid.flat, groups.items(), strict=False):
        _curves(axes, epochs, keys, position)
        if criterion and keys != ["lr"]:
            best = position[np.argmin(np.nan_to_num(_values(epochs, criterion), nan=np.inf))]
            axes.axvline(best, color=INK, linestyle=":", linewidth=1.2, label="best epoch")
        axes.xaxis.set_major_locator(MaxNLocator(integer=True))
        if keys != ["lr"]:
            columns = 2 if label.startswith(_LOSS) else 3
            axes.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), ncols=columns, frameon=False, **_LEGEND)
        axes.set(xlabel="epoch", ylabel=plain(label))
    return figure


def can_draw(history: Sequence[Mapping[str, Any]]) -> bool:
    """Return whether a stage's history holds an epoch with a number to draw."""
    return bool(_groups(_epochs(history)))


def _epochs(history: Sequence[Mapping[str, Any]]) -> list[Mapping[str, Any]]:
    return [record for record in history if record.get("kind", "epoch") == "epoch"]


def _groups(epochs: Sequence[Mapping[str, Any]]) -> dict[str, list[str]]:
    """Return the keys to draw by axis label, in order: a panel per quantity, and one for scores that have no name."""
    keys = list(dict.fromkeys(key for record in epochs for key in record if key.startswith(("train_", "validation_"))))
    keys = [key for key in keys if not key.startswith(_TABLES_ONLY)]
    losses = [key for key in keys if key.startswith("train_") or "loss" in key]
    # The criterion adds up the validation losses: beside them it would only flatten their curves.
    rest = [key for key in keys if key not in losses and key != "validation_criterion"]
    groups = _loss_groups(losses)
    for key in rest:
        name, subject = split_metric(key.removeprefix("validation_"))
        is_score = np.nan_to_num(np.abs(_values(epochs, key))).max() <= 1.0
        label = f"validation {quantity(name or subject).label}" if name or not is_score else _SCORE
        groups.setdefault(label, []).append(key)
    if any("lr" in record for record in epochs):
        groups["learning rate"] = ["lr"]
    return {label: members for label, members in groups.items() if members}


def _loss_groups(losses: Sequence[str]) -> dict[str, list[str]]:
    """Return losses by axis label, in as many panels as it takes to give each task or term a colour of its own."""
    subjects = [subject for subject in dict.fromkeys(map(_subject, losses)) if subject]
    groups: dict[str, list[str]] = {}
    for key in losses:
        subject = _subject(key)
        panel = subjects.index(subject) // len(COLOURS) if subject else 0
        groups.setdefault(f"{_LOSS}, further terms" if panel else _LOSS, []).append(key)
    return groups


def _values(epochs: Sequence[Mapping[str, Any]], key: str) -> Floats:
    """Return a key's values in the unit of its axis; NaN where a record lacks it."""
    values = (record.get(key) for record in epochs)
    scale = quantity(key.removeprefix("validation_")).scale
    return np.array([float("nan") if value is None else value for value in values], dtype=np.float64) * scale


def _curves(axes: Axes, epochs: Sequence[Mapping[str, Any]], keys: Sequence[str], position: Floats) -> None:
    tidy(axes)
    subjects = [subject for subject in dict.fromkeys(map(_subject, keys)) if subject]
    is_loss = any("loss" in key or key.startswith("train_") for key in keys)
    for key in keys:
        subject = _subject(key)
        axes.plot(
            position,
            _values(epochs, key),
            # The sum over tasks is drawn in ink, each task in its colour; validation is dashed beside training.
            color=COLOURS[subjects.index(subject) % len(COLOURS)] if subject else INK,
            linestyle="--" if key.startswith("validation_") and any(k.startswith("train_") for k in keys) else "-",
            marker="o" if len(epochs) == 1 else None,
            linewidth=1.8,
            # What a panel shows stands beside its axis; losses are of several kinds.
            label=plain((key if is_loss else subject or key).replace("_", " ")),
        )
    if is_loss:
        axes.set_yscale(scale_for(np.concatenate([_values(epochs, key) for key in keys])))
    elif keys == ["lr"]:
        axes.set_ylim(bottom=0.0)
        axes.ticklabel_format(axis="y", style="sci", scilimits=(0, 0))
    else:
        low, high = axes.get_ylim()
        if high - low < _LEAST_SPAN:  # what rounds to one number is drawn as one
            axes.set_ylim(low - _LEAST_SPAN, high + _LEAST_SPAN)


def _subject(key: str) -> str:
    """Return what a key is about, its task or term, without split and quantity: empty for a total."""
    _, _, measured = key.partition("_")
    return split_metric(measured)[1]


def timing_bars(timings: Mapping[str, Mapping[str, float]]) -> Figure:
    """Draw where each stage's wall time went.

    Args:
        timings: by stage, seconds by `PHASES` with the ending ``_s``; other keys are left out.
    """
    longest = max((sum(stage_seconds(timing).values()) for timing in timings.values()), default=0.0)
    unit, scale = ("h", 3600.0) if longest >= 7200.0 else ("min", 60.0) if longest >= 120.0 else ("s", 1.0)
    figure = new_figure(1.3 + 0.45 * len(timings))
    axes = figure.subplots()
    tidy(axes)
    axes.grid(visible=False, axis="y")
    stages = list(timings)
    left = np.zeros(len(stages))
    for phase, colour in zip(PHASES, _PHASE_COLOURS, strict=True):
        length = np.array([stage_seconds(timings[stage]).get(phase, 0.0) for stage in stages]) / scale
        if length.any():
            label = phase.replace("_", " ")
            axes.barh(range(len(stages)), length, left=left, height=0.62, color=colour, edgecolor="white", label=label)
        left += length
    axes.set_yticks(range(len(stages)), [plain(stage) for stage in stages])
    axes.invert_yaxis()
    axes.set_xlabel(f"wall time ({unit})")
    figure.legend(loc="outside upper left", ncols=len(PHASES), frameon=False, fontsize=9)
    return figure


def stage_seconds(timing: Mapping[str, float]) -> dict[str, float]:
    """Return the seconds of each phase that a stage's timing holds, in the order of `PHASES`."""
    return {phase: timing[f"{phase}_s"] for phase in PHASES if f"{phase}_s" in timing}
