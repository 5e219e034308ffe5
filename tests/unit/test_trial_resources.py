"""How a cluster is shared out among the trials of a search, and what is said where it cannot be."""

import math
from collections.abc import Sequence

import pytest

from retina_ray.config import RunConfig, override
from retina_ray.errors import ConfigError, ResourceError
from retina_ray.orchestration.resources import Node, WorkerResources
from retina_ray.orchestration.trial_resources import share_among_trials, with_gpus


def a_config(**changes: object) -> RunConfig:
    return override(RunConfig(name="any"), {f"runtime.{key}": value for key, value in changes.items()})


def shared(
    config: RunConfig, nodes: Sequence[Node], *, concurrent: int | None = None, gpus_per_trial: float | None = None
) -> tuple[WorkerResources, int]:
    config = with_gpus(config, gpus_per_trial)
    return share_among_trials(config.runtime, nodes, concurrent=concurrent, gpus_per_trial=gpus_per_trial)


@pytest.mark.parametrize(
    ("changes", "concurrent", "nodes", "expected"),
    [
        # as many as fit, each with what a single run gets
        ({"workers": 1}, None, [{"CPU": 2}], (2, 1)),
        ({"workers": 1}, None, [{"CPU": 32}], (8, 4)),
        ({"workers": 1}, None, [{"CPU": 4}, {"CPU": 4}], (4, 2)),
        # side by side they share the CPUs
        ({"workers": 1}, 2, [{"CPU": 2}], (1, 2)),
        ({"workers": 2}, 2, [{"CPU": 8}], (2, 2)),
        ({"workers": 1}, 3, [{"CPU": 4}, {"CPU": 4}], (2, 3)),
        # no more than there is room for, and CPUs that were chosen stay
        ({"workers": 1}, 8, [{"CPU": 2}], (1, 2)),
        ({"workers": 1, "cpus_per_worker": 2}, 4, [{"CPU": 4}], (2, 2)),
        ({"workers": 1, "gpus_per_worker": 0.5}, 8, [{"CPU": 16, "GPU": 1}], (8, 2)),
    ],
)
def test_trials_side_by_side(
    changes: dict[str, object], concurrent: int | None, nodes: list[dict[str, float]], expected: tuple[int, int]
) -> None:
    share, together = shared(a_config(**changes), nodes, concurrent=concurrent)
    assert (share.cpus, together) == expected


@pytest.mark.parametrize(
    ("changes", "gpus", "concurrent", "nodes", "expected"),
    [
        # the CPUs are divided by the trials that the GPUs hold
        ({"workers": 1}, 0.5, None, [{"CPU": 8, "GPU": 1}], (4, 2)),
        ({"workers": 0}, 0.5, None, [{"CPU": 8, "GPU": 1}], (4, 2)),
        ({"workers": 1}, 1.0, None, [{"CPU": 8, "GPU": 4}], (2, 4)),
        ({"workers": 2}, 1.0, None, [{"CPU": 8, "GPU": 1}], (4, 1)),
        ({"workers": 1}, 0.5, 1, [{"CPU": 8, "GPU": 1}], (8, 1)),
        # where there are fewer CPUs, these are what counts
        ({"workers": 1}, 0.1, None, [{"CPU": 4, "GPU": 1}], (1, 4)),
        # a part is of one GPU
        ({"workers": 1, "cpus_per_worker": 1}, 0.6, None, [{"CPU": 16, "GPU": 2}], (1, 2)),
        ({"workers": 1, "cpus_per_worker": 1}, 0.4, None, [{"CPU": 32, "GPU": 8}], (1, 16)),
        ({"workers": 1}, 0.5, None, [{"CPU": 8, "GPU": 1}, {"CPU": 4, "GPU": 1}, {"CPU": 64}], (2, 4)),
    ],
)
def test_gpus_shared_by_trials(
    changes: dict[str, object],
    gpus: float,
    concurrent: int | None,
    nodes: list[dict[str, float]],
    expected: tuple[int, int],
) -> None:
    share, together = shared(a_config(**changes), nodes, concurrent=concurrent, gpus_per_trial=gpus)
    assert (share.cpus, together) == expected
    assert share.use_gpu


@pytest.mark.parametrize(
    ("gpus", "workers", "message"),
    [
        (0.0, 1, "not a number of GPUs: --gpus-per-trial 0; give more than 0, such as 0.5 or 1"),
        (-1.0, 1, "not a number of GPUs: --gpus-per-trial -1; give"),
        (math.nan, 1, "not a number of GPUs: --gpus-per-trial nan; give"),
        (math.inf, 1, "not a number of GPUs: --gpus-per-trial inf; give"),
        (
            2.0,
            1,
            "--gpus-per-trial 2 with runtime.workers=1; set runtime.workers=2, since a worker has one GPU at most",
        ),
        (1.5, 0, "--gpus-per-trial 1.5 with runtime.workers=0; set runtime.workers=2"),
    ],
)
def test_a_wrong_number_of_gpus_is_told_in_terms_of_the_option(gpus: float, workers: int, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        with_gpus(a_config(workers=workers), gpus)


@pytest.mark.parametrize(
    ("gpus", "workers", "nodes", "message"),
    [
        (0.5, 1, [{"CPU": 8}], "not enough GPUs for a trial: --gpus-per-trial 0.5, 0 there; leave it out to train on"),
        (4.0, 4, [{"CPU": 8, "GPU": 2}], "not enough GPUs for a trial: --gpus-per-trial 4, 2 there"),
        (1.2, 2, [{"CPU": 8, "GPU": 1}], "not enough GPUs for a trial: --gpus-per-trial 1.2, 1 there"),
    ],
)
def test_missing_gpus_are_told_in_terms_of_the_option(
    gpus: float, workers: int, nodes: list[dict[str, float]], message: str
) -> None:
    with pytest.raises(ResourceError, match=message):
        shared(a_config(workers=workers), nodes, gpus_per_trial=gpus)
