"""Who reads what, when: properties of the index arithmetic."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from retina_ray.data.order import Share, eval_positions, micro_batches, steps_per_epoch, train_positions
from retina_ray.errors import ConfigError

num_rows = st.integers(1, 150)
parts = st.tuples(st.integers(1, 4), st.integers(1, 3), st.integers(1, 5))
"""World size, micro-batches, rows per micro-batch."""


def shares_of(world: int, accumulate: int, micro_batch: int) -> list[Share]:
    return [Share(rank, world, world * accumulate * micro_batch, accumulate) for rank in range(world)]


def read(n: int, shares: list[Share], *, epoch: int | None, start: int = 0) -> tuple[list[NDArray], list[NDArray]]:
    """What all ranks read together, per step in the order of the global batch; epoch None evaluates."""
    all_indices, all_weights = [], []
    for step in range(start, steps_per_epoch(n, shares[0].global_batch)):
        blocks = []
        for micro in range(shares[0].accumulate):
            for share in shares:
                if epoch is None:
                    blocks.append(eval_positions(n, step=step, share=share, micro=micro))
                else:
                    blocks.append(train_positions(n, seed=7, epoch=epoch, step=step, share=share, micro=micro))
        assert all(len(indices) == len(weight) == shares[0].micro_batch for indices, weight in blocks)
        all_indices.append(np.concatenate([indices for indices, _ in blocks]))
        all_weights.append(np.concatenate([weight for _, weight in blocks]))
    return all_indices, all_weights


@settings(deadline=None)
@given(num_rows, parts, st.sampled_from([None, 0, 3]))
def test_every_row_counts_exactly_once_in_an_epoch(n: int, part: tuple[int, int, int], epoch: int | None) -> None:
    indices, weight = (np.concatenate(values) for values in read(n, shares_of(*part), epoch=epoch))
    assert set(np.unique(weight)) <= {0.0, 1.0}
    np.testing.assert_array_equal(np.sort(indices[weight == 1]), np.arange(n))
    assert indices.min() >= 0
    assert indices.max() < n


@settings(deadline=None)
@given(num_rows, parts)
def test_only_the_last_global_batch_is_padded_and_at_its_end(n: int, part: tuple[int, int, int]) -> None:
    _, weights = read(n, shares_of(*part), epoch=0)
    assert all(weight.all() for weight in weights[:-1])
    real = int(weights[-1].sum())
    assert real >= 1
    np.testing.assert_array_equal(weights[-1], np.arange(len(weights[-1])) < real)


@settings(deadline=None)
@given(num_rows, parts, st.sampled_from([None, 0, 3]))
def test_the_global_batch_does_not_depend_on_world_or_accumulate(
    n: int, part: tuple[int, int, int], epoch: int | None
) -> None:
    world, accumulate, micro_batch = part
    alone = read(n, [Share(0, 1, world * accumulate * micro_batch)], epoch=epoch)
    together = read(n, shares_of(*part), epoch=epoch)
    np.testing.assert_array_equal(together, alone)


@settings(deadline=None)
@given(num_rows, st.integers(1, 7), st.integers(1, 3), st.integers(0, 20), st.sampled_from([None, 0, 3]))
def test_any_number_of_ranks_shares_any_batch_in_the_same_order(
    n: int, world: int, accumulate: int, more: int, epoch: int | None
) -> None:
    batch = world * accumulate + more
    alone = read(n, [Share(0, 1, batch)], epoch=epoch)
    together = read(n, [Share(rank, world, batch, accumulate) for rank in range(world)], epoch=epoch)
    for (indices, weights), (expected, counted) in zip(
        zip(*together, strict=True), zip(*alone, strict=True), strict=True
    ):
        np.testing.assert_array_equal(indices[weights == 1], expected[counted == 1])
        assert len(indices) - batch < world * accumulate, "no part holds more than one row too many"


@settings(deadline=None)
@given(world=st.integers(1, 16), more=st.integers(0, 16), accumulate=st.integers(1, 4), rows=st.integers(1, 6))
def test_fewer_ranks_hold_no_more_rows_at_a_time(world: int, more: int, accumulate: int, rows: int) -> None:
    most = world + more
    batch = rows * most * accumulate
    fewer = micro_batches(accumulate, world=world, most=most, global_batch=batch)
    at_most = Share(rank=0, world=most, global_batch=batch, accumulate=accumulate)
    share = Share(rank=0, world=world, global_batch=batch, accumulate=fewer)
    whole = batch // world >= accumulate * -(-most // world)  # else a micro-batch would have no row of its own
    assert share.micro_batch <= at_most.micro_batch or not whole
    assert micro_batches(accumulate, world=most, most=most, global_batch=batch) == accumulate


@settings(deadline=None)
@given(num_rows, parts, st.integers(0, 200))
def test_resuming_gives_the_tail(n: int, part: tuple[int, int, int], start: int) -> None:
    shares = shares_of(*part)
    start %= steps_per_epoch(n, shares[0].global_batch)
    whole, tail = read(n, shares, epoch=1), read(n, shares, epoch=1, start=start)
    np.testing.assert_array_equal(tail, [values[start:] for values in whole])


def test_epochs_and_seeds_have_their_own_order() -> None:
    share = Share(0, 1, 100)
    orders = [
        train_positions(100, seed=seed, epoch=epoch, step=0, share=share, micro=0)[0]
        for seed in (0, 1)
        for epoch in (0, 1)
    ]
    assert len({tuple(order) for order in orders}) == 4


def test_the_order_is_the_same_for_ever() -> None:
    indices, weight = train_positions(8, seed=1, epoch=2, step=0, share=Share(0, 1, 10), micro=0)
    assert indices.tolist() == [4, 2, 0, 6, 1, 5, 7, 3, 4, 2]
    assert weight.tolist() == [1] * 8 + [0] * 2


def test_positions_are_not_shared_between_calls() -> None:
    share = Share(0, 1, 8)
    first, _ = train_positions(8, seed=1, epoch=2, step=0, share=share, micro=0)
    kept = first.copy()
    first[:] = 0
    np.testing.assert_array_equal(train_positions(8, seed=1, epoch=2, step=0, share=share, micro=0)[0], kept)


@pytest.mark.parametrize(
    ("rank", "world", "batch", "accumulate"), [(0, 2, 1, 1), (0, 2, 3, 2), (0, 1, 0, 1), (0, 1, 4, 0)]
)
def test_a_batch_that_cannot_be_shared_is_refused(rank: int, world: int, batch: int, accumulate: int) -> None:
    with pytest.raises(ConfigError, match="cannot be shared"):
        Share(rank, world, batch, accumulate)


@pytest.mark.parametrize(("rank", "world"), [(2, 2), (-1, 2), (0, 0)])
def test_a_rank_that_does_not_exist_is_refused(rank: int, world: int) -> None:
    with pytest.raises(ConfigError, match="rank does not exist"):
        Share(rank, world, 4)


@pytest.mark.parametrize(("step", "micro"), [(3, 0), (-1, 0), (0, 2)])
def test_a_step_that_does_not_exist_is_refused(step: int, micro: int) -> None:
    with pytest.raises(ValueError, match="not part of an epoch"):
        eval_positions(9, step=step, share=Share(0, 1, 4, 2), micro=micro)
