"""How many stages of a run train side by side: all that the cluster holds, and in a trial of a search one."""

import threading
import time
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import pytest

from retina_ray.orchestration import stages, train_driver
from retina_ray.orchestration.preparation import plan_run
from retina_ray.orchestration.tune_trial import train_trial
from tests.helpers import tiny_config


class Crowd:
    """Stands for the training of a stage and counts those that go on at the same time."""

    def __init__(self) -> None:
        self.most = self._now = self.trained = 0
        self._lock = threading.Lock()

    def __call__(self, runner: Any, stage: Any, run: Any) -> None:
        with self._lock:
            self._now += 1
            self.trained += 1
            self.most = max(self.most, self._now)
        time.sleep(0.2)  # long enough for every slot to be taken
        with self._lock:
            self._now -= 1


@pytest.fixture
def crowd(monkeypatch: pytest.MonkeyPatch) -> Crowd:
    """Trainings on a cluster of two nodes with three CPUs each that is pretended."""
    found = Crowd()
    monkeypatch.setattr(train_driver, "connected", lambda runtime: nullcontext())
    monkeypatch.setattr(train_driver, "cluster_resources", lambda runtime: [{"CPU": 3.0}, {"CPU": 3.0}])
    monkeypatch.setattr(stages, "relay_to", nullcontext)
    monkeypatch.setattr(stages.StageRunner, "_ensure", lambda *arguments: found(*arguments))
    return found


@pytest.mark.parametrize(
    ("workers", "cpus", "most"),
    [
        (1, 3, 2),  # both teachers, on a node each
        (2, 2, 1),  # a node holds one worker, so the cluster one group
    ],
)
def test_stages_of_a_run_train_side_by_side_where_there_is_room(
    crowd: Crowd, data: Path, tmp_path: Path, workers: int, cpus: int, most: int
) -> None:
    run = plan_run(tiny_config(data, tmp_path, runtime__workers=workers, runtime__cpus_per_worker=cpus))
    with train_driver.stage_runner(run, lambda record: None) as runner:
        runner.run(run.plan.stages)
    assert (crowd.most, crowd.trained) == (most, 5)


def test_a_trial_trains_one_stage_at_a_time(crowd: Crowd, data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path, runtime__workers=1, runtime__cpus_per_worker=1)
    train_trial(config, folds=None, report=lambda epoch, found, became: None)
    assert (crowd.most, crowd.trained) == (1, 4)
