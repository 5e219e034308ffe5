"""Passes that leave no trace in the running statistics."""

import pytest
import torch
from torch import nn

from retina_ray.models.batch_statistics import repeated, unrecorded


def test_a_pass_normalises_as_ever_and_records_nothing() -> None:
    layer, images = nn.BatchNorm2d(3), torch.randn(4, 3, 5, 5) + 2
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    with unrecorded(nn.Sequential(layer)), unrecorded(layer):
        quiet = layer(images)
    assert all(torch.equal(buffer, before[name]) for name, buffer in layer.named_buffers())
    torch.testing.assert_close(layer(images), quiet, rtol=0, atol=0)
    assert int(layer.num_batches_tracked) == 1


def test_evaluation_keeps_normalising_by_the_running_statistics() -> None:
    layer, images = nn.BatchNorm2d(3).eval(), torch.randn(4, 3, 5, 5) + 2
    with unrecorded(layer):
        torch.testing.assert_close(layer(images), images, rtol=0, atol=1e-3)


def test_a_pass_that_fails_leaves_the_layers_as_they_were() -> None:
    layer, without = nn.BatchNorm2d(3), nn.BatchNorm2d(3, track_running_stats=False)
    with pytest.raises(RuntimeError), unrecorded(nn.Sequential(layer, without)):
        layer(torch.randn(4, 2, 5, 5))
    assert layer.track_running_stats
    assert not without.track_running_stats


@pytest.mark.parametrize("momentum", [0.1, None])
def test_a_repeated_pass_counts_once_and_saves_the_same(momentum: float | None) -> None:
    layer, images = nn.BatchNorm2d(3, momentum=momentum), torch.randn(4, 3, 5, 5) + 2
    first = layer(images)
    before = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    with repeated(nn.Sequential(layer)):
        torch.testing.assert_close(layer(images), first, rtol=0, atol=0)
    assert {name: buffer.tolist() for name, buffer in layer.named_buffers()} == {
        name: buffer.tolist() for name, buffer in before.items()
    }
    assert layer.momentum == momentum
    layer(images)
    assert int(layer.num_batches_tracked) == 2
