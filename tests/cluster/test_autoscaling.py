"""One replica, more of them under load, one again: nobody is refused on the way."""

import json
from collections.abc import Iterator
from pathlib import Path

import pytest

from retina_ray.bundle import Bundle
from tests.bundles import make_everything
from tests.endpoints import Endpoint, Load, endpoint_of, wait_for

MOST = 2


@pytest.fixture
def endpoint(tmp_path: Path) -> Iterator[Endpoint]:
    bundle = make_everything(tmp_path / "dataset").build(tmp_path / "bundle").store.uri
    quick = {"least": 1, "most": MOST, "target_ongoing": 1, "up_after_s": 1, "down_after_s": 3}
    arguments = {
        "models": {"grading": {"num_cpus": 0.5, "scaling": quick}},
        "http": {"num_cpus": 0.5, "scaling": quick},
    }
    deployments = [{"name": "Model-grading", "user_config": {"bundle": bundle}}]
    with endpoint_of(tmp_path, {"only": bundle}, arguments, deployments) as found:
        yield found


def running(endpoint: Endpoint) -> dict[str, int]:
    deployments = json.loads(endpoint.command("status", "--json"))["deployments"]
    return {name: deployments[name]["replicas"] for name in ("Http", "Model-grading")}


@pytest.mark.timeout(300)
def test_replicas_come_and_go_with_the_load(endpoint: Endpoint) -> None:
    only = Bundle.load(endpoint.bundles["only"]).hash
    with Load(endpoint, clients=1, pause_s=0.2) as trickle:
        trickle.answered(only)
        with Load(endpoint, clients=6) as flood:
            wait_for(lambda: set(running(endpoint).values()) == {MOST}, 100)
            flood.answered(only, 20)
        wait_for(lambda: set(running(endpoint).values()) == {1}, 100)
        trickle.answered(only, 10)
    assert not flood.failures
    assert not trickle.failures
    assert not flood.wrong
    assert not trickle.wrong
