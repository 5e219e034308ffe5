"""What several ranks see and say together: passes, metrics, decisions, and a training that resumes."""

import itertools
import tempfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
import torch

from retina_ray.config import RunConfig
from retina_ray.data.shards import ShardedDataset
from retina_ray.errors import StoppedError
from retina_ray.metrics.summary import summarise
from retina_ray.metrics.table import make_table
from retina_ray.training.ballot import Ballot
from retina_ray.training.clock import Clock
from retina_ray.training.evaluate import run_over, validate
from retina_ray.training.loop import Loop
from retina_ray.training.policy import Schedule
from retina_ray.training.reporter import FolderReporter, Record
from retina_ray.training.state import Progress, TrainState
from retina_ray.training.world import World
from tests.helpers import (
    Ranks,
    same_state,
    tiny_config,
    tiny_engine,
    tiny_grader,
    tiny_loader,
    tiny_selection,
    write_dataset,
)

Pass = tuple[np.ndarray, dict[str, np.ndarray], dict[str, float]]


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    return write_dataset(tmp_path_factory.mktemp("data"), rows=(22, 25, 9))


def a_pass(world: World, dataset: ShardedDataset, micro_batch: int, count: int) -> Pass:
    """Predict and validate over the first ``count`` validation images, ``micro_batch`` at a time on each rank."""
    engine = tiny_engine(tiny_grader(), tiny_config(Path("none"), Path("none")), world)
    rows = tiny_selection(dataset).rows["validation"][:count]
    loader = tiny_loader(dataset, "validation", world=world, rows=rows, global_batch=micro_batch * world.size)
    engine.network.eval()
    found, values = run_over(
        loader, lambda batch: engine.method.probabilities(engine.network, batch.images), world=world
    )
    means = validate(engine, loader)
    loader.close()
    return found, values, means


def unpack(answers: list[Any]) -> list[Any]:
    for answer in answers:
        if isinstance(answer, Exception):
            raise answer
    return answers


def table_of(dataset: ShardedDataset, rows: np.ndarray, probabilities: np.ndarray) -> pa.Table:
    return make_table(
        probabilities,
        truth=dataset.grades["dr"][rows],
        image_ids=dataset.image_ids[rows],
        group_ids=dataset.group_ids[rows],
        sources=dataset.sources[rows],
        splits=np.full(len(rows), "test"),
        model="tiny",
        task="dr",
    )


# 4 images leave the third rank nothing but padding, 25 pad the last step, 24 fit exactly.
@pytest.mark.parametrize(("count", "micro_batch"), [(4, 2), (24, 4), (25, 4)])
def test_a_pass_is_the_same_on_any_number_of_ranks(
    ranks: Ranks, dataset: ShardedDataset, count: int, micro_batch: int
) -> None:
    rows, values, means = a_pass(World(), dataset, micro_batch, count)
    np.testing.assert_array_equal(rows, tiny_selection(dataset).rows["validation"][:count])
    summary = summarise(table_of(dataset, rows, values["dr"]), split="test", resamples=20, level=0.9, bins=5, seed=0)
    for world in (1, 2, 3):
        for found_rows, found, found_means in unpack(ranks.run(world, a_pass, dataset, micro_batch, count)):
            np.testing.assert_array_equal(found_rows, rows)
            for task in ("dr", "amd"):
                np.testing.assert_array_equal(found[task], values[task])
            assert found_means == means
            table = table_of(dataset, found_rows, found["dr"])
            assert summarise(table, split="test", resamples=20, level=0.9, bins=5, seed=0) == summary


def talk(world: World) -> dict[str, Any]:
    return {
        "sum": float(world.sum_(torch.tensor(world.rank + 1.0))),
        "broadcast": world.broadcast({"rank": world.rank}),
        "gather": list(world.gather([world.rank] * world.rank)),
        "is_main": world.is_main,
    }


def test_what_ranks_tell_each_other(ranks: Ranks) -> None:
    answers = unpack(ranks.run(3, talk))
    assert [answer.pop("is_main") for answer in answers] == [True, False, False]
    shared = {"sum": 6.0, "broadcast": {"rank": 0}, "gather": [[], [1], [2, 2]]}
    assert answers == [shared] * 3


def vote(world: World, wishes: list[list[list[bool]]], device: str) -> list[tuple[bool, ...]]:
    ballot = Ballot(replace(world, device=torch.device(device)))
    return [ballot.cast(*step[world.rank]) for step in wishes]


@pytest.mark.parametrize("device", ["cpu", "cuda"])
def test_a_ballot_tells_all_ranks_what_any_wished_a_step_before(ranks: Ranks, device: str) -> None:
    """Where the ranks have GPUs, their wishes go over a group beside theirs; neither needs one for it."""
    draw = np.random.default_rng(4)
    wishes = (draw.random((12, 3, 2)) < 0.2).tolist()
    before = [tuple(any(rank[index] for rank in step) for index in range(2)) for step in wishes]
    assert unpack(ranks.run(3, vote, wishes, device)) == [[(False, False), *before[:-1]]] * 3
    assert {True, False} <= {wish for answer in before for wish in answer}


class Killed(Exception):  # noqa: N818  # an event, not an error of ours
    pass


class MortalReporter(FolderReporter):
    """Fails on its n-th report, on every rank alike, as a killed worker group does."""

    def __init__(self, folder: Path, *, lives: int, told: Callable[[], bool]) -> None:
        super().__init__(folder, told=told)
        self._lives = lives

    def report(self, metrics: Record, checkpoint: Path | None) -> None:
        if self._lives == 0:
            raise Killed
        self._lives -= 1
        super().report(metrics, checkpoint)


def train(
    world: World, dataset: ShardedDataset, folder: str, lives: int, told: tuple[int, int] | None = None
) -> tuple[dict[str, Any], Progress]:
    """Train until a rank's n-th look, at which it alone is told to leave, or to the end."""
    looks = itertools.count()
    rank, number = told or (-1, 0)
    tempfile.tempdir = folder
    config: RunConfig = tiny_config(Path("none"), Path("none"), runtime__checkpoint__every_steps=2, optim__lr=0.01)
    state = TrainState(tiny_engine(tiny_grader(), config, world))
    training = tiny_loader(dataset, "train", world=world, accumulate=2)
    held_out = tiny_loader(dataset, "validation", world=world)
    schedule = Schedule(epochs=2, patience=None, optim=config.optim, checkpoint=config.runtime.checkpoint, log_every=1)
    try:
        Loop(
            state,
            loader=training,
            validate=lambda: validate(state.engine, held_out),
            schedule=schedule,
            reporter=MortalReporter(
                Path(folder) / "checkpoints", lives=lives, told=lambda: next(looks) >= number and world.rank == rank
            ),
            clock=Clock(),
        ).run()
    finally:
        training.close()
        held_out.close()
        tempfile.tempdir = None
    return {**state.engine.network.state_dict(), **{f"best.{k}": v for k, v in state.best_weights.items()}}, (
        state.progress
    )


def test_ranks_leave_together_when_one_is_told(ranks: Ranks, dataset: ShardedDataset, tmp_path: Path) -> None:
    (tmp_path / "whole").mkdir()
    expected, progress = unpack(ranks.run(2, train, dataset, str(tmp_path / "whole"), 99))[0]
    steps = []
    for rank, number in [(0, 0), (1, 0), (1, 2), (1, 3)]:
        folder = tmp_path / f"{rank}-{number}"
        folder.mkdir()
        answers = ranks.run(2, train, dataset, str(folder), 99, (rank, number))
        assert all(isinstance(answer, StoppedError) for answer in answers)
        assert len({answer.step for answer in answers if isinstance(answer, StoppedError)}) == 1
        steps += [answer.step for answer in answers if isinstance(answer, StoppedError)][:1]
        found, found_progress = unpack(ranks.run(2, train, dataset, str(folder), 99))[0]
        assert found_progress == progress
        assert same_state(found, expected)
    assert steps[:2] == [2, 2], "told at the first step, all know at the second"
    assert steps == sorted(steps)


def test_two_ranks_resume_bit_for_bit(ranks: Ranks, dataset: ShardedDataset, tmp_path: Path) -> None:
    folders = [tmp_path / str(lives) for lives in range(5)]
    for folder in folders:
        folder.mkdir()
    expected, progress = unpack(ranks.run(2, train, dataset, str(folders[4]), 99))[0]
    assert progress.step == 6
    for lives in (1, 2, 3):
        assert all(isinstance(answer, Killed) for answer in ranks.run(2, train, dataset, str(folders[lives]), lives))
        found, found_progress = unpack(ranks.run(2, train, dataset, str(folders[lives]), 99))[0]
        assert found_progress == progress
        assert same_state(found, expected)
