"""DeepMT-DR's figures and tables: restored images, lesions against their truth, evidence maps (Figs. 1, 5, 8, 9).

What is not here: computing any of it (``orchestration.report_deepmt``) and the page around it (``build``).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
from matplotlib.axes import Axes
from matplotlib.figure import Figure
from matplotlib.patches import Patch

from retina_ray.report.figures import INK, new_figure, plain
from retina_ray.report.tables import Cell, Row

LESION_COLOURS = {"MA": "#56B4E9", "HM": "#D55E00", "HE": "#F0E442", "SE": "#009E73"}
"""Of microaneurysms, haemorrhages, hard and soft exudates."""

_REGIONS = {
    **{lesion: lesion for lesion in LESION_COLOURS},
    "mean": "mean of the lesions",
    "lesions": "any lesion",
    "background": "background",
}
"""Rows of the lesions' table by the ending of their figures."""

_LESION_FIGURES = {
    "AP": "ap",
    "AP by chance": "chance",
    "AP per image": "image_ap",
    "AUC": "auc",
    "AUC per image": "image_auc",
    "AUC of the evidence": "evidence_auc",
}
"""Columns of the lesions' table by the beginning of their figures."""

_CROP = 4
"""A detail shows a quarter of the image's side."""

_ROW_INCHES = 2.75


@dataclass(frozen=True)
class LesionPanel:
    """A test image on its way through the three nets.

    Attributes:
        low: (h, w, 3) uint8, the input.
        bicubic: (H, W, 3) uint8, the input enlarged.
        restored: (H, W, 3) uint8, the super-resolved image.
        high: (H, W, 3) uint8, the truth.
        lesions: (4, H, W) in [0, 1], found in the restored image; None without a segmentation net.
        masks: (4, H, W) bool, their truth; None where the image has none.
        evidence: (H, W) in [0, 1], what the grade rests on; None where no map is made.
        psnr: of ``bicubic`` and ``restored``, dB.
        title: true and predicted grade.
    """

    low: npt.NDArray[np.uint8]
    bicubic: npt.NDArray[np.uint8]
    restored: npt.NDArray[np.uint8]
    high: npt.NDArray[np.uint8]
    lesions: npt.NDArray[np.float32] | None
    masks: npt.NDArray[np.bool_] | None
    evidence: npt.NDArray[np.float32] | None
    psnr: tuple[float, float]
    title: str


def restoration(panels: Sequence[LesionPanel]) -> Figure:
    """Draw a detail of each image: low resolution, bicubic, restored, high resolution (Figs. 1 and 8)."""
    figure, rows = _grid(panels, columns=4)
    for panel, cells in zip(panels, rows, strict=True):
        top, left, side = _detail(panel)
        scale = len(panel.high) // len(panel.low)
        bicubic, restored = panel.psnr
        shown = (
            (panel.low, "low resolution", scale),
            (panel.bicubic, f"bicubic, {bicubic:.1f} dB", 1),
            (panel.restored, f"restored, {restored:.1f} dB", 1),
            (panel.high, "high resolution", 1),
        )
        for axes, (image, title, shrunk) in zip(cells, shown, strict=True):
            window = [slice(start // shrunk, (start + side) // shrunk) for start in (top, left)]
            axes.imshow(image[window[0], window[1]], interpolation="nearest")
            axes.set_title(plain(title), fontsize=9)
    return figure


def lesions(panels: Sequence[LesionPanel]) -> Figure:
    """Draw each image with its true and its found lesions, and with its evidence map (Figs. 5 and 9)."""
    figure, rows = _grid(panels, columns=4)
    for panel, cells in zip(panels, rows, strict=True):
        for axes in cells:
            axes.imshow(panel.high)
        cells[0].set_title(plain(panel.title), fontsize=9)
        _overlay(cells[1], panel.masks, "true lesions", "no mask")
        _overlay(cells[2], panel.lesions, "found lesions", "no segmentation")
        if panel.evidence is None:
            cells[3].set_title("no evidence map", fontsize=9)
        else:
            cells[3].imshow(panel.evidence, cmap="inferno", vmin=0.0, vmax=1.0, alpha=0.65 * panel.evidence**0.5)
            title = "evidence for the grade" if panel.evidence.any() else "nothing raises the chance of disease"
            cells[3].set_title(title, fontsize=9)
    handles = [Patch(color=colour, label=name) for name, colour in LESION_COLOURS.items()]
    figure.legend(handles=handles, loc="outside upper left", ncols=len(handles), frameon=False, fontsize=9)
    return figure


def lesion_rows(tests: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Return Table III and Finding 3 for each stage that segments or makes maps.

    Table III is average precision and ROC area per lesion and their means over the lesions; Finding 3 the ROC area of
    the evidence map inside each lesion, any lesion and the background.

    Args:
        tests: a stage's figures on the test split, by stage.
    """
    rows: list[Row] = []
    for stage, test in tests.items():
        for region, label in _REGIONS.items():
            figures = {title: test.get(f"{kind}_{region}") for title, kind in _LESION_FIGURES.items()}
            if any(figure is not None for figure in figures.values()):
                cells = {title: Cell(_number(figure)) for title, figure in figures.items()}
                rows.append({"Stage": Cell(stage), "Region": Cell(label), **cells})
    return rows


def restoration_rows(tests: Mapping[str, Mapping[str, float]]) -> list[Row]:
    """Return Table IV for each stage that enlarges: PSNR and SSIM, and both of bicubic interpolation."""
    return [
        {
            "Stage": Cell(stage),
            "PSNR (dB)": Cell(f"{test['psnr']:.2f}"),
            "PSNR, bicubic (dB)": Cell(f"{test['psnr_bicubic']:.2f}"),
            "SSIM": Cell(_number(test["ssim"])),
            "SSIM, bicubic": Cell(_number(test["ssim_bicubic"])),
        }
        for stage, test in tests.items()
        if "psnr" in test
    ]


def _number(value: float | None) -> str:
    return "" if value is None else "n/a" if np.isnan(value) else f"{value:.3f}"


def _grid(panels: Sequence[LesionPanel], *, columns: int) -> tuple[Figure, list[Sequence[Axes]]]:
    if not panels:
        raise ValueError("no panels to draw")
    figure = new_figure(_ROW_INCHES * len(panels))
    grid = figure.subplots(len(panels), columns, squeeze=False)
    for axes in grid.flat:
        axes.set_axis_off()
    return figure, [list(row) for row in grid]


def _detail(panel: LesionPanel) -> tuple[int, int, int]:
    """Return top, left and side of the square with the most lesion, in whole pixels of the input."""
    size, scale = len(panel.high), len(panel.high) // len(panel.low)
    side = size // _CROP // scale * scale
    found = panel.masks if panel.masks is not None and panel.masks.any() else panel.lesions
    if found is None:
        return (size - side) // 2 // scale * scale, (size - side) // 2 // scale * scale, side
    amount = np.pad(found.sum(axis=0, dtype=np.float64).cumsum(axis=0).cumsum(axis=1), ((1, 0), (1, 0)))
    sums = amount[side:, side:] - amount[:-side, side:] - amount[side:, :-side] + amount[:-side, :-side]
    top, left = np.unravel_index(sums[::scale, ::scale].argmax(), sums[::scale, ::scale].shape)
    return int(top) * scale, int(left) * scale, side


def _overlay(axes: Axes, planes: npt.NDArray[Any] | None, title: str, missing: str) -> None:
    if planes is None:
        axes.set_title(missing, fontsize=9, color=INK)
        return
    for plane, colour in zip(planes, LESION_COLOURS.values(), strict=True):
        shown = np.zeros((*plane.shape, 4))
        shown[..., :3] = [int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)]
        shown[..., 3] = 0.8 * plane
        axes.imshow(shown)
    axes.set_title(title, fontsize=9)
