"""What a report shows of DeepMT-DR: details where the lesions are, overlays, Tables III and IV."""

import dataclasses
import math

import numpy as np
import pytest

from retina_ray.report import build, deepmt_figures, progress_figures
from retina_ray.report.deepmt_figures import LesionPanel

SIDE, SCALE = 64, 4


def a_panel(*, masks: bool = True, lesions: bool = True, evidence: bool = True) -> LesionPanel:
    rng = np.random.default_rng(0)
    high = rng.integers(0, 255, (SIDE, SIDE, 3), dtype=np.uint8)
    truth = np.zeros((4, SIDE, SIDE), dtype=bool)
    truth[1, 40:44, 52:56] = True
    return LesionPanel(
        low=high[::SCALE, ::SCALE],
        bicubic=high,
        restored=high,
        high=high,
        lesions=truth.astype(np.float32) if lesions else None,
        masks=truth if masks else None,
        evidence=rng.random((SIDE, SIDE), dtype=np.float32) if evidence else None,
        psnr=(31.25, 33.75),
        title="severe, graded moderate",
    )


def test_a_detail_is_where_the_lesions_are_in_all_four_pictures() -> None:
    panel = a_panel()
    figure = deepmt_figures.restoration([panel])
    shown = [axes.images[0].get_array() for axes in figure.axes]
    assert [len(image) for image in shown] == [SIDE // 4 // SCALE, SIDE // 4, SIDE // 4, SIDE // 4]
    top, left, side = deepmt_figures._detail(panel)
    assert top <= 40 < 44 <= top + side
    assert left <= 52 < 56 <= left + side
    np.testing.assert_array_equal(shown[3], panel.high[top : top + side, left : left + side])
    np.testing.assert_array_equal(shown[0], panel.low[top // 4 : (top + side) // 4, left // 4 : (left + side) // 4])
    assert [axes.get_title() for axes in figure.axes][1:3] == ["bicubic, 31.2 dB", "restored, 33.8 dB"]


@pytest.mark.parametrize("missing", ["masks", "lesions", "evidence"])
def test_what_an_image_lacks_is_said(missing: str) -> None:
    figure = deepmt_figures.lesions([a_panel(**{missing: False})])
    titles = {axes.get_title() for axes in figure.axes}
    said = {"masks": "no mask", "lesions": "no segmentation", "evidence": "no evidence map"}[missing]
    assert said in titles
    figure.savefig("/dev/null", format="png")


def test_without_any_lesion_the_detail_is_the_middle() -> None:
    assert deepmt_figures._detail(a_panel(masks=False, lesions=False)) == (24, 24, 16)


def test_nothing_is_shown_as_restored_where_nothing_is_enlarged() -> None:
    titles = [figure.title for figure in build._lesion_figures([a_panel()])]
    assert titles == ["From low to high resolution", "Lesions and evidence"]
    panel = a_panel()
    same = dataclasses.replace(panel, low=panel.high, psnr=(math.inf, math.inf))
    assert [figure.title for figure in build._lesion_figures([same])] == ["Lesions and evidence"]


def figures_of(stage: str) -> dict[str, float]:
    regions = ("MA", "HM", "HE", "SE", "mean")
    kinds = {"ap": 0.5, "auc": 0.9, "image_ap": 0.4, "image_auc": 0.8, "chance": 0.01}
    lesions = {f"{kind}_{region}": value for kind, value in kinds.items() for region in regions}
    restored = {"psnr": 34.567, "psnr_bicubic": 33.2, "ssim": 0.9, "ssim_bicubic": 0.85}
    evidence = {f"evidence_auc_{region}": 0.7 for region in (*regions[:4], "lesions")}
    evidence["evidence_auc_background"] = 0.3
    return {"grading": lesions | evidence | {"ap_SE": math.nan}, "restoration": lesions | restored}[stage]


def test_tables_hold_the_stages_that_have_the_figures() -> None:
    tests = {stage: figures_of(stage) for stage in ("restoration", "grading")}
    [row] = deepmt_figures.restoration_rows(tests)
    assert [cell.text for cell in row.values()] == ["restoration", "34.57", "33.20", "0.900", "0.850"]
    lesions = ["MA", "HM", "HE", "SE", "mean of the lesions"]
    rows = deepmt_figures.lesion_rows(tests)
    assert [(row["Stage"].text, row["Region"].text) for row in rows] == [
        *[("restoration", lesion) for lesion in lesions],
        *[("grading", region) for region in (*lesions, "any lesion", "background")],
    ]
    assert [cell.text for cell in rows[0].values()][2:] == ["0.500", "0.010", "0.400", "0.900", "0.800", ""]
    assert rows[8]["AP"].text == "n/a"
    assert deepmt_figures.lesion_rows({"teacher": {"loss_dr": 1.0}}) == []


def test_finding_3_is_the_evidence_at_any_lesion_and_at_the_background() -> None:
    *_, anywhere, background = deepmt_figures.lesion_rows({"grading": figures_of("grading")})
    assert [cell.text for cell in anywhere.values()] == ["grading", "any lesion", "", "", "", "", "", "0.700"]
    assert [cell.text for cell in background.values()] == ["grading", "background", "", "", "", "", "", "0.300"]
    alone = deepmt_figures.lesion_rows({"joint": {"evidence_auc_lesions": 0.87, "evidence_auc_background": 0.13}})
    assert [row["AUC of the evidence"].text for row in alone] == ["0.870", "0.130"]


def test_curves_of_other_quantities_have_panels_of_their_own() -> None:
    history = [
        {
            "epoch": epoch,
            "train_pixel": 0.01,
            "train_total_variation": 60.0,
            "validation_criterion": 1.0,
            "validation_psnr": 33.0 + epoch,
            "validation_ap_MA": 0.1,
            "validation_auc_MA": 0.7,
            "validation_image_auc_MA": 0.7,
            "validation_chance_MA": 0.01,
            "validation_accuracy_dr": 0.5,
        }
        for epoch in (1, 2)
    ]
    figure = progress_figures.training_curves(history)
    labels = [axes.get_ylabel() for axes in figure.axes if axes.get_visible()]
    expected = {"loss", "validation average precision", "validation ROC area", "validation accuracy (%)"}
    assert set(labels) == expected | {"validation PSNR (dB)"}
    scales = {axes.get_ylabel(): axes.get_yscale() for axes in figure.axes}
    assert scales["loss"] == "log"
    assert scales["validation PSNR (dB)"] == "linear"
