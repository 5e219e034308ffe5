"""A search, and an endpoint under load, of which a node is lost."""

import json
from pathlib import Path

import pytest
import yaml

from retina_ray.bundle import Bundle
from retina_ray.config import to_yaml
from retina_ray.data.store import Store
from retina_ray.search.journal import read_trials
from retina_ray.serving.keys import add, issue
from serve_apps.local import free_port
from tests.bundles import make_everything
from tests.endpoints import Endpoint, Load
from tests.helpers import ONE_STAGE, tiny_config
from tests.ray_nodes import ray_nodes, running, wait_for

pytestmark = [pytest.mark.long, pytest.mark.timeout(900)]


def test_a_search_loses_no_trial(data: Path, tmp_path: Path) -> None:
    trials = 6
    changes = {**ONE_STAGE, "runtime__workers": 1, "runtime__cpus_per_worker": 1, "train__epochs": 6}
    config = tiny_config(data, tmp_path / "runs", name="search", **changes)
    store = Store(str(tmp_path / "runs" / "search"))
    with ray_nodes(head_cpus=1) as nodes:
        nodes.add()
        (nodes.folder / "search.yaml").write_text(to_yaml(config), encoding="utf-8")
        words = ["tune", "sall", "--config", "search.yaml", "--name", "search", "--address", nodes.address]
        with running(nodes, *words, "--trials", str(trials), "--scheduler", "none", "--concurrent", "2") as run:

            def ended() -> int:
                return sum(trial.ended is not None for trial in read_trials(store))

            wait_for(lambda: ended() >= 1 and bool(nodes.nodes[1].find("RayTrainWorker")), 300, "trial to end")
            before = {trial.number: trial for trial in read_trials(store) if trial.ended is not None}
            nodes.nodes.pop(1).kill()
            nodes.add()
            run.wait(seconds=500)
    after = {trial.number: trial for trial in read_trials(store)}
    assert len(after) == trials
    assert all(trial.state == "complete" for trial in after.values())
    assert {number: after[number] for number in before} == before, "what had ended is as it was"


def test_an_endpoint_goes_on_answering(tmp_path: Path) -> None:
    made = make_everything(tmp_path / "dataset")
    bundle = made.build(tmp_path / "first", name="first").store.uri
    text, key = issue("clinic", 100_000, ["grade", "metrics"])
    add(tmp_path / "keys.yaml", key)
    port = free_port()
    application = {
        "name": "retina_ray",
        "import_path": "serve_apps.app:build",
        "route_prefix": "/",
        "args": {
            "keys": str(tmp_path / "keys.yaml"),
            "models": {"grading": {"num_cpus": 1, "scaling": {"least": 2, "most": 2}}},
        },
        "deployments": [{"name": "Model-grading", "user_config": {"bundle": bundle}}],
    }
    config = {
        "proxy_location": "HeadOnly",
        "http_options": {"host": "127.0.0.1", "port": port},
        "applications": [application],
    }
    with ray_nodes(head_cpus=2) as nodes:
        lost = nodes.add()
        nodes.add()
        (nodes.folder / "serve.yaml").write_text(yaml.safe_dump(config), encoding="utf-8")
        nodes.command("serve", "deploy", "serve.yaml", "--address", nodes.dashboard)
        environment = {**nodes.environment, "RAY_API_SERVER_ADDRESS": nodes.dashboard}
        endpoint = Endpoint(
            lost.process,
            nodes.folder,
            f"http://127.0.0.1:{port}",
            text,
            environment,
            {"first": bundle},  # type: ignore[arg-type]
        )
        model = Bundle.load(bundle).hash
        with Load(endpoint) as load:
            load.answered(model)
            victims = [node for node in nodes.nodes[1:] if node.find("Model-grading")]
            assert victims, "replicas are spread over nodes"
            victims[0].kill()
            nodes.nodes.remove(victims[0])
            wait_for(lambda: nodes.living() == 2, 60, "loss that is known")
            load.answered(model, 20)

        def is_running() -> bool:
            return bool(json.loads(endpoint.command("status", "--json"))["status"] == "RUNNING")

        wait_for(is_running, 120, "replica in its place")
        print(f"{sum(load.models.values())} answers, without repeating {dict(load.bare)}")
        assert not load.failures
        assert not load.wrong
        nodes.command("serve", "down", "--address", nodes.dashboard)
