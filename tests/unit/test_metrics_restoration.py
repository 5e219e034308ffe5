"""PSNR and SSIM of each image against plain formulas, and their independence of batch, memory format and autocast."""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor

from retina_ray.metrics.restoration import psnr, ssim

Metric = Callable[[Tensor, Tensor], Tensor]
METRICS = [pytest.param(psnr, id="psnr"), pytest.param(ssim, id="ssim")]


def draw(count: int = 3, size: int = 24) -> tuple[Tensor, Tensor]:
    """Images (count, 3, size, size) and copies of them, each with more noise than the one before."""
    generator = torch.Generator().manual_seed(0)
    high = torch.rand(count, 3, size, size, generator=generator)
    noise = torch.randn(count, 3, size, size, generator=generator) * torch.arange(1, count + 1).view(-1, 1, 1, 1) / 20
    return (high + noise).clamp(0, 1), high


def slow_ssim(restored: np.ndarray, high: np.ndarray) -> float:
    """Wang et al. 2004, Eq. 13, in float64: an 11 x 11 Gaussian window about each pixel, borders reflected."""
    ramp = np.exp(-(np.arange(-5, 6) ** 2) / (2 * 1.5**2))
    window = np.outer(ramp, ramp) / np.outer(ramp, ramp).sum()
    values = []
    for x, y in zip(restored, high, strict=True):
        padded = [np.pad(plane, 5, mode="reflect") for plane in (x, y)]
        for row in range(x.shape[0]):
            for column in range(x.shape[1]):
                a, b = (plane[row : row + 11, column : column + 11] for plane in padded)
                mean_a, mean_b = (window * a).sum(), (window * b).sum()
                variance_a, variance_b = (window * (a - mean_a) ** 2).sum(), (window * (b - mean_b) ** 2).sum()
                covariance = (window * (a - mean_a) * (b - mean_b)).sum()
                values.append(
                    (2 * mean_a * mean_b + 0.01**2)
                    * (2 * covariance + 0.03**2)
                    / ((mean_a**2 + mean_b**2 + 0.01**2) * (variance_a + variance_b + 0.03**2))
                )
    return float(np.mean(values))


def test_psnr_by_hand() -> None:
    # A difference of 0.1 everywhere is 20 dB; a difference of 1 in one of twelve values is 10 log10(12).
    high = torch.zeros(2, 3, 2, 2)
    restored = torch.full_like(high, 0.1)
    restored[1] = 0.0
    restored[1, 0, 0, 0] = 1.0
    assert psnr(restored, high).tolist() == pytest.approx([20.0, 10 * math.log10(12)], abs=1e-4)


def test_ssim_against_its_formula() -> None:
    restored, high = draw(size=12)
    expected = [slow_ssim(a, b) for a, b in zip(restored.double().numpy(), high.double().numpy(), strict=True)]
    assert ssim(restored, high).tolist() == pytest.approx(expected, abs=1e-5)


def test_equal_images() -> None:
    _, high = draw()
    assert psnr(high, high).tolist() == [math.inf] * 3
    assert ssim(high, high).tolist() == pytest.approx([1.0] * 3)


@pytest.mark.parametrize("metric", METRICS)
def test_more_noise_is_worse(metric: Metric) -> None:
    values = metric(*draw())
    assert values.shape == (3,)
    assert values[0] > values[1] > values[2]


@pytest.mark.parametrize("metric", METRICS)
def test_each_image_is_measured_by_itself(metric: Metric) -> None:
    restored, high = draw()
    single = torch.cat([metric(restored[i : i + 1], high[i : i + 1]) for i in range(3)])
    torch.testing.assert_close(metric(restored, high), single)


@pytest.mark.parametrize("metric", METRICS)
def test_autocast_and_memory_format_change_nothing(metric: Metric) -> None:
    restored, high = draw()
    expected = metric(restored, high)
    with torch.autocast("cpu", torch.bfloat16):
        torch.testing.assert_close(metric(restored, high), expected, atol=0, rtol=0)
    last = [images.to(memory_format=torch.channels_last) for images in (restored, high)]
    torch.testing.assert_close(metric(*last), expected)


@pytest.mark.parametrize("metric", METRICS)
def test_bfloat16_images_are_measured_in_float32(metric: Metric) -> None:
    restored, high = (images.bfloat16() for images in draw())
    torch.testing.assert_close(metric(restored, high), metric(restored.float(), high.float()))


@pytest.mark.parametrize("metric", METRICS)
def test_two_shapes_are_named(metric: Metric) -> None:
    restored, high = draw()
    with pytest.raises(ValueError, match=r"restored \(3, 3, 24, 12\) and high \(3, 3, 24, 24\)"):
        metric(restored[..., :12], high)
