"""The training loop: stopping it anywhere and going on equals not having stopped; the best epoch is kept."""

import tempfile
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from retina_ray.config import RunConfig
from retina_ray.data.shards import ShardedDataset
from retina_ray.errors import NonFiniteLossError, StoppedError
from retina_ray.methods.base import ParameterGroup
from retina_ray.methods.sall import SallGrader
from retina_ray.training.clock import Clock
from retina_ray.training.evaluate import validate
from retina_ray.training.loop import Loop
from retina_ray.training.policy import Schedule
from retina_ray.training.reporter import FolderReporter, Record
from retina_ray.training.state import TrainState, load
from tests.helpers import same_state, tiny_config, tiny_engine, tiny_grader, tiny_loader, write_dataset


class KilledError(Exception):
    """Stands for whatever ends a process."""


class FaultyReporter(FolderReporter):
    """Fails at one of the moments at which the loop talks to the outside.

    Args:
        folder: of the checkpoints.
        fatal: which call fails instead of doing its work, from 0; None: none of them.
    """

    def __init__(self, folder: Path, *, fatal: int | None = None) -> None:
        super().__init__(folder)
        self.calls = 0
        self.records: list[Record] = []
        self.saved: list[int] = []
        self._fatal = fatal

    def progress(self, record: Record) -> None:
        self._count()
        self.records.append(record)

    def report(self, metrics: Record, checkpoint: Path | None) -> None:
        self._count()
        super().report(metrics, checkpoint)
        if checkpoint is not None:
            self.saved.append(metrics["step"])

    def _count(self) -> None:
        if self.calls == self._fatal:
            raise KilledError
        self.calls += 1


class ToldReporter(FaultyReporter):
    """Is told to leave when it is asked for the n-th time, from 0; None: never."""

    def __init__(self, folder: Path, *, told: int | None = None) -> None:
        super().__init__(folder)
        self.asked = 0
        self._told_at = told

    def leaving(self) -> bool:
        self.asked += 1
        return self._told_at is not None and self.asked > self._told_at


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> ShardedDataset:
    """22 training images: epochs of three steps of 8, the last one padded."""
    return write_dataset(tmp_path_factory.mktemp("data"))


@pytest.fixture(autouse=True)
def _one_thread() -> Iterator[None]:
    """Hundreds of tiny trainings: threads that wait for each other would take most of the time."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def _private_temporary_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keep the checkpoints that a failure strands out of the machine's own folder."""
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))


def a_config(**changes: Any) -> RunConfig:
    return tiny_config(
        Path("none"),
        Path("none"),
        **{"train__epochs": 3, "runtime__log_every": 1, "optim__schedule": "cosine", "optim__lr": 0.01, **changes},
    )


def schedule_of(config: RunConfig) -> Schedule:
    return Schedule(
        epochs=config.train.epochs,
        patience=config.train.patience,
        optim=config.optim,
        checkpoint=config.runtime.checkpoint,
        log_every=config.runtime.log_every,
    )


def train(dataset: ShardedDataset, config: RunConfig, reporter: FolderReporter, validation: Any = None) -> TrainState:
    """Train in a process that knows nothing but what the reporter keeps."""
    torch.manual_seed(12345)  # whatever the random state was, it must not matter
    state = TrainState(tiny_engine(tiny_grader(), config))
    batch = {"global_batch": config.train.global_batch_size, "accumulate": config.train.accumulate}
    training, held_out = tiny_loader(dataset, "train", **batch), tiny_loader(dataset, "validation")
    try:
        loop = Loop(
            state,
            loader=training,
            validate=validation or (lambda: validate(state.engine, held_out, between=loop.heed)),
            schedule=schedule_of(config),
            reporter=reporter,
            clock=Clock(),
        )
        loop.run()
    finally:
        training.close()
        held_out.close()
    return state


def assert_same(left: TrainState, right: TrainState) -> None:
    assert left.progress == right.progress
    assert same_state(left.engine.network.state_dict(), right.engine.network.state_dict())
    assert same_state(left.best_weights, right.best_weights)
    ours, theirs = (state.engine.optimizer.state_dict() for state in (left, right))
    assert ours["param_groups"] == theirs["param_groups"]
    assert ours["state"].keys() == theirs["state"].keys()
    for index, slots in ours["state"].items():
        assert same_state(slots, theirs["state"][index])


@pytest.mark.parametrize(
    ("every_steps", "accumulate", "optimizer"), [(1, 1, "adam"), (2, 2, "adam"), (3, 1, "sgd"), (4, 2, "adamw")]
)
def test_interrupted_anywhere_and_resumed_is_as_if_never_stopped(
    dataset: ShardedDataset, tmp_path: Path, every_steps: int, accumulate: int, optimizer: str
) -> None:
    config = a_config(runtime__checkpoint__every_steps=every_steps, train__accumulate=accumulate, optim__name=optimizer)
    whole = FaultyReporter(tmp_path / "whole")
    expected = train(dataset, config, whole)
    assert expected.progress.step == 9
    resumed_at = set()
    for fatal in range(whole.calls):
        folder = tmp_path / str(fatal)
        with pytest.raises(KilledError):
            train(dataset, config, FaultyReporter(folder, fatal=fatal))
        second = FaultyReporter(folder)
        assert_same(train(dataset, config, second), expected)
        assert set(second.saved) <= set(whole.saved), "checkpoints fall due at the same steps"
        resumed_at |= {record["step"] for record in second.records if record["kind"] == "restored"}
    # Within an epoch and at an epoch's end, wherever a checkpoint was due.
    assert resumed_at == {1: {1, 2, 3, 4, 5, 6, 7, 8}, 2: {2, 4, 6, 8}, 3: {3, 6}, 4: {4, 8}}[every_steps]


def test_interrupted_again_and_again_is_as_if_never_stopped(dataset: ShardedDataset, tmp_path: Path) -> None:
    config = a_config(runtime__checkpoint__every_steps=1)
    expected = train(dataset, config, FaultyReporter(tmp_path / "whole"))
    lives = 0
    while True:
        lives += 1
        try:
            # Each life ends four calls after its start: two steps, each a record and a report.
            assert_same(train(dataset, config, FaultyReporter(tmp_path / "lives", fatal=4)), expected)
            break
        except KilledError:
            assert lives < 20
    assert lives > 4


def test_told_to_leave_anywhere_it_saves_the_very_step_and_goes_on_from_there(
    dataset: ShardedDataset, tmp_path: Path
) -> None:
    config = a_config(runtime__checkpoint__every_steps=None, runtime__checkpoint__every_s=None)
    whole = ToldReporter(tmp_path / "whole")
    expected = train(dataset, config, whole)
    assert whole.asked > 12, "between steps, at the ends of epochs and between batches of validation"
    left_at = []
    for told in range(whole.asked - 1):
        folder = tmp_path / str(told)
        with pytest.raises(StoppedError) as caught:
            train(dataset, config, ToldReporter(folder, told=told))
        second = ToldReporter(folder)
        assert_same(train(dataset, config, second), expected)
        (restored,) = [record for record in second.records if record["kind"] == "restored"]
        assert restored["step"] == caught.value.step
        left_at.append(restored["step"])
    # The last time it is asked, all is done.
    assert_same(train(dataset, config, ToldReporter(tmp_path / "last", told=whole.asked - 1)), expected)
    assert left_at == sorted(left_at)
    assert set(left_at) == set(range(1, 10)), "after every step, the last one before it is validated"


def test_a_damaged_newest_checkpoint_costs_only_the_steps_since_the_one_before(
    dataset: ShardedDataset, tmp_path: Path
) -> None:
    config = a_config(runtime__checkpoint__every_steps=2)
    expected = train(dataset, config, FaultyReporter(tmp_path / "whole"))
    first = FaultyReporter(tmp_path / "torn", fatal=12)
    with pytest.raises(KilledError):
        train(dataset, config, first)
    newest = next(first.checkpoints())
    file = newest / "optimizer.pt"
    file.write_bytes(file.read_bytes()[:-7])
    second = FaultyReporter(tmp_path / "torn")
    assert_same(train(dataset, config, second), expected)
    (restored,) = [record for record in second.records if record["kind"] == "restored"]
    assert len(restored["damaged"]) == 1
    assert restored["step"] == int(newest.name.split("_")[1]) - 2


def test_a_finished_training_is_not_trained_again(dataset: ShardedDataset, tmp_path: Path) -> None:
    config = a_config()
    expected = train(dataset, config, FaultyReporter(tmp_path))
    again = FaultyReporter(tmp_path)
    assert_same(train(dataset, config, again), expected)
    assert [record["kind"] for record in again.records] == ["restored"]


@dataclass
class Case:
    verdicts: list[float]
    patience: int | None
    epochs_done: int
    best: int


@pytest.mark.parametrize(
    "case",
    [
        Case([3.0, 2.0, 1.0, 0.5, 0.4], None, 5, 5),
        Case([3.0, 1.0, 2.0, 2.0, 2.0], None, 5, 2),
        Case([3.0, 1.0, 2.0, 2.0, 0.0], 2, 4, 2),
        Case([3.0, 1.0, 1.0, 1.0, 0.0], 2, 4, 2),  # equal is no better
        Case([3.0, 1.0, 2.0, 0.9, 2.0], 2, 5, 4),
        Case([1.0, 2.0, 0.0, 0.0, 0.0], 1, 2, 1),
        Case([2.0, float("nan"), 1.0, 3.0, 3.0], None, 5, 3),
    ],
)
def test_the_best_epoch_is_kept_and_patience_ends_the_training(
    dataset: ShardedDataset, tmp_path: Path, case: Case
) -> None:
    config = a_config(train__epochs=5, train__patience=case.patience, optim__schedule="constant")
    state = TrainState(tiny_engine(tiny_grader(), config))
    loader, seen, verdicts = tiny_loader(dataset, "train"), [], iter(case.verdicts)

    def judge() -> dict[str, float]:
        seen.append({name: value.clone() for name, value in state.engine.network.state_dict().items()})
        return {"criterion": next(verdicts)}

    reporter = FaultyReporter(tmp_path / "run")
    Loop(state, loader=loader, validate=judge, schedule=schedule_of(config), reporter=reporter, clock=Clock()).run()
    loader.close()
    assert len(state.progress.history) == case.epochs_done
    assert state.progress.best_epoch == case.best
    assert same_state(state.best_weights, seen[case.best - 1])
    assert not same_state(seen[0], seen[-1])
    # The last report carries a checkpoint, and with it the best weights.
    other = TrainState(tiny_engine(tiny_grader(), config))
    load(other, next(reporter.checkpoints()))
    assert other.progress.finished
    assert same_state(other.best_weights, seen[case.best - 1])


def test_a_loss_that_explodes_ends_the_training_and_is_in_no_checkpoint(
    dataset: ShardedDataset, tmp_path: Path
) -> None:
    config = a_config(optim__lr=1e30, optim__schedule="constant", runtime__checkpoint__every_steps=1)
    reporter = FaultyReporter(tmp_path / "run")
    with pytest.raises(NonFiniteLossError) as caught:
        train(dataset, config, reporter)
    assert 0 < caught.value.step < 9
    for folder in reporter.checkpoints():
        state = TrainState(tiny_engine(tiny_grader(), a_config()))
        load(state, folder)
        assert state.progress.step <= caught.value.step
        assert all(bool(parameter.isfinite().all()) for parameter in state.engine.network.parameters())


def test_records_say_where_the_training_is_and_where_its_time_goes(dataset: ShardedDataset, tmp_path: Path) -> None:
    reporter = FaultyReporter(tmp_path / "run")
    train(dataset, a_config(runtime__log_every=2), reporter)
    kinds = [(record["kind"], record["step"], record["epoch"]) for record in reporter.records]
    assert kinds == [
        ("step", 2, pytest.approx(2 / 3)),
        ("epoch", 3, 1.0),
        ("step", 4, pytest.approx(4 / 3)),
        ("epoch", 6, 2.0),
        ("step", 8, pytest.approx(8 / 3)),
        ("epoch", 9, 3.0),
    ]
    for record in reporter.records:
        assert record["epochs"] == 3
        assert {"train_dr", "train_amd", "data_wait_share", "images_per_second", "compute_s"} <= record.keys()
    last = reporter.records[-1]
    assert {"validation_criterion", "validation_loss_dr", "validation_accuracy_amd", "best_epoch", "lr"} <= last.keys()


def test_an_epochs_loss_is_the_mean_over_its_steps(dataset: ShardedDataset, tmp_path: Path) -> None:
    reporter = FaultyReporter(tmp_path / "run")
    state = train(dataset, a_config(train__epochs=1, runtime__checkpoint__every_steps=1), reporter)
    steps = [record["train_dr"] for record in reporter.records if record["kind"] == "step"]
    assert len(steps) == 2
    loaded = TrainState(tiny_engine(tiny_grader(), a_config()))
    load(loaded, sorted(reporter.checkpoints())[0])  # after the second step
    assert loaded.progress.sums["dr"] == pytest.approx(sum(steps), rel=1e-6)
    mean = state.progress.history[0]["train_dr"]
    assert min(steps) / 3 < mean < sum(steps)
    assert mean * 3 - sum(steps) > 0, "the third step's loss is in the mean"


def test_a_group_s_rate_changes_at_its_epoch_of_the_training(
    dataset: ShardedDataset, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def groups(_method: SallGrader, network: nn.Module) -> list[ParameterGroup]:
        return [ParameterGroup(list(network.parameters()), change=0.5, change_epoch=2)]

    monkeypatch.setattr(SallGrader, "parameter_groups", groups)
    config = a_config(optim__schedule="constant")
    state = train(dataset, config, FaultyReporter(tmp_path / "run"))
    assert [record["lr"] for record in state.progress.history] == [0.01, 0.01, 0.005]


def test_a_training_learns(dataset: ShardedDataset, tmp_path: Path) -> None:
    config = a_config(train__epochs=25, optim__lr=0.03, optim__schedule="constant", runtime__log_every=1000)
    state = train(dataset, config, FaultyReporter(tmp_path / "run"))
    first, last = state.progress.history[0], state.progress.history[-1]
    assert last["train_dr"] < 0.6 * first["train_dr"]
    assert last["validation_accuracy_dr"] >= 0.75
