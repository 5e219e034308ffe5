"""`retina-ray serve`: a real cluster, real HTTP, replicas that are killed, models that are replaced under load."""

import json
import os
import re
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest
import requests

from retina_ray.bundle import Bundle
from retina_ray.serving.keys import add, issue
from retina_ray.serving.rate_limit import LEASE_S
from retina_ray.serving.shadow_log import read_shadow_logs
from tests.bundles import make_everything
from tests.endpoints import Endpoint, Load, endpoint_of, wait_for
from tests.serving.test_model_host import broken
from tests.serving_photographs import photograph

STARTS_S = 120
"""A cluster and its replicas, on a busy machine."""

PER_MINUTE = 30
LIMITED = issue("limited", PER_MINUTE, ["grade"])
"""A key that may send few photographs, and what the keys file says of it."""

DECLARE = """
import sys
from serve_apps.local import find
address = find(None)
from serve_apps.control import Cluster
cluster = Cluster(address)
cluster.apply(cluster.serving().with_model("grading", sys.argv[1], previous=None))
"""
"""Puts a bundle in the model's place without the command's own check."""


@pytest.fixture(scope="module")
def endpoint(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Endpoint]:
    folder = tmp_path_factory.mktemp("endpoint")
    made = make_everything(folder / "dataset")
    bundles = {name: made.build(folder / name, name=name).store.uri for name in ("first", "second")}
    bundles["broken"] = broken(Bundle.load(bundles["first"]), folder / "broken").store.uri
    arguments = {
        "models": {"grading": {"num_cpus": 0.5}},
        "http": {"num_cpus": 0.5, "scaling": {"least": 3, "most": 3}},
        "audit": str(folder / "audit"),
        "shadow": str(folder / "shadow"),
    }
    add(folder / "keys.yaml", LIMITED[1])
    deployments = [{"name": "Model-grading", "user_config": {"bundle": bundles["first"]}}]
    with endpoint_of(folder, bundles, arguments, deployments) as found:
        yield found


@pytest.mark.timeout(STARTS_S + 60)
def test_a_photograph_is_graded(endpoint: Endpoint) -> None:
    with endpoint.client() as client:
        answer = client.grade(photograph(), explain="gradcam")
        assert set(answer.tasks) == {"dr", "amd"}
        assert answer.explanation is not None
        assert answer.model.hash == Bundle.load(endpoint.bundles["first"]).hash
        batch = client.grade_batch([photograph(), b"no image", photograph(1)])
        assert [item.problem is None for item in batch.photographs] == [True, False, True]


def test_who_has_no_key_gets_nothing(endpoint: Endpoint) -> None:
    answer = requests.post(f"{endpoint.url}/v1/grade", data=photograph(), timeout=10)
    assert answer.status_code == 401
    assert answer.headers["content-type"] == "application/problem+json"
    assert requests.get(f"{endpoint.url}/metrics", timeout=10).status_code == 401
    assert requests.get(f"{endpoint.url}/healthz", timeout=10).status_code == 200


def test_status_names_what_is_deployed(endpoint: Endpoint) -> None:
    found = json.loads(endpoint.command("status", "--json"))
    assert found["status"] == "RUNNING"
    assert found["models"]["grading"]["bundle"] == endpoint.bundles["first"]
    assert found["deployments"]["Http"]["replicas"] == 3
    assert "nothing is served as" in endpoint.command("promote", "glaucoma", "x", code=2)


def test_a_model_is_replaced_and_returned_to_under_load(endpoint: Endpoint) -> None:
    first, second = (Bundle.load(endpoint.bundles[name]).hash for name in ("first", "second"))
    pids = endpoint.replicas("Model-grading")
    with Load(endpoint) as load:
        load.answered(first)
        endpoint.command("promote", "grading", endpoint.bundles["second"])
        load.answered(second)
        with endpoint.client() as client:
            wait_for(lambda: client.models().models[0].model.hash == second)
        endpoint.command("rollback", "grading")
        load.answered(first, 10)
    assert not load.failures
    assert not load.wrong
    assert set(load.bare) == {200}, "a client that repeats nothing notices nothing"
    assert set(load.models) == {first, second}
    assert endpoint.replicas("Model-grading") == pids  # nobody was restarted


def test_a_bundle_that_fails_its_check_is_refused_here_and_by_replicas(endpoint: Endpoint) -> None:
    first = Bundle.load(endpoint.bundles["first"]).hash
    assert "not finite" in endpoint.command("promote", "grading", endpoint.bundles["broken"], code=2)
    declare = [sys.executable, "-c", DECLARE]
    subprocess.run([*declare, endpoint.bundles["broken"]], env=endpoint.environment, check=True, timeout=60)
    with endpoint.client() as client:
        wait_for(lambda: (found := client.models().models[0].rollout) and found.state == "refused")
        assert client.grade(photograph()).model.hash == first
    subprocess.run([*declare, endpoint.bundles["first"]], env=endpoint.environment, check=True, timeout=60)
    with endpoint.client() as client:
        wait_for(lambda: client.models().models[0].rollout is None)


def test_a_candidate_is_tried_on_a_share_and_on_copies(endpoint: Endpoint) -> None:
    first, second = (Bundle.load(endpoint.bundles[name]).hash for name in ("first", "second"))
    endpoint.command("try", "grading", endpoint.bundles["second"], "--canary", "50", "--shadow")
    with endpoint.client() as client:
        seen: Counter[str] = Counter()

        def both() -> bool:
            seen.update(client.grade(photograph(index)).model.hash for index in range(8))
            return {first, second} <= set(seen)

        wait_for(both)
    shadow = endpoint.folder / "shadow"
    wait_for(lambda: read_shadow_logs(shadow).records)
    compared = json.loads(endpoint.command("compare", str(shadow), "--json"))["comparisons"]
    assert list(compared[0]["pair"]) == ["grading", first, second]
    endpoint.command("try", "grading")
    assert "a candidate" not in endpoint.command("status")
    with endpoint.client() as client:
        wait_for(lambda: all(client.grade(photograph(index)).model.hash == first for index in range(8)))


def test_a_keys_limit_holds_over_three_replicas(endpoint: Endpoint) -> None:
    headers = {"Authorization": f"Bearer {LIMITED[0]}", "Content-Type": "image/jpeg"}
    begin = time.monotonic()

    def ask(number: int) -> requests.Response:  # each over a connection of its own, which HAProxy gives to any replica
        return requests.post(f"{endpoint.url}/v1/grade", data=photograph(number), headers=headers, timeout=30)

    with ThreadPoolExecutor(6) as pool:
        answers = list(pool.map(ask, range(3 * PER_MINUTE)))
    most = PER_MINUTE * (1 + (time.monotonic() - begin + LEASE_S) / 60)
    statuses = Counter(answer.status_code for answer in answers)
    assert set(statuses) == {200, 429}
    assert PER_MINUTE / 2 <= statuses[200] <= most
    assert all(float(answer.headers["retry-after"]) > 0 for answer in answers if answer.status_code == 429)
    logs = [log.read_text() for log in (endpoint.folder / "audit").glob("*.audit.jsonl")]
    assert sum('"limited"' in log for log in logs) == 3


@pytest.mark.parametrize("deployment", ["Model-grading", "Http"])
def test_replicas_are_killed_under_load(
    endpoint: Endpoint, deployment: str, record_property: Callable[[str, object], None]
) -> None:
    first = Bundle.load(endpoint.bundles["first"]).hash
    with Load(endpoint) as load:
        load.answered(first)
        victim = endpoint.replicas(deployment)[0]
        os.kill(victim, signal.SIGKILL)
        wait_for(lambda: victim not in endpoint.replicas(deployment))
        load.answered(first, 20)
    record_property("statuses without repeating", dict(load.bare))
    print(f"{deployment} killed: {sum(load.models.values())} answers, without repeating {dict(load.bare)}")
    assert not load.failures
    assert not load.wrong
    assert set(load.models) == {first}
    wait_for(lambda: json.loads(endpoint.command("status", "--json"))["status"] == "RUNNING")


def test_the_metrics_of_all_replicas_are_on_one_page(endpoint: Endpoint) -> None:
    headers = {"Authorization": f"Bearer {endpoint.key}"}

    def replicas() -> set[str]:
        text = requests.get(f"{endpoint.url}/metrics", headers=headers, timeout=10).text
        return set(re.findall(r'retina_ray_photographs_in_flight\{replica="(\w+)"', text))

    wait_for(lambda: len(replicas()) >= 3)


def test_the_audit_log_is_whole_after_all_that(endpoint: Endpoint) -> None:
    audit = endpoint.folder / "audit"
    # Of three replicas, and of the one in a killed one's place.
    wait_for(lambda: len(list(audit.glob("*.audit.jsonl"))) >= 4)
    assert json.loads(endpoint.command("audit", "verify", str(audit), "--json"))["ok"]
