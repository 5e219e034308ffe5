"""What the RayService serves: a configuration of Ray Serve's and of this application's, that fits its machines."""

from collections.abc import Mapping
from math import floor
from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve.config import AutoscalingConfig
from ray.serve.schema import ServeDeploySchema

from retina_ray.errors import ConfigError
from serve_apps.arguments import Arguments
from serve_apps.control import Serving
from serve_apps.names import APP, IMPORT_PATH
from tests.manifests.documents import manifest, quantity

SPEC: dict[str, Any] = manifest("RayService", "retina-ray-endpoint")["spec"]
CONFIG: dict[str, Any] = yaml.safe_load(SPEC["serveConfigV2"])
[GROUP] = SPEC["rayClusterConfig"]["workerGroupSpecs"]
WORKER: Mapping[str, Any] = GROUP["template"]["spec"]["containers"][0]


def test_ray_serve_takes_it() -> None:
    ServeDeploySchema.model_validate(CONFIG)
    with pytest.raises(ValueError, match="import_pth"):
        ServeDeploySchema.model_validate({"applications": [{"import_pth": IMPORT_PATH}]})


def test_every_setting_of_scaling_is_one_of_ray_serves() -> None:
    # Its schema takes whatever else stands there, and scales without it.
    deployments = CONFIG["applications"][0]["deployments"]
    scaled = [each["autoscaling_config"] for each in deployments if "autoscaling_config" in each]
    assert scaled
    assert all(each.keys() <= AutoscalingConfig.model_fields.keys() for each in scaled)


def test_the_application_takes_it_and_nothing_is_left_for_commands_to_add() -> None:
    serving = Serving(CONFIG)
    assert serving.app == APP
    assert serving.config == CONFIG, "a command that declared more would restart replicas"
    wrong = {**CONFIG, "applications": [{**CONFIG["applications"][0], "args": {"model": {}}}]}
    with pytest.raises(ConfigError):
        Serving(wrong)


def test_bundles_are_versions() -> None:
    bundles = [settings.bundle or "" for settings in Serving(CONFIG).models.values()]
    assert bundles
    assert all(bundle.startswith("models:/") and "@" not in bundle for bundle in bundles)


def test_it_listens_where_the_pods_the_policy_and_the_probe_say() -> None:
    serving = Serving(CONFIG)
    ports = {each["name"]: each["containerPort"] for each in WORKER["ports"]}
    assert (serving.host, serving.port) == ("0.0.0.0", ports["serve"])
    assert WORKER["readinessProbe"]["httpGet"]["port"] == serving.port
    rules = manifest("NetworkPolicy", "retina-ray")["spec"]["ingress"]
    assert [each for each in rules if {"protocol": "TCP", "port": serving.port} in each.get("ports", [])]


def test_requests_beyond_the_cluster_take_a_key_that_is_mounted() -> None:
    arguments = Serving(CONFIG).arguments
    mounts = {each["mountPath"]: each["name"] for each in WORKER["volumeMounts"]}
    volumes = {each["name"]: each for each in GROUP["template"]["spec"]["volumes"]}
    assert arguments.keys is not None
    keys = volumes[mounts[str(Path(arguments.keys).parent)]]["secret"]
    assert Path(arguments.keys).name == "keys.yaml"
    # ApiKeys.load refuses a file that everybody may write to; who is not the pod's group need not read it either.
    assert oct(keys["defaultMode"]) == "0o440"
    # The audit log outlives the pods.
    for folder in (arguments.audit, arguments.shadow):
        assert "persistentVolumeClaim" in volumes[mounts[str(Path(folder or "").parent)]]


def demand(arguments: Arguments, which: str) -> tuple[float, float]:
    """Return the CPUs and GPUs of all replicas, at least or at most."""
    http = arguments.http
    cpus, gpus = getattr(http.scaling, which) * http.num_cpus, 0.0
    for model in arguments.models.values():
        cpus += getattr(model.scaling, which) * model.num_cpus
        gpus += getattr(model.scaling, which) * model.num_gpus
    return cpus, gpus


@pytest.mark.parametrize(("which", "nodes"), [("least", "minReplicas"), ("most", "maxReplicas")])
def test_its_replicas_fit_the_machines(which: str, nodes: str) -> None:
    arguments, limits = Serving(CONFIG).arguments, WORKER["resources"]["limits"]
    node_cpus, node_gpus = floor(quantity(limits["cpu"])), float(limits["nvidia.com/gpu"])
    cpus, gpus = demand(arguments, which)
    assert cpus <= GROUP[nodes] * node_cpus
    assert gpus <= GROUP[nodes] * node_gpus
    # Evenly spread, a machine's share fits it, too.
    assert cpus / GROUP[nodes] <= node_cpus
    assert all(each.scaling.least >= 2 for each in (arguments.http, *arguments.models.values())), "one may go"
