"""Segmentation metrics against torchmetrics and hand-worked cases; counts that add up; behaviour at the edges."""

import pytest
import torch
from torch import Tensor
from torchmetrics.functional.classification import binary_auroc, binary_average_precision

from retina_ray.metrics.segmentation import (
    LOG_ODDS,
    average_precision,
    evidence_histograms,
    roc_auc,
    score_histograms,
)

ALL = torch.ones(3, dtype=torch.bool)


def draw(seed: int = 0, bins: int | None = None) -> tuple[Tensor, Tensor]:
    """Scores and masks (3, 4, 8, 8) that know something of each other; scores at the centres of bins, if given."""
    generator = torch.Generator().manual_seed(seed)
    masks = torch.rand(3, 4, 8, 8, generator=generator) < 0.3
    scores = (torch.rand(3, 4, 8, 8, generator=generator, dtype=torch.float64) + 0.4 * masks) / 1.4
    if bins is not None:
        scores = (((scores * bins).floor() + 0.5) / bins * 2 * LOG_ODDS - LOG_ODDS).sigmoid()
    return scores, masks


def reference(metric: object, scores: Tensor, masks: Tensor) -> list[float]:
    """torchmetrics' exact value of each lesion, over all images."""
    return [metric(scores[:, lesion].flatten(), masks[:, lesion].flatten().long()).item() for lesion in range(4)]


def test_counts_by_hand() -> None:
    # Log-odds of -16, -8, 0, 8 and 16 bound four bins: 3.35e-4, a half and 1 - 3.35e-4.
    scores = torch.tensor([0.0, 3.3e-4, 3.4e-4, 0.49, 0.5, 0.9996, 0.9997, 1.0]).view(1, 1, 2, 4)
    masks = torch.tensor([False, True, False, True, True, False, True, True]).view(1, 1, 2, 4)
    counts = score_histograms(scores, masks, ALL[:1], bins=4)
    assert counts.tolist() == [[[[1, 1, 1, 0], [1, 1, 1, 2]]]]  # outside, inside
    assert counts.dtype == torch.int64


def test_an_image_without_a_mask_counts_for_nothing() -> None:
    scores, masks = draw()
    counts = score_histograms(scores, masks, torch.tensor([True, False, True]))
    assert counts.sum(dim=(2, 3)).tolist() == [[64] * 4, [0] * 4, [64] * 4]
    assert bool(average_precision(counts)[1].isnan().all())


def test_counts_do_not_depend_on_the_batch() -> None:
    scores, masks = draw()
    whole = score_histograms(scores, masks, ALL)
    single = [score_histograms(scores[i : i + 1], masks[i : i + 1], ALL[:1]) for i in range(3)]
    assert torch.equal(whole, torch.cat(single))


@pytest.mark.parametrize("bins", [7, 256])
def test_pooled_areas_equal_torchmetrics_at_the_centres_of_bins(bins: int) -> None:
    scores, masks = draw(bins=bins)
    pooled = score_histograms(scores, masks, ALL, bins=bins).sum(dim=0)
    precision = reference(binary_average_precision, scores, masks)
    assert average_precision(pooled).tolist() == pytest.approx(precision, abs=1e-5)
    assert roc_auc(pooled).tolist() == pytest.approx(reference(binary_auroc, scores, masks), abs=1e-5)


def test_pooled_areas_of_any_scores_are_off_by_less_than_a_thousandth() -> None:
    scores, masks = draw(seed=1)
    pooled = score_histograms(scores, masks, ALL).sum(dim=0)
    precision = reference(binary_average_precision, scores, masks)
    assert average_precision(pooled).tolist() == pytest.approx(precision, abs=1e-3)
    assert roc_auc(pooled).tolist() == pytest.approx(reference(binary_auroc, scores, masks), abs=1e-3)


def test_faint_scores_of_a_rare_lesion_keep_their_order() -> None:
    # Half of the lesion's pixels and nearly all others have a probability below 1/256.
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand(1, 1, 200, 200, generator=generator) < 0.01
    noise = torch.randn(1, 1, 200, 200, generator=generator)
    scores = torch.where(mask, 3 * noise - 5, 2 * noise - 10).sigmoid()
    counts = score_histograms(scores, mask, ALL[:1])
    truth = mask.flatten().long()
    exact = binary_auroc(scores.flatten(), truth).item()
    assert roc_auc(counts).item() == pytest.approx(exact, abs=1e-3)
    exact = binary_average_precision(scores.flatten(), truth).item()
    assert average_precision(counts).item() == pytest.approx(exact, abs=1e-3)


@pytest.mark.parametrize("bins", [8, 64])
def test_area_is_off_by_at_most_half_the_pairs_that_share_a_bin(bins: int) -> None:
    scores, masks = draw(seed=2)
    pooled = score_histograms(scores, masks, ALL, bins=bins).sum(dim=0)
    outside, inside = pooled.double().unbind(1)
    shared = (outside * inside).sum(1) / (outside.sum(1) * inside.sum(1))
    error = (roc_auc(pooled) - torch.tensor(reference(binary_auroc, scores, masks))).abs()
    assert bool((error <= shared / 2 + 1e-6).all())


def test_one_value_for_each_image_and_nan_where_the_lesion_is_absent() -> None:
    scores, masks = draw(bins=256)
    masks[0, 1] = False
    masks[1, 2] = True
    counts = score_histograms(scores, masks, ALL)
    precision, area = average_precision(counts), roc_auc(counts)
    assert precision.shape == area.shape == (3, 4)
    assert precision[1, 2] == 1.0
    for image in range(3):
        for lesion in range(4):
            truth = masks[image, lesion].flatten().long()
            assert precision[image, lesion].isnan() == (not truth.any())
            assert area[image, lesion].isnan() == (truth.min() == truth.max())
            if truth.any():
                exact = binary_average_precision(scores[image, lesion].flatten(), truth)
                assert precision[image, lesion].item() == pytest.approx(exact.item(), abs=1e-5)


def test_equal_scores_say_nothing() -> None:
    _, masks = draw()
    pooled = score_histograms(torch.full((3, 4, 8, 8), 0.3), masks, ALL).sum(dim=0)
    torch.testing.assert_close(roc_auc(pooled), torch.full((4,), 0.5, dtype=torch.float64))
    torch.testing.assert_close(average_precision(pooled), masks.double().mean(dim=(0, 2, 3)))


def test_perfect_and_opposite_scores() -> None:
    _, masks = draw()
    perfect = score_histograms(masks.float(), masks, ALL).sum(dim=0)
    assert average_precision(perfect).tolist() == roc_auc(perfect).tolist() == [1.0] * 4
    assert roc_auc(score_histograms((~masks).float(), masks, ALL).sum(dim=0)).tolist() == [0.0] * 4


def test_the_pixels_of_a_large_data_set_do_not_overflow() -> None:
    # 10^11 pixels outside and 10^10 inside: their pairs are beyond int64.
    counts = torch.tensor([[10**11, 0], [0, 10**10]])
    assert roc_auc(counts).item() == average_precision(counts).item() == 1.0


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_scores_of_half_precision_fall_into_their_own_bin(dtype: torch.dtype) -> None:
    scores, masks = draw()
    coarse = scores.to(dtype)
    assert torch.equal(score_histograms(coarse, masks, ALL), score_histograms(coarse.float(), masks, ALL))


# The evidence map of a grade


def test_evidence_at_lesions_any_lesion_and_background() -> None:
    scores, masks = draw(bins=256)
    maps = scores[:, 0]
    areas = roc_auc(evidence_histograms(maps, masks, ALL).sum(dim=0))
    any_lesion = masks.any(dim=1)
    regions = [*masks.unbind(1), any_lesion, ~any_lesion]
    expected = [binary_auroc(maps.flatten(), region.flatten().long()).item() for region in regions]
    assert areas.tolist() == pytest.approx(expected, abs=1e-5)
    assert areas[5].item() == pytest.approx(1 - areas[4].item())


def test_evidence_that_shows_the_lesions_exactly() -> None:
    _, masks = draw()
    areas = roc_auc(evidence_histograms(masks.any(dim=1).float(), masks, ALL))
    assert areas.shape == (3, 6)
    assert areas[:, 4:].tolist() == [[1.0, 0.0]] * 3


# Bad input


def test_shapes_that_do_not_fit_are_named() -> None:
    scores, masks = draw()
    for call in (
        lambda: score_histograms(scores, masks[:, :, :4], ALL),
        lambda: score_histograms(scores, masks, ALL[:2]),
        lambda: evidence_histograms(scores[:, 0, :4], masks, ALL),
    ):
        with pytest.raises(ValueError, match=r"\(3, [46], 8, 8\)"):
            call()


def test_no_bins_is_an_error() -> None:
    with pytest.raises(ValueError, match="at least 1 bin"):
        score_histograms(*draw(), ALL, bins=0)


def test_counting_does_not_wait_for_the_device() -> None:
    # Meta tensors hold no values: reading one, as a host synchronisation would, raises.
    scores, masks = draw()
    counts = evidence_histograms(scores[:, 0].to("meta"), masks.to("meta"), ALL.to("meta"))
    assert counts.shape == (3, 6, 2, 4096)
    assert roc_auc(counts).shape == average_precision(counts).shape == (3, 6)
