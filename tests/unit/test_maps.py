"""What maps are made of, and GMSV where there is nothing to see: no NaN, in no value and in no gradient."""

import math

import pytest
import torch
from torch import Tensor

from retina_ray.explain.gmsv import Fusion, Gmsv, Step
from retina_ray.explain.maps import enlarge, min_max, safe_ratio


def degenerate(case: str) -> tuple[list[Tensor], Tensor]:
    """Features of two layers (2 and 3 channels) and lesions (B, 4, H, W)."""
    features = [torch.rand(2, 2, 4, 4).double(), torch.rand(2, 3, 2, 2).double()]
    lesions = 0.25 * torch.rand(2, 4, 8, 8).double()
    if case == "features of zero":
        features = [torch.zeros_like(layer) for layer in features]
    elif case == "one dead channel":
        features[0][0, 1] = 0
    elif case == "one dead layer":
        features[1][:] = 0
    elif case == "flat features":
        features = [torch.full_like(layer, 3.0) for layer in features]
    elif case == "negative features":
        features = [-layer for layer in features]
    elif case == "tiny features":
        features = [1e-300 * layer for layer in features]
    elif case == "no lesions":
        lesions = torch.zeros_like(lesions)
    elif case == "lesions everywhere":
        lesions = torch.ones_like(lesions)
    elif case == "a batch of one":
        features, lesions = [layer[:1] for layer in features], lesions[:1]
    elif case == "maps of one cell":
        features, lesions = [layer[:, :, :1, :1] for layer in features], lesions[:, :, :1, :1]
    elif case == "features larger than the image":
        lesions = lesions[:, :, :3, :2]
    else:
        raise AssertionError(case)
    return [layer.requires_grad_() for layer in features], lesions.requires_grad_()


@pytest.mark.parametrize(
    "case",
    [
        "features of zero",
        "one dead channel",
        "one dead layer",
        "flat features",
        "negative features",
        "tiny features",
        "no lesions",
        "lesions everywhere",
        "a batch of one",
        "maps of one cell",
        "features larger than the image",
    ],
)
@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@pytest.mark.parametrize("step", ["hard", "soft"])
@pytest.mark.parametrize("fusion", ["sum", "learned"])
def test_degenerate_input_gives_finite_maps_and_gradients(
    step: Step, fusion: Fusion, dtype: torch.dtype, case: str
) -> None:
    features, lesions = degenerate(case)
    gmsv = Gmsv((2, 3), theta_seg=0.5, step=step, sharpness=9.0, fusion=fusion).to(dtype)
    layers = [layer.to(dtype) for layer in features]
    score = (layers[0].square().mean(dim=(1, 2, 3)) + 0.3) * (layers[1] + 0.1).sin().sum(dim=(1, 2, 3))
    heat = gmsv(layers, score, lesions.to(dtype), create_graph=True)
    assert heat.shape == (len(lesions), *lesions.shape[2:])
    assert bool(((heat >= 0) & (heat <= 1)).all())
    wanted = [*features, lesions, *(p for p in gmsv.parameters() if p.requires_grad)]
    gradients = torch.autograd.grad(heat.square().sum(), wanted, allow_unused=True)
    assert all(bool(g.isfinite().all()) for g in gradients if g is not None)


@pytest.mark.parametrize("value", [0.0, 0.7, -2.0])
def test_a_flat_map_is_zero_and_passes_no_gradient(value: float) -> None:
    flat = torch.full((2, 3, 3), value, dtype=torch.float64, requires_grad=True)
    scaled = min_max(flat)
    (gradient,) = torch.autograd.grad(scaled.sum() + scaled.square().sum(), flat)
    assert not scaled.any()
    assert not gradient.any()


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_the_rounding_of_an_enlarged_flat_map_is_no_evidence(dtype: torch.dtype) -> None:
    enlarged = enlarge(torch.rand(50, 1, 1, dtype=dtype).expand(-1, 3, 3), (37, 41))
    assert bool((enlarged != enlarged[:, :1, :1]).any())
    assert not min_max(enlarged).any()


def test_maps_fill_the_range_exactly() -> None:
    maps = torch.randn(50, 5, 5)
    assert min_max(maps).amin(dim=(1, 2)).tolist() == [0] * 50
    assert min_max(maps).amax(dim=(1, 2)).tolist() == [1] * 50


@pytest.mark.parametrize("denominator", [0.0, -1.0, 1e-30])
def test_a_ratio_with_nothing_below_is_zero_in_value_and_gradient(denominator: float) -> None:
    top, bottom = torch.ones(1, requires_grad=True), torch.full((1,), denominator, requires_grad=True)
    ratio = safe_ratio(top, bottom)
    assert ratio.item() == 0
    assert [g.item() for g in torch.autograd.grad(ratio, [top, bottom])] == [0, 0]


def test_nan_is_not_hidden() -> None:
    assert math.isnan(safe_ratio(torch.ones(1), torch.full((1,), math.nan)).item())
    assert bool(min_max(torch.tensor([[[0.0, math.nan], [1.0, 2.0]]])).isnan().all())
