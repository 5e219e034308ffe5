"""A search whose driver, trial or worker is killed, again and again, ends as one that was not.

Each life of a search is a process of its own with a Ray of its own; what it leaves on disk is all the next one knows.
"""

import os
import random
import signal
import time
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import pytest

from retina_ray.config import RunConfig, from_mapping
from retina_ray.data.store import Store
from retina_ray.search.journal import TrialRecord, events, read_trials
from tests.helpers import tiny_config, warm_processes
from tests.killing import MARK, family, ray_folders_of, remove, send

TRIALS = 4
LIFE_TIMEOUT_S = 600

Target = Literal["driver", "trial", "worker"]

TITLES = {"trial": b"ray::ImplicitFunc", "worker": b"ray::RayTrainWorker"}
"""How Ray names the processes in which trials run, and the workers of those that have some."""


def search_life(config: dict[str, Any], trials: int, mark: str) -> None:
    """Run or go on running a search until its end; runs in a process of its own."""
    os.setsid()
    os.environ.update({MARK: mark, "OMP_NUM_THREADS": "1"})
    os.environ.pop("RAY_AUTH_MODE", None)  # the product's own choice
    from retina_ray.orchestration.tune_driver import SearchOptions, run_search

    run_search(from_mapping(config), SearchOptions("sall", trials=trials, concurrent=1), resume=True)


@dataclass
class Kill:
    """A point at which something is killed.

    Attributes:
        target: the driver alone, whose Ray must then end by itself, the process of the running trial, or its workers.
        after: number of events that the search has had in this life.
        delay_s: seconds after that.
    """

    target: Target
    after: int
    delay_s: float = 0.0


def journal(config: RunConfig) -> list[TrialRecord]:
    return read_trials(Store(f"{config.runtime.storage}/{config.name}"))


def processes_of(target: Target, mark: str) -> set[int]:
    """Return the processes in which Ray runs trials or their workers."""
    found = set()
    for process in family(mark):
        with suppress(OSError):
            if Path(f"/proc/{process}/cmdline").read_bytes().startswith(TITLES[target]):
                found.add(process)
    return found


def live(config: RunConfig, kill: Kill | None, *, trials: int = TRIALS) -> bool:
    """Run one life of a search, to its end or until its driver is killed; return whether something was killed."""
    mark = f"{config.runtime.storage}-{time.monotonic_ns()}"
    process = warm_processes().Process(target=search_life, args=(config.model_dump(mode="json"), trials, mark))
    before = len(events(journal(config)))
    process.start()
    assert process.pid is not None
    deadline = time.monotonic() + LIFE_TIMEOUT_S
    folders: set[str] = set()
    killed = False
    while process.is_alive() and time.monotonic() < deadline:
        process.join(0.02)
        if kill is None or killed or len(events(journal(config))) < before + kill.after:
            continue
        process.join(kill.delay_s)
        folders = {folder for member in family(mark) for folder in ray_folders_of(member)}
        targets = {process.pid} if kill.target == "driver" else processes_of(kill.target, mark)
        send(targets, signal.SIGKILL)
        killed = bool(targets)
    assert time.monotonic() < deadline, "the search neither ended nor reached the point"
    assert process.exitcode == (-signal.SIGKILL if killed and kill and kill.target == "driver" else 0)
    for _ in range(600):  # nothing keeps running: whoever is left has its end in hand
        if not family(mark):
            break
        time.sleep(0.1)
    assert family(mark) == set()
    for folder in folders:
        remove(folder)
    return killed


def outcome(config: RunConfig) -> list[Any]:
    """Return everything of the trials that a kill must not change."""
    return [
        (
            record.number,
            record.params,
            record.state,
            [(report.epoch, report.figures, report.stopped) for report in record.reports],
        )
        for record in journal(config)
    ]


def a_config(data: Path, storage: Path, **changes: Any) -> RunConfig:
    return tiny_config(
        data,
        storage,
        **changes,
        name="search",
        train__epochs=3,
        runtime__cpus_per_worker=1,
        runtime__checkpoint__every_steps=2,
        runtime__log_every=1,
    )


@pytest.fixture(scope="module")
def whole(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Any]:
    config = a_config(data, tmp_path_factory.mktemp("whole"))
    live(config, None)
    return outcome(config)


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_driver_and_a_killed_trial_lose_nothing(whole: list[Any], data: Path, tmp_path: Path) -> None:
    config = a_config(data, tmp_path)
    assert live(config, Kill("driver", after=3))
    assert journal(config)
    assert live(config, Kill("trial", after=2))
    assert outcome(config) == whole
    assert len(whole) == TRIALS


@pytest.mark.long
@pytest.mark.timeout(900)
def test_a_killed_worker_is_replaced_within_its_trial(whole: list[Any], data: Path, tmp_path: Path) -> None:
    config = a_config(data, tmp_path, runtime__workers=1)
    assert live(config, Kill("worker", after=2), trials=2)
    assert outcome(config) == whole[:2]


@pytest.mark.long
@pytest.mark.timeout(7200)
def test_killed_at_twenty_random_points(data: Path, tmp_path: Path) -> None:
    draw = random.Random(13)
    trials = 16
    reference = a_config(data, tmp_path / "whole")
    live(reference, None, trials=trials)
    config = a_config(data, tmp_path / "killed")
    kills = 0
    known: dict[int, Any] = {}
    rounds = 0
    while kills < 20:
        target: Target = draw.choice(["driver", "trial"])
        kills += live(config, Kill(target, draw.randint(1, 5), draw.uniform(0, 0.4)), trials=trials)
        finished = {record.number: record for record in journal(config) if record.state != "running"}
        assert known.items() <= finished.items(), "what was finished stays as it was"
        known = finished
        if len(finished) == trials:  # begin another, until there were twenty kills
            assert outcome(config) == outcome(reference)
            rounds += 1
            config = a_config(data, tmp_path / f"killed-{rounds}")
            known = {}
    live(config, None, trials=trials)
    assert outcome(config) == outcome(reference)
    print(f"{kills} kills, {rounds + 1} searches of {trials} trials: 0 lost, 0 duplicated")


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_at_random_points_while_workers_train(data: Path, tmp_path: Path) -> None:
    draw = random.Random(5)
    changes = {"runtime__workers": 1}
    reference = a_config(data, tmp_path / "whole", **changes)
    live(reference, None, trials=3)
    config = a_config(data, tmp_path / "killed", **changes)
    kills = dict.fromkeys(("driver", "trial", "worker"), 0)
    for target in ("worker", "driver", "trial", "worker", "driver"):
        kills[target] += live(config, Kill(target, draw.randint(1, 2), draw.uniform(0, 2.0)), trials=3)
    live(config, None, trials=3)
    assert outcome(config) == outcome(reference)
    assert sum(kills.values()) >= 3
    print(f"{kills}: 0 trials lost, 0 duplicated")
