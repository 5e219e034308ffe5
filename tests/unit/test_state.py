"""A checkpoint on disk: what is saved comes back, and nothing that differs from its manifest is read."""

import json
import math
import shutil
from pathlib import Path

import pytest
import torch

from retina_ray.errors import CheckpointError
from retina_ray.training.state import MANIFEST, Progress, TrainState, load, save, verify
from retina_ray.training.step import train_step
from tests.helpers import batch_of, same_state, tiny_config, tiny_engine, tiny_grader

FILES = ("model.safetensors", "best.safetensors", "optimizer.pt", "progress.json")


def trained(steps: int = 2, seed: int = 0) -> TrainState:
    torch.manual_seed(seed)
    state = TrainState(tiny_engine(tiny_grader(), tiny_config(Path("none"), Path("none"), seed=seed)))
    state.keep_best()
    for step in range(steps):
        train_step(state.engine, [batch_of({"dr": [0, 1, 2, -1], "amd": [1, -1, 0, 1]})], step=step, lr=0.01)
    state.progress = Progress(
        step=steps,
        sums={"dr": 0.1 + 0.2, "amd": 1 / 3},
        best_criterion=2 / 3,
        best_epoch=1,
        history=[{"kind": "epoch", "step": 1, "train_dr": 1e-17}],
    )
    return state


@pytest.fixture
def checkpoint(tmp_path: Path) -> Path:
    folder = tmp_path / "checkpoint"
    folder.mkdir()
    return save(trained(), folder)


def test_everything_saved_comes_back_bit_for_bit(checkpoint: Path) -> None:
    saved, other = trained(), trained(steps=1, seed=1)
    assert not same_state(saved.engine.network.state_dict(), other.engine.network.state_dict())
    load(other, checkpoint)
    assert same_state(saved.engine.network.state_dict(), other.engine.network.state_dict())
    assert same_state(saved.best_weights, other.best_weights)
    assert other.progress == saved.progress
    ours, theirs = (state.engine.optimizer.state_dict() for state in (saved, other))
    assert ours["param_groups"] == theirs["param_groups"]
    for index, slots in ours["state"].items():
        assert same_state(slots, theirs["state"][index])


def test_progress_before_the_first_validation_comes_back(tmp_path: Path) -> None:
    state = trained()
    state.progress = Progress(step=1)
    load(state, save(state, tmp_path))
    assert state.progress == Progress(step=1, best_criterion=float("inf"))


def test_progress_is_strict_json_and_keeps_what_is_undefined(tmp_path: Path) -> None:
    state = trained()
    state.progress = Progress(step=1, history=[{"kind": "epoch", "validation_ap_SE": math.nan}])
    load(state, save(state, tmp_path))
    json.loads((tmp_path / "progress.json").read_text(), parse_constant=pytest.fail)
    assert math.isnan(state.progress.history[0]["validation_ap_SE"])


def test_the_best_weights_do_not_follow_the_training() -> None:
    state = trained(steps=0)
    kept = {name: value.clone() for name, value in state.best_weights.items()}
    train_step(state.engine, [batch_of({"dr": [0, 1], "amd": [1, 0]})], step=0, lr=0.1)
    assert same_state(kept, state.best_weights)
    assert not same_state(kept, state.engine.network.state_dict())


def test_the_manifest_names_every_file_and_is_written_last(checkpoint: Path) -> None:
    assert json.loads((checkpoint / MANIFEST).read_text()).keys() == set(FILES)
    assert (checkpoint / MANIFEST).stat().st_mtime_ns >= max((checkpoint / name).stat().st_mtime_ns for name in FILES)
    verify(checkpoint)


def truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def flip_a_bit(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(bytes(data))


def empty(path: Path) -> None:
    path.write_bytes(b"")


@pytest.mark.parametrize("harm", [truncate, flip_a_bit, empty, Path.unlink])
@pytest.mark.parametrize("name", FILES)
def test_a_damaged_file_is_named_and_nothing_is_loaded(checkpoint: Path, name: str, harm: object) -> None:
    harm(checkpoint / name)
    state = trained(steps=1, seed=1)
    before = {name: value.clone() for name, value in state.engine.network.state_dict().items()}
    progress = state.progress
    with pytest.raises(CheckpointError, match=name):
        load(state, checkpoint)
    assert same_state(before, state.engine.network.state_dict())
    assert state.progress is progress


@pytest.mark.parametrize("harm", [truncate, empty, Path.unlink])
def test_a_damaged_or_missing_manifest_is_no_checkpoint(checkpoint: Path, harm: object) -> None:
    harm(checkpoint / MANIFEST)
    with pytest.raises(CheckpointError, match="manifest"):
        verify(checkpoint)


@pytest.mark.parametrize("content", ["{}", "[]", "null", "3", '"text"'])
def test_a_manifest_that_vouches_for_nothing_is_refused(checkpoint: Path, content: str) -> None:
    (checkpoint / MANIFEST).write_text(content)
    with pytest.raises(CheckpointError):
        verify(checkpoint)


def test_a_missing_folder_is_a_damaged_checkpoint(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError):
        verify(tmp_path / "gone")


def test_loading_executes_nothing(checkpoint: Path) -> None:
    import hashlib
    import pickle

    class Trap:
        def __reduce__(self) -> tuple[object, tuple[object, ...]]:
            return (exec, ("raise SystemExit('executed')",))

    (checkpoint / "optimizer.pt").write_bytes(pickle.dumps(Trap(), protocol=2))
    hashes = json.loads((checkpoint / MANIFEST).read_text())
    hashes["optimizer.pt"] = hashlib.sha256((checkpoint / "optimizer.pt").read_bytes()).hexdigest()
    (checkpoint / MANIFEST).write_text(json.dumps(hashes))
    with pytest.raises(pickle.UnpicklingError):
        load(trained(steps=1), checkpoint)


def test_a_full_disk_leaves_a_folder_that_is_no_checkpoint(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def no_space(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", no_space)
    with pytest.raises(OSError, match="No space"):
        save(trained(), tmp_path)
    with pytest.raises(CheckpointError):
        verify(tmp_path)
    shutil.rmtree(tmp_path)
