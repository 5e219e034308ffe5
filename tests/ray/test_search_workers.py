"""A search whose trials train on Ray workers of their own, which take all the CPUs there are."""

import os
from pathlib import Path
from typing import Any

import optuna
import pytest

from retina_ray.config import from_mapping
from retina_ray.data.store import Store
from retina_ray.search.journal import read_trials
from tests.helpers import ONE_STAGE, tiny_config, warm_processes, write_dataset

CPUS = len(os.sched_getaffinity(0))
POINTS = ({"optim.lr": 1e-9}, {"optim.lr": 0.5}, {"optim.lr": 1e-8}, {"optim.lr": 1e-9})
"""The second is hopeless from its first epoch on, the last one is the first once more."""


def rates(trial: optuna.Trial) -> dict[str, Any]:
    return {"optim.lr": trial.suggest_float("optim.lr", 1e-10, 1.0, log=True)}


def search(config: dict[str, Any]) -> None:
    """Run the search on a Ray of its own; in a process of its own."""
    os.environ.pop("RAY_AUTH_MODE", None)  # the product's own choice
    from retina_ray.orchestration.tune_driver import SearchOptions, run_search

    space = f"{__name__}:rates"
    options = SearchOptions(space, trials=len(POINTS), metric="criterion", points=POINTS, concurrent=1)
    run_search(from_mapping(config), options)


@pytest.mark.long
@pytest.mark.timeout(600)
@pytest.mark.usefixtures("ray_cluster")  # a second one on the machine, which must not be asked after the trial
def test_a_stopped_trial_leaves_its_workers_cpus_to_the_next(tmp_path: Path) -> None:
    write_dataset(tmp_path / "data")
    config = tiny_config(
        tmp_path / "data",
        tmp_path / "runs",
        name="search",
        train__epochs=2,
        train__global_batch_size=4 * CPUS,
        runtime__workers=CPUS,
        runtime__cpus_per_worker=1,
        **ONE_STAGE,
    )
    process = warm_processes().Process(target=search, args=(config.model_dump(mode="json"),))
    process.start()
    process.join(500)
    alive = process.is_alive()
    process.kill()
    assert not alive, "a trial waits for CPUs that nobody frees"
    assert process.exitcode == 0
    trials = read_trials(Store(f"{tmp_path}/runs/search"))
    assert [record.state for record in trials] == ["complete", "stopped", "complete", "complete"]
    assert [len(record.reports) for record in trials] == [2, 1, 2, 2]
    assert [record.stages for record in trials] == [{"student-dr": "trained"}] * 3 + [{"student-dr": "reused"}]
    assert trials[0].reports[-1].figures == trials[3].reports[-1].figures
