"""How a cluster is shared out among workers and trials; clusters are mappings here, none is started."""

import pytest

from retina_ray.config import RunConfig, override
from retina_ray.errors import ResourceError
from retina_ray.orchestration.resources import share_out
from retina_ray.orchestration.tune_driver import SearchOptions, share_among_trials


def a_config(**changes: object) -> RunConfig:
    return override(RunConfig(name="any"), {f"runtime.{key}": value for key, value in changes.items()})


@pytest.mark.parametrize(
    ("changes", "cluster", "expected"),
    [
        ({"workers": 0}, {"CPU": 2}, (2, False, 1)),
        ({"workers": 2}, {"CPU": 16}, (8, False, 1)),
        ({"workers": 2, "cpus_per_worker": 2}, {"CPU": 16}, (2, False, 4)),
        ({"workers": 2}, {"CPU": 16, "GPU": 4}, (8, True, 1)),
        ({"workers": 2, "cpus_per_worker": 1}, {"CPU": 16, "GPU": 4}, (1, True, 2)),
        ({"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0.25}, {"CPU": 16, "GPU": 1}, (1, True, 4)),
        ({"workers": 1, "cpus_per_worker": 1, "gpus_per_worker": 0.3}, {"CPU": 16, "GPU": 1}, (1, True, 3)),
        ({"workers": 2, "use_gpu": False}, {"CPU": 4, "GPU": 8}, (2, False, 1)),
    ],
)
def test_a_worker_gets_its_share_and_groups_fit(
    changes: dict[str, object], cluster: dict[str, float], expected: tuple[int, bool, int]
) -> None:
    share = share_out(a_config(**changes).runtime, cluster)
    assert (share.cpus, share.use_gpu, share.fit(cluster)) == expected


@pytest.mark.parametrize(
    ("changes", "cluster", "message"),
    [
        ({"workers": 4}, {"CPU": 2}, "not enough CPUs: 4 workers x 1 CPUs asked for, 2 CPUs there; lower"),
        ({"workers": 2, "use_gpu": True}, {"CPU": 8, "GPU": 1}, "not enough GPUs: 2 asked for, 1 there; lower"),
    ],
)
def test_too_small_a_cluster_is_refused(changes: dict[str, object], cluster: dict[str, float], message: str) -> None:
    with pytest.raises(ResourceError, match=message):
        share_out(a_config(**changes).runtime, cluster)


@pytest.mark.parametrize(
    ("changes", "concurrent", "cluster", "expected"),
    [
        # as many as fit, each with what a single run gets
        ({"workers": 1}, None, {"CPU": 2}, (2, 1)),
        ({"workers": 1}, None, {"CPU": 32}, (8, 4)),
        # side by side they share the CPUs
        ({"workers": 1}, 2, {"CPU": 2}, (1, 2)),
        ({"workers": 2}, 2, {"CPU": 8}, (2, 2)),
        # no more than there is room for, and CPUs that were chosen stay
        ({"workers": 1}, 8, {"CPU": 2}, (1, 2)),
        ({"workers": 1, "cpus_per_worker": 2}, 4, {"CPU": 4}, (2, 2)),
        ({"workers": 1, "gpus_per_worker": 0.5}, 8, {"CPU": 16, "GPU": 1}, (2, 2)),
    ],
)
def test_trials_side_by_side(
    changes: dict[str, object], concurrent: int | None, cluster: dict[str, float], expected: tuple[int, int]
) -> None:
    options = SearchOptions("sall", trials=9, concurrent=concurrent)
    share, together = share_among_trials(a_config(**changes), options, cluster)
    assert (share.cpus, together) == expected
