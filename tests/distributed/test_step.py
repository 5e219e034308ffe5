"""A training step over several ranks and micro-batches is one step over the whole global batch."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from retina_ray.config import RunConfig
from retina_ray.data.shards import ShardedDataset
from retina_ray.errors import NonFiniteLossError
from retina_ray.training.engine import Engine
from retina_ray.training.evaluate import sync_buffers, validate
from retina_ray.training.step import train_step
from retina_ray.training.world import World
from tests.helpers import Ranks, same_state, tiny_config, tiny_engine, tiny_grader, tiny_loader, write_dataset

State = dict[str, Tensor]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    """22 training images, so that the second global batch of 12 is padded; ranks see different numbers of grades."""
    return write_dataset(tmp_path_factory.mktemp("data"))


def a_config(**changes: Any) -> RunConfig:
    return tiny_config(
        Path("none"),
        Path("none"),
        **{"optim__name": "sgd", "optim__lr": 0.1, "train__global_batch_size": 12, **changes},
    )


def state_of(engine: Engine) -> State:
    return {name: value.clone() for name, value in engine.network.state_dict().items()}


def train(
    world: World,
    dataset: ShardedDataset,
    config: RunConfig,
    *,
    batch_norm: bool = False,
    dropout: float = 0.0,
    steps: int = 4,
    only: str | None = None,
) -> tuple[State, list[dict[str, float]]]:
    """Train a few steps over two epochs; return the weights and the loss terms of each step."""
    engine = tiny_engine(tiny_grader(dropout=dropout, batch_norm=batch_norm), config, world)
    grades = {
        task: values if only in (None, task) else np.full_like(values, -1) for task, values in dataset.grades.items()
    }
    loader = tiny_loader(
        dataset, "train", world=world, global_batch=12, accumulate=config.train.accumulate, grades=grades
    )
    terms = []
    for step in range(steps):
        epoch, start = divmod(step, loader.steps_per_epoch)
        micro_batches = next(loader.epoch(epoch, start))
        values = train_step(engine, micro_batches, step=step, lr=config.optim.lr)
        terms.append({name: float(value) for name, value in values.items()})
    loader.close()
    engine.guard.check()
    return state_of(engine), terms


def unpack(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


@pytest.mark.parametrize(("world", "accumulate"), [(1, 2), (1, 12), (2, 1), (2, 2), (3, 1), (3, 4)])
@pytest.mark.parametrize("clip_norm", [None, 0.05])
def test_ranks_and_micro_batches_make_one_big_batch(
    ranks: Ranks, dataset: ShardedDataset, world: int, accumulate: int, clip_norm: float | None
) -> None:
    expected, expected_terms = train(World(), dataset, a_config(train__clip_norm=clip_norm))
    config = a_config(train__accumulate=accumulate, train__clip_norm=clip_norm)
    answers = unpack(ranks.run(world, train, dataset, config))
    for weights, terms in answers:
        assert same_state(weights, answers[0][0]), "ranks agree bit for bit"
        assert terms == answers[0][1]
    weights, terms = answers[0]
    for found, wanted in zip(terms, expected_terms, strict=True):
        assert found == pytest.approx(wanted, rel=1e-5)
    for name, value in weights.items():
        torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def test_a_task_without_any_grade_in_the_batch_stops_nothing(ranks: Ranks, dataset: ShardedDataset) -> None:
    expected, _ = train(World(), dataset, a_config(), only="dr")
    for weights, terms in unpack(ranks.run(2, _train_dr_only, dataset)):
        assert all(step["amd"] == 0.0 for step in terms)
        for name, value in weights.items():
            torch.testing.assert_close(value, expected[name], rtol=1e-5, atol=1e-6, msg=name)


def _train_dr_only(world: World, dataset: ShardedDataset) -> tuple[State, list[dict[str, float]]]:
    return train(world, dataset, a_config(), only="dr")


def test_the_same_ranks_give_the_same_bits_again(ranks: Ranks, dataset: ShardedDataset) -> None:
    runs = [unpack(ranks.run(2, _train_everything, dataset)) for _ in range(2)]
    assert same_state(runs[0][0][0], runs[1][0][0])
    assert runs[0][0][1] == runs[1][0][1]


def _train_everything(world: World, dataset: ShardedDataset) -> tuple[State, list[dict[str, float]]]:
    return train(world, dataset, a_config(train__accumulate=2), batch_norm=True, dropout=0.4)


def dropped(world: World, dataset: ShardedDataset, seed: int) -> list[bytes]:
    """Return which features dropout zeroed in each micro-batch of two steps over the same images."""
    engine = tiny_engine(tiny_grader(dropout=0.5, batch_norm=False), a_config(seed=seed, train__accumulate=2), world)
    masks: list[bytes] = []
    engine.network.dropout.register_forward_hook(
        lambda module, inputs, output: masks.append(output[inputs[0] != 0].eq(0).numpy().tobytes())
    )
    loader = tiny_loader(dataset, "train")
    (same,) = next(loader.epoch(0))
    torch.manual_seed(world.rank)  # whatever the random state was, it must not matter
    for step in range(2):
        train_step(engine, [same, same], step=step, lr=0.0)
    loader.close()
    return masks


def test_dropout_is_drawn_anew_for_each_seed_step_micro_batch_and_rank(ranks: Ranks, dataset: ShardedDataset) -> None:
    answers = unpack(ranks.run(2, dropped, dataset, 0))
    assert unpack(ranks.run(2, dropped, dataset, 0)) == answers
    other_seed = unpack(ranks.run(2, dropped, dataset, 1))
    masks = [mask for answer in (*answers, *other_seed) for mask in answer]
    assert len(masks) == len(set(masks)) == 16


def poisoned(world: World, dataset: ShardedDataset, what: str) -> tuple[NonFiniteLossError | None, bool, State]:
    """Train with one bad rank: return the error, whether the last two steps changed nothing, and the weights."""
    engine = tiny_engine(tiny_grader(dropout=0.0, batch_norm=False), a_config(), world)
    loader = tiny_loader(dataset, "train", world=world, global_batch=12)
    before: State = {}
    for step in range(4):
        (batch,) = next(loader.epoch(*divmod(step, loader.steps_per_epoch)))
        if step == 2:
            before = state_of(engine)
            if world.rank == 1 and what == "image":
                batch.images[0] = math.nan
            if world.rank == 1 and what == "gradient":
                engine.network.heads["amd"].weight.register_hook(lambda gradient: gradient * math.inf)
        train_step(engine, [batch], step=step, lr=0.1)
    loader.close()
    try:
        engine.guard.check()
    except NonFiniteLossError as error:
        return error, same_state(before, state_of(engine)), before
    return None, same_state(before, state_of(engine)), before


@pytest.mark.parametrize(("what", "terms"), [("image", {"dr", "amd"}), ("gradient", {"gradient"})])
def test_one_bad_rank_stops_all_at_the_same_step_with_the_same_term(
    ranks: Ranks, dataset: ShardedDataset, what: str, terms: set[str]
) -> None:
    answers = unpack(ranks.run(2, poisoned, dataset, what))
    for error, unchanged, weights in answers:
        assert error is not None
        assert error.step == 2
        assert error.term in terms
        assert error.term == answers[0][0].term
        assert unchanged
        assert same_state(weights, answers[0][2])


def batch_statistics(world: World, dataset: ShardedDataset) -> tuple[State, State, dict[str, float], State]:
    """Train with batch normalisation: return the state after a step, after `sync_buffers`, and a validation."""
    engine = tiny_engine(tiny_grader(dropout=0.0), a_config(), world)
    loader = tiny_loader(dataset, "train", world=world, global_batch=12)
    train_step(engine, next(loader.epoch(0)), step=0, lr=0.1)
    loader.close()
    own = state_of(engine)
    sync_buffers(engine.network, world)
    synced = state_of(engine)
    held_out = tiny_loader(dataset, "validation", world=world, global_batch=12)
    means = validate(engine, held_out)
    held_out.close()
    return own, synced, means, state_of(engine)


def test_batch_statistics_are_local_and_rank_0s_are_kept(ranks: Ranks, dataset: ShardedDataset) -> None:
    """What batch normalisation does across ranks.

    Each rank normalises by its own share, so running statistics differ after a step while the weights agree; a
    validation and a checkpoint take rank 0's. So more ranks are not one big batch for such a network: that is why the
    number of workers is part of an artifact's address.
    """
    answers = unpack(ranks.run(2, batch_statistics, dataset))
    (own_0, synced_0, means_0, after_0), (own_1, synced_1, means_1, after_1) = answers
    statistics = [name for name in own_0 if "running" in name]
    assert statistics
    for name in own_0:
        if name in statistics:
            assert not torch.equal(own_0[name], own_1[name])
        else:
            assert torch.equal(own_0[name], own_1[name])
    for state in (synced_0, synced_1, after_0, after_1):
        assert same_state(state, own_0)
    assert means_0 == means_1
    alone = tiny_engine(tiny_grader(dropout=0.0), a_config())
    alone.network.load_state_dict(own_0)
    loader = tiny_loader(dataset, "validation", global_batch=6)
    assert means_0 == pytest.approx(validate(alone, loader), rel=1e-6)
    loader.close()
