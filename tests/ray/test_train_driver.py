"""One run from configuration to predictions on a real local Ray, and what a user meets when it will not do."""

import json
import os
import signal
import threading
from contextlib import suppress
from pathlib import Path
from typing import Any

import pytest

from retina_ray.config import RunConfig
from retina_ray.errors import ConfigError, DataError, NonFiniteLossError, ResourceError
from retina_ray.orchestration.train_driver import RunResult, train_driver
from tests.helpers import ONE_STAGE, descendants, tiny_config

Records = list[dict[str, Any]]

ON_RAY = {"runtime__workers": 2, "runtime__cpus_per_worker": 1, "runtime__log_every": 1}


def drive(config: RunConfig, *, resume: bool = False) -> tuple[RunResult, Records]:
    records: Records = []
    return train_driver(config, resume=resume, listener=records.append), records


def stages_with(records: Records, kind: str) -> set[str]:
    return {record["stage"] for record in records if record["kind"] == kind}


@pytest.fixture(scope="module")
def first(ray_cluster: None, data: Path, storage: Path) -> tuple[RunResult, Records]:
    """A whole SALL run with two workers."""
    return drive(tiny_config(data, storage, name="first", **ON_RAY))


STAGES = {"teacher-dr", "teacher-amd", "cross-labels", "student-dr-amd", "test"}
STUDENT = {"student-dr-amd", "test"}
FILES = {"cross-labels": {"logits.safetensors"}, "test": {"predictions.parquet"}}


@pytest.mark.timeout(600)
def test_a_sall_run_ends_with_artifacts_and_predictions(first: tuple[RunResult, Records], storage: Path) -> None:
    result, _records = first
    assert result.model == "sall"
    assert result.artifacts.keys() == STAGES
    for name, artifact in result.artifacts.items():
        wanted = FILES.get(name, {"weights.safetensors", "history.json"})
        assert artifact.files.keys() == wanted
        for file in wanted:
            artifact.read(file)
        assert artifact.facts["workers"] == 2
    table = result.folder.predictions().to_pydict()
    seen = {(model, task) for model, task in zip(table["model"], table["task"], strict=True)}
    assert seen == {(model, task) for model in ("single_task", "sall") for task in ("dr", "amd")}
    assert set(table["split"]) == {"validation", "test"}
    # 9 validation and 11 test images, each once per model and task
    assert len(table["model"]) == 4 * 20
    assert len({*zip(table["model"], table["task"], table["image_id"], strict=True)}) == 4 * 20
    assert {(each.model, each.task) for each in result.summaries} == seen
    described = json.loads((storage / "first" / "run.json").read_text())
    assert described["stages"].keys() == STAGES
    assert (storage / "first" / "config.yaml").exists()
    assert (storage / "first" / "metrics.json").exists()


@pytest.mark.timeout(600)
def test_progress_reaches_the_listener_in_order(first: tuple[RunResult, Records]) -> None:
    _, records = first
    assert stages_with(records, "started") == STAGES
    assert stages_with(records, "finished") == STAGES
    for stage, steps in (("teacher-dr", 4), ("teacher-amd", 4), ("student-dr-amd", 6)):
        done = [
            record["step"] for record in records if record["stage"] == stage and record["kind"] in ("step", "epoch")
        ]
        assert done == list(range(1, steps + 1))
    kinds = [(record["stage"], record["kind"]) for record in records]
    assert kinds.index(("cross-labels", "started")) > kinds.index(("teacher-dr", "finished"))
    assert kinds.index(("student-dr-amd", "started")) > kinds.index(("cross-labels", "finished"))


@pytest.mark.long
@pytest.mark.timeout(600)
def test_another_temperature_trains_the_student_alone(
    first: tuple[RunResult, Records], data: Path, storage: Path
) -> None:
    before, _ = first
    result, records = drive(tiny_config(data, storage, name="hot", method__temperature=9.0, **ON_RAY))
    assert stages_with(records, "reused") == STAGES - STUDENT
    assert stages_with(records, "started") == STUDENT
    assert stages_with(records, "epoch") == {"student-dr-amd"}
    for name in STAGES - STUDENT:
        assert result.artifacts[name].store.uri == before.artifacts[name].store.uri
    assert result.artifacts["student-dr-amd"].store.uri != before.artifacts["student-dr-amd"].store.uri


@pytest.mark.timeout(600)
def test_the_same_run_under_another_name_trains_nothing(
    first: tuple[RunResult, Records], data: Path, storage: Path
) -> None:
    before, _ = first
    result, records = drive(tiny_config(data, storage, name="again", **ON_RAY))
    assert stages_with(records, "reused") == STAGES
    assert not stages_with(records, "started")
    assert result.folder.predictions().equals(before.folder.predictions())


def test_a_name_that_is_taken_is_refused(first: tuple[RunResult, Records], data: Path, storage: Path) -> None:
    config = tiny_config(data, storage, name="first", **ON_RAY)
    with pytest.raises(ConfigError, match="the run exists"):
        train_driver(config)
    other = tiny_config(data, storage, name="first", optim__lr=0.5, **ON_RAY)
    with pytest.raises(ConfigError, match=r"had other settings: optim\.lr: .*, now 0\.5"):
        train_driver(other, resume=True)


@pytest.mark.timeout(600)
def test_a_loss_that_explodes_ends_the_run_with_its_step_and_term(
    ray_cluster: None, data: Path, tmp_path: Path
) -> None:
    records: Records = []
    config = tiny_config(data, tmp_path, optim__name="sgd", optim__lr=1e30, train__epochs=4, **ON_RAY, **ONE_STAGE)
    with pytest.raises(NonFiniteLossError) as caught:
        train_driver(config, listener=records.append)
    assert caught.value.term in ("dr", "gradient")
    assert caught.value.step > 0
    assert not [record for record in records if record["kind"] == "restored"], "it is not worth a restart"
    assert not list(tmp_path.glob("artifacts/*/artifact.json"))


def test_too_many_workers_are_refused_at_once(ray_cluster: None, data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, runtime__workers=8, **ONE_STAGE)
    with pytest.raises(ResourceError, match="8 workers x 1 CPUs asked for, 4 CPUs there"):
        train_driver(config)
    config = tiny_config(data, tmp_path, name="gpu", runtime__workers=1, runtime__use_gpu=True, **ONE_STAGE)
    with pytest.raises(ResourceError, match="not enough GPUs"):
        train_driver(config)


def test_a_data_set_that_will_not_do_is_refused_at_once(tmp_path: Path, data: Path) -> None:
    with pytest.raises(DataError, match="no such folder"):
        train_driver(tiny_config(tmp_path / "none", tmp_path, runtime__workers=2))
    with pytest.raises(ConfigError, match="no data set given"):
        train_driver(tiny_config(Path(), tmp_path, data__path=""))


def test_a_task_that_the_data_set_lacks_is_named(tmp_path: Path, data: Path) -> None:
    with pytest.raises(ConfigError, match="dme"):
        train_driver(tiny_config(data, tmp_path, method__tasks=["dr", "dme"]))


def test_a_run_without_intervals(tmp_path: Path, data: Path) -> None:
    config = tiny_config(data, tmp_path, evaluate__bootstrap=0, train__epochs=1, **ONE_STAGE)
    result, _ = drive(config)
    assert [each.intervals for each in result.summaries] == [{}]


def rank_processes() -> list[int]:
    """Return the training workers of this session's Ray."""
    found = []
    for process in descendants(os.getpid()):
        with suppress(OSError):
            if b"RayTrainWorker" in Path(f"/proc/{process}/cmdline").read_bytes():
                found.append(process)
    return found


@pytest.mark.timeout(600)
@pytest.mark.long
def test_a_worker_that_is_killed_is_survived_bit_for_bit(ray_cluster: None, data: Path, tmp_path: Path) -> None:
    changes = {**ON_RAY, **ONE_STAGE, "train__epochs": 8, "runtime__checkpoint__every_steps": 1}
    whole, _ = drive(tiny_config(data, tmp_path / "whole", **changes))
    records: Records = []
    killed = threading.Event()

    def kill_one_at_step_3(record: dict[str, Any]) -> None:
        records.append(record)
        if record.get("step") == 3 and not killed.is_set():
            killed.set()
            os.kill(max(rank_processes()), signal.SIGKILL)

    result = train_driver(tiny_config(data, tmp_path / "killed", **changes), listener=kill_one_at_step_3)
    assert killed.is_set()
    (restored,) = [record for record in records if record["kind"] == "restored"]
    assert restored["step"] >= 1
    for stage, file in (
        ("student-dr", "weights.safetensors"),
        ("student-dr", "history.json"),
        ("test", "predictions.parquet"),
    ):
        assert result.artifacts[stage].read(file) == whole.artifacts[stage].read(file)
