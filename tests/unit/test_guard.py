"""A loss or gradient that is not finite: nothing is updated by it or after it, and it is named."""

import math
import pickle

import pytest
import torch
from torch import Tensor, nn

from retina_ray.config import OptimConfig
from retina_ray.errors import NonFiniteLossError
from retina_ray.methods.base import ParameterGroup
from retina_ray.training.guard import FiniteGuard
from retina_ray.training.optim import build_optimizer
from tests.helpers import same_state

OPTIMIZERS = ("adam", "adamw", "sgd")


class Bench:
    """A small network whose steps can be poisoned."""

    def __init__(self, name: str) -> None:
        self.model = nn.Linear(4, 3)
        self.optimizer = build_optimizer(
            [ParameterGroup(list(self.model.parameters()))], OptimConfig(name=name, lr=0.1, weight_decay=0.01)
        )
        self.guard = FiniteGuard(torch.device("cpu"))

    def step(self, step: int, *, dr: float = 1.0, amd: float = 2.0, gradient: float | None = None) -> None:
        self.optimizer.zero_grad()
        self.model(torch.randn(5, 4)).square().mean().backward()
        if gradient is not None:
            self.model.weight.grad[0, 0] = gradient
        norm = torch.nn.utils.get_total_norm([parameter.grad for parameter in self.model.parameters()])
        self.guard.watch(step, {"dr": torch.tensor(dr), "amd": torch.tensor(amd)}, norm, self.optimizer)
        self.optimizer.step()

    def state(self) -> dict[str, Tensor]:
        slots = {
            f"{index}.{key}": value.clone()
            for index, state in enumerate(self.optimizer.state.values())
            for key, value in state.items()
            if isinstance(value, Tensor)
        }
        return {**{name: value.clone() for name, value in self.model.state_dict().items()}, **slots}


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
@pytest.mark.parametrize(
    ("poison", "term"),
    [
        ({"dr": math.nan}, "dr"),
        ({"amd": math.inf}, "amd"),
        ({"dr": -math.inf}, "dr"),
        ({"dr": math.inf, "amd": math.nan}, "dr"),
        ({"gradient": math.inf}, "gradient"),
        ({"gradient": math.nan}, "gradient"),
        ({"amd": math.nan, "gradient": math.nan}, "amd"),
    ],
)
def test_the_update_and_all_later_ones_are_skipped_bit_for_bit(
    optimizer: str, poison: dict[str, float], term: str
) -> None:
    bench = Bench(optimizer)
    for step in range(3):
        bench.step(step)
    bench.guard.check()
    before = bench.state()
    bench.step(3, **poison)
    assert same_state(before, bench.state())
    for step in (4, 5):
        bench.step(step)
        assert same_state(before, bench.state())
    with pytest.raises(NonFiniteLossError) as caught:
        bench.guard.check()
    assert (caught.value.step, caught.value.term) == (3, term)
    expected = poison[term]
    assert caught.value.term_value == expected or (math.isnan(expected) and math.isnan(caught.value.term_value))


@pytest.mark.parametrize("optimizer", OPTIMIZERS)
def test_the_very_first_step_is_guarded(optimizer: str) -> None:
    bench = Bench(optimizer)
    before = {name: value.clone() for name, value in bench.model.state_dict().items()}
    bench.step(0, dr=math.nan)
    assert same_state(before, bench.model.state_dict())
    with pytest.raises(NonFiniteLossError, match="loss term 'dr' is not finite at step 0"):
        bench.guard.check()


def test_the_first_of_several_failures_is_named() -> None:
    bench = Bench("adam")
    bench.step(0)
    bench.step(1, amd=math.nan)
    bench.step(2, dr=math.inf)
    with pytest.raises(NonFiniteLossError) as caught:
        bench.guard.check()
    assert (caught.value.step, caught.value.term) == (1, "amd")


def test_finite_steps_pass_and_do_update() -> None:
    bench = Bench("adam")
    bench.guard.check()
    before = bench.state()
    bench.step(0, dr=1e30)
    bench.guard.check()
    assert not same_state(before, bench.state())


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_watching_changes_no_finite_update(name: str) -> None:
    results = []
    for watched in (True, False):
        torch.manual_seed(3)
        bench = Bench(name)
        for step in range(4):
            if watched:
                bench.step(step)
            else:
                bench.optimizer.zero_grad()
                bench.model(torch.randn(5, 4)).square().mean().backward()
                bench.optimizer.step()
        results.append(bench.state())
    assert same_state(*results)


def test_the_error_survives_pickling_with_its_fields() -> None:
    error = pickle.loads(pickle.dumps(NonFiniteLossError(7, "dr", math.inf)))
    assert (error.step, error.term, error.term_value) == (7, "dr", math.inf)
    assert str(error) == str(NonFiniteLossError(7, "dr", math.inf))
    assert "\n" not in str(error)
    assert "inf" in str(error)
    assert "optim.lr" in str(error)
