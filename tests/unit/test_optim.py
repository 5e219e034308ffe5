"""Learning rates as a function of the step, and optimisers that can skip an update on the device."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import nn

from retina_ray.config import OptimConfig
from retina_ray.methods.base import ParameterGroup
from retina_ray.training.optim import build_optimizer, enter_epoch, learning_rate


def rates(config: OptimConfig, steps_per_epoch: int = 4, epochs: int = 5) -> list[float]:
    total = steps_per_epoch * epochs
    return [
        learning_rate(config, step=step, steps_per_epoch=steps_per_epoch, total_steps=total) for step in range(total)
    ]


def test_constant_is_constant() -> None:
    assert set(rates(OptimConfig(lr=0.3))) == {0.3}


def test_cosine_starts_at_the_peak_and_ends_at_nothing() -> None:
    values = rates(OptimConfig(lr=0.3, schedule="cosine"))
    assert values[0] == 0.3
    assert values == sorted(values, reverse=True)
    assert values[10] == pytest.approx(0.15)
    last = learning_rate(OptimConfig(lr=0.3, schedule="cosine"), step=20, steps_per_epoch=4, total_steps=20)
    assert last == pytest.approx(0.0, abs=1e-12)
    assert values[-1] == pytest.approx(0.3 * 0.5 * (1 + torch.cos(torch.tensor(torch.pi * 19 / 20)).item()), rel=1e-5)


@pytest.mark.parametrize("schedule", ["constant", "cosine"])
def test_the_warm_up_rises_evenly_from_above_nothing_to_the_peak(schedule: str) -> None:
    values = rates(OptimConfig(lr=1.0, schedule=schedule, warmup_epochs=1.0))
    assert values[:5] == pytest.approx([0.2, 0.4, 0.6, 0.8, 1.0])


def test_half_an_epoch_of_warm_up_is_half_its_steps() -> None:
    assert rates(OptimConfig(lr=1.0, warmup_epochs=0.5))[:3] == pytest.approx([1 / 3, 2 / 3, 1.0])


@given(
    st.sampled_from(["constant", "cosine"]), st.floats(0, 7), st.integers(1, 9), st.integers(1, 6), st.floats(1e-6, 10)
)
def test_the_rate_never_leaves_its_bounds(
    schedule: str, warmup: float, steps_per_epoch: int, epochs: int, lr: float
) -> None:
    config = OptimConfig(lr=lr, schedule=schedule, warmup_epochs=warmup)
    assert all(0 < rate <= lr * (1 + 1e-12) for rate in rates(config, steps_per_epoch, epochs))


@pytest.mark.parametrize(
    ("name", "kind"), [("adam", torch.optim.Adam), ("adamw", torch.optim.AdamW), ("sgd", torch.optim.SGD)]
)
def test_an_optimiser_has_the_configured_numbers_and_is_fused(name: str, kind: type) -> None:
    model = nn.Linear(3, 2)
    config = OptimConfig(name=name, lr=0.1, betas=(0.8, 0.9), eps=1e-6, weight_decay=0.01)
    optimizer = build_optimizer([ParameterGroup([model.weight]), ParameterGroup([model.bias], 0.25)], config)
    group, slower = optimizer.param_groups
    assert type(optimizer) is kind
    assert group["params"] == [model.weight]
    assert slower["params"] == [model.bias]
    assert (slower["lr"], slower["lr_factor"]) == (0.025, 0.25)
    assert group["fused"] is True
    assert (group["lr"], group["weight_decay"]) == (0.1, 0.01)
    if name == "sgd":
        assert group["momentum"] == 0.8
    else:
        assert (group["betas"], group["eps"]) == ((0.8, 0.9), 1e-6)


def test_a_group_s_rate_changes_after_its_epochs_whichever_epoch_comes_first() -> None:
    model = nn.Linear(3, 2)
    groups = [ParameterGroup([model.weight], 0.5, 0.2, change_epoch=2), ParameterGroup([model.bias], 0.25)]
    optimizer = build_optimizer(groups, OptimConfig())
    for epoch, factor in ((0, 0.5), (1, 0.5), (2, 0.1), (5, 0.1), (1, 0.5)):
        enter_epoch(optimizer, epoch)
        assert [group["lr_factor"] for group in optimizer.param_groups] == pytest.approx([factor, 0.25])


@pytest.mark.parametrize("name", ["adam", "adamw", "sgd"])
def test_a_fused_step_is_the_step_of_the_plain_optimiser(name: str) -> None:
    plain, ours = nn.Linear(4, 3), nn.Linear(4, 3)
    ours.load_state_dict(plain.state_dict())
    config = OptimConfig(name=name, lr=0.05, weight_decay=0.1)
    reference = {
        "adam": lambda: torch.optim.Adam(plain.parameters(), 0.05, (0.9, 0.999), 1e-8, 0.1, foreach=False),
        "adamw": lambda: torch.optim.AdamW(plain.parameters(), 0.05, (0.9, 0.999), 1e-8, 0.1, foreach=False),
        "sgd": lambda: torch.optim.SGD(plain.parameters(), 0.05, 0.9, 0, 0.1, foreach=False),
    }[name]()
    fused = build_optimizer([ParameterGroup(list(ours.parameters()))], config)
    for model, optimizer in ((plain, reference), (ours, fused)):
        torch.manual_seed(1)
        for _ in range(3):
            optimizer.zero_grad()
            model(torch.randn(5, 4)).square().mean().backward()
            optimizer.step()
    torch.testing.assert_close(ours.weight, plain.weight)
