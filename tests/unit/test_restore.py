"""Which checkpoint a training resumes from: the newest that can be trusted."""

import logging
from pathlib import Path

import pytest
import torch

from retina_ray.training.reporter import FolderReporter
from retina_ray.training.restore import Restored, restore
from retina_ray.training.state import MANIFEST, TrainState, save
from retina_ray.training.step import train_step
from tests.helpers import batch_of, same_state, tiny_config, tiny_engine, tiny_grader


def fresh() -> TrainState:
    return TrainState(tiny_engine(tiny_grader(), tiny_config(Path("none"), Path("none"))))


@pytest.fixture
def reporter(tmp_path: Path) -> FolderReporter:
    return FolderReporter(tmp_path / "checkpoints", keep=3)


@pytest.fixture
def states(reporter: FolderReporter, tmp_path: Path) -> list[dict[str, torch.Tensor]]:
    """Checkpoint after each of three steps; return the weights at each."""
    state, weights = fresh(), []
    state.keep_best()
    for step in range(3):
        train_step(state.engine, [batch_of({"dr": [0, 1, 2], "amd": [1, 0, -1]})], step=step, lr=0.01)
        state.progress.step = step + 1
        (tmp_path / f"new{step}").mkdir()
        reporter.report({"step": step + 1}, save(state, tmp_path / f"new{step}"))
        weights.append({name: value.clone() for name, value in state.engine.network.state_dict().items()})
    return weights


def damage(folder: Path) -> None:
    file = folder / "model.safetensors"
    data = bytearray(file.read_bytes())
    data[-1] ^= 128
    file.write_bytes(bytes(data))


@pytest.mark.parametrize("damaged", [0, 1, 2])
def test_the_newest_verified_checkpoint_wins_and_the_skipped_are_named(
    reporter: FolderReporter, states: list[dict[str, torch.Tensor]], damaged: int, caplog: pytest.LogCaptureFixture
) -> None:
    folders = list(reporter.checkpoints())
    for folder in folders[:damaged]:
        damage(folder)
    state = fresh()
    with caplog.at_level(logging.WARNING):
        assert restore(state, reporter) == Restored(
            found=True, damaged=tuple(folder.name for folder in folders[:damaged])
        )
    assert state.progress.step == 3 - damaged
    assert same_state(state.engine.network.state_dict(), states[2 - damaged])
    for place, folder in enumerate(folders):
        assert (str(folder) in caplog.text) == (place < damaged)


@pytest.mark.parametrize("harm", ["unfinished", "empty", "file"])
def test_what_a_kill_leaves_behind_is_passed_over(
    reporter: FolderReporter, states: list[dict[str, torch.Tensor]], harm: str
) -> None:
    newest = next(reporter.checkpoints())
    younger = newest.with_name("checkpoint_000000009")
    if harm == "file":
        younger.write_bytes(b"")
    else:
        younger.mkdir()
    if harm == "unfinished":
        (younger / "model.safetensors").write_bytes((newest / "model.safetensors").read_bytes())
    state = fresh()
    assert len(restore(state, reporter).damaged) == 1
    assert state.progress.step == 3


def test_without_any_sound_checkpoint_training_starts_anew(
    reporter: FolderReporter, states: list[dict[str, torch.Tensor]], caplog: pytest.LogCaptureFixture
) -> None:
    for folder in reporter.checkpoints():
        (folder / MANIFEST).unlink()
    state = fresh()
    before = {name: value.clone() for name, value in state.engine.network.state_dict().items()}
    names = tuple(folder.name for folder in reporter.checkpoints())
    assert restore(state, reporter) == Restored(found=False, damaged=names)
    assert state.progress.step == 0
    assert same_state(before, state.engine.network.state_dict())
    assert same_state(before, state.best_weights)
    assert caplog.text.count("skipped") == 3


def test_nothing_there_is_a_fresh_start(tmp_path: Path) -> None:
    state = fresh()
    assert restore(state, FolderReporter(tmp_path / "none")) == Restored(found=False, damaged=())
    assert state.progress.step == 0


@pytest.mark.parametrize("keep", [2, 3])
def test_a_folder_keeps_the_newest(tmp_path: Path, keep: int) -> None:
    reporter = FolderReporter(tmp_path / "kept", keep=keep)
    for step in (1, 5, 12, 100):
        new = tmp_path / "new"
        new.mkdir()
        (new / "step").write_text(str(step))
        reporter.report({"step": step}, new)
        assert not new.exists()
    names = [folder.name for folder in reporter.checkpoints()]
    assert names == ["checkpoint_000000100", "checkpoint_000000012", "checkpoint_000000005"][:keep]
    assert [(folder / "step").read_text() for folder in reporter.checkpoints()] == ["100", "12", "5"][:keep]
    assert sorted(path.name for path in (tmp_path / "kept").iterdir()) == sorted(names)


def test_a_report_without_a_checkpoint_touches_nothing(tmp_path: Path) -> None:
    reporter = FolderReporter(tmp_path / "kept")
    reporter.report({"step": 1}, None)
    assert list(reporter.checkpoints()) == []
    assert not (tmp_path / "kept").exists()


def test_a_checkpoint_of_the_same_step_replaces_the_old_one(tmp_path: Path) -> None:
    reporter = FolderReporter(tmp_path / "kept")
    for text in ("old", "new"):
        new = tmp_path / "folder"
        new.mkdir()
        (new / "text").write_text(text)
        reporter.report({"step": 4}, new)
    (only,) = reporter.checkpoints()
    assert (only / "text").read_text() == "new"


def test_progress_goes_to_the_listener(tmp_path: Path) -> None:
    records: list[dict[str, object]] = []
    FolderReporter(tmp_path, listener=records.append).progress({"kind": "step"})
    assert records == [{"kind": "step"}]
