"""What pods are to be like beyond being valid: alike where they must be, fit for image, Ray and each other."""

import json
import re
import subprocess
import tomllib
from pathlib import Path
from typing import Any

import pytest
import ray
import yaml
from ray._private import ray_constants
from ray.dashboard.http_server_agent import PUBLIC_EXACT_PATHS

from retina_ray.config_runtime import RuntimeConfig
from tests.manifests import dockerfile, schemas
from tests.manifests.documents import CLUSTER, ROOT, Document, Pod, manifest, manifests, pods, quantity, ray_cluster_of
from tests.manifests.variables import is_read

VERSION = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["version"]
IMAGE = f"registry.example.org/retina-ray:{VERSION}"
OURS = [pod for pod in pods() if pod.kind != "other"]
OF_RAY = [pod for pod in OURS if pod.kind in ("head", "worker")]
CLUSTERS = {name: found for name, each in manifests() if (found := ray_cluster_of(each)) is not None}
AGENT = ray_constants.DEFAULT_DASHBOARD_AGENT_LISTEN_PORT


def named(pod: Pod) -> str:
    return pod.where


def every(pods: list[Pod]) -> Any:
    return pytest.mark.parametrize("pod", pods, ids=named)


@every(OURS)
def test_runs_the_image_of_this_version(pod: Pod) -> None:
    assert pod.container["image"] == IMAGE
    user, group = dockerfile.those("USER")[0].text.split(":")
    security = pod.spec["securityContext"]
    assert (security["runAsUser"], security["runAsGroup"], security["fsGroup"]) == (int(user), int(group), int(group))


@every(OURS)
def test_the_network_policy_and_the_scheduler_know_it(pod: Pod) -> None:
    assert pod.template["metadata"]["labels"]["app"] == "retina-ray"
    resources = pod.container["resources"]
    assert resources["requests"] == resources["limits"], "the last to be evicted, and nothing that was not counted"


@every([pod for pod in pods() if pod.kind != "other" or pod.where])
def test_asks_nothing_of_kubernetes(pod: Pod) -> None:
    scales = any(
        cluster.get("enableInTreeAutoscaling") and pod.where.startswith(name) for name, cluster in CLUSTERS.items()
    )
    if scales and pod.kind == "head":  # the autoscaler beside it does, with an account of the operator's making
        assert "serviceAccountName" not in pod.spec
        return
    assert pod.spec["automountServiceAccountToken"] is False
    account = manifest("ServiceAccount", pod.spec["serviceAccountName"])
    assert account["automountServiceAccountToken"] is False


@every(pods())
def test_somebody_reads_each_variable(pod: Pod) -> None:
    assert [each["name"] for each in pod.container.get("env", []) if not is_read(each["name"])] == []


@every(OURS)
def test_writes_to_volumes_alone(pod: Pod) -> None:
    container = pod.container
    assert container["securityContext"]["readOnlyRootFilesystem"] is True
    kinds = {volume["name"]: volume for volume in pod.spec["volumes"]}
    writable = {each["mountPath"] for each in container["volumeMounts"] if not each.get("readOnly")}
    assert {"/tmp", dockerfile.environment()["HOME"]} <= writable
    for mount in container["volumeMounts"]:
        secret_or_settings = {"secret", "configMap"} & set(kinds[mount["name"]])
        assert bool(secret_or_settings) == bool(mount.get("readOnly"))


@every(OURS)
def test_mounts_over_folders_that_the_image_has(pod: Pod) -> None:
    made = {word for each in dockerfile.those("RUN") if "install --directory" in each.text for word in each.words}
    of_every_image = {"/tmp", "/dev/shm", dockerfile.environment()["HOME"]}
    assert {mount["mountPath"] for mount in pod.container["volumeMounts"]} <= made | of_every_image


@every(OF_RAY)
def test_has_room_for_what_ray_and_the_cache_keep(pod: Pod) -> None:
    volumes = {volume["name"]: volume.get("emptyDir", {}) for volume in pod.spec["volumes"]}
    mounts = {each["mountPath"]: volumes[each["name"]] for each in pod.container["volumeMounts"]}
    shared = mounts["/dev/shm"]
    assert shared["medium"] == "Memory"
    group = pod.group or ray_cluster_of(manifest(*_of(pod)))["headGroupSpec"]  # type: ignore[index]
    objects = int(group["rayStartParams"]["object-store-memory"])
    assert objects < quantity(shared["sizeLimit"]) < quantity(pod.container["resources"]["limits"]["memory"]) / 2
    if pod.kind == "worker" and "Service" not in pod.where:  # which reads no data sets
        assert quantity(mounts["/home/ray"]["sizeLimit"]) > RuntimeConfig().cache_gb * 1e9
        assert RuntimeConfig().cache.startswith("~/")


def _of(pod: Pod) -> tuple[str, str]:
    kind, _, name = pod.where.split()[1].partition("/")
    return kind, name


@every(OF_RAY)
def test_has_longer_to_go_than_ray_takes(pod: Pod) -> None:
    drains = {each["name"]: each.get("value") for each in pod.container["env"]}
    assert "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S" not in drains
    seconds = float(dockerfile.environment()["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"])
    assert pod.spec["terminationGracePeriodSeconds"] >= seconds + 30


def test_the_operators_shell_hands_over_to_ray_which_so_hears_that_it_is_to_go(tmp_path: Path) -> None:
    # So KubeRay starts a container. A shell that stayed would be process 1, which ignores SIGTERM, and trainings would
    # get no notice; Ray's own process drains its node on it.
    ray_there = tmp_path / "ray"
    ray_there.write_text("#!/bin/sh\ntrap 'exit 7' TERM\necho $$\nwhile :; do sleep 0.05; done\n")
    ray_there.chmod(0o755)
    words = ["/bin/bash", "-c", "--", "ulimit -n ${RAY_START_ULIMIT_OPEN_FILES:-256}; ray start --block"]
    environment = {"PATH": f"{tmp_path}:/usr/bin:/bin"}
    with subprocess.Popen(words, env=environment, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        assert int(process.stdout.readline()) == process.pid
        process.terminate()
        assert process.wait(timeout=10) == 7


@every(OF_RAY)
def test_nobody_moves_a_head(pod: Pod) -> None:
    annotations = pod.template["metadata"].get("annotations", {})
    stays = {"cluster-autoscaler.kubernetes.io/safe-to-evict": "false", "karpenter.sh/do-not-disrupt": "true"}
    assert annotations == (stays if pod.kind == "head" else {})


@every(OF_RAY)
def test_is_asked_where_ray_answers(pod: Pod) -> None:
    container = pod.container
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        asked = container[name]["httpGet"]
        serves = name == "readinessProbe" and pod.kind == "worker" and "RayService" in pod.where
        assert (asked["port"], asked["path"]) == ((8000, "/-/healthz") if serves else (AGENT, "/api/healthz"))
    assert "/api/healthz" in PUBLIC_EXACT_PATHS, "a probe has no token"
    start, live = container["startupProbe"], container["livenessProbe"]
    assert start["failureThreshold"] * start["periodSeconds"] >= 300, "the first import of everything from a cold disk"
    # A busy node answers late: what ends it is two minutes of silence.
    assert live["failureThreshold"] * live["periodSeconds"] >= 120


@every(OF_RAY)
def test_opens_the_ports_that_others_look_for(pod: Pod) -> None:
    ports = {each["name"]: each["containerPort"] for each in pod.container["ports"]}
    expected = {"metrics": 8080}
    if pod.kind == "head":
        expected |= {"gcs-server": ray_constants.DEFAULT_PORT, "dashboard": ray_constants.DEFAULT_DASHBOARD_PORT}
    if "RayService" in pod.where:
        expected |= {"serve": 8000}
    assert ports == expected


@every([pod for pod in OF_RAY if pod.kind == "worker"])
def test_only_who_uses_gpus_gets_machines_with_gpus(pod: Pod) -> None:
    tolerated = [each["key"] for each in pod.spec.get("tolerations", [])]
    assert tolerated == (["nvidia.com/gpu"] if "nvidia.com/gpu" in pod.container["resources"]["limits"] else [])


@pytest.mark.parametrize("name", CLUSTERS)
def test_a_cluster_is_of_this_ray_closed_and_its_head_does_no_work(name: str) -> None:
    cluster = CLUSTERS[name]
    assert cluster["rayVersion"] == ray.__version__
    assert cluster["authOptions"] == {"mode": "token", "secretName": "retina-ray-token"}
    assert cluster["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"


@pytest.mark.parametrize("name", [name for name in CLUSTERS if "RayJob" not in name])
def test_a_cluster_that_stays_outlives_its_head(name: str) -> None:
    options = CLUSTERS[name]["gcsFaultToleranceOptions"]
    host, _, port = options["redisAddress"].partition(":")
    [opened] = manifest("Service", host)["spec"]["ports"]
    assert int(port) == opened["port"]
    secret = options["redisPassword"]["valueFrom"]["secretKeyRef"]
    [known] = manifest("StatefulSet", host)["spec"]["template"]["spec"]["containers"][0]["env"]
    assert known["valueFrom"]["secretKeyRef"] == secret


@pytest.mark.parametrize("name", [name for name in CLUSTERS if "RayJob" in name])
def test_a_jobs_cluster_has_its_machines_before_it_begins(name: str) -> None:
    cluster = CLUSTERS[name]
    assert not cluster.get("enableInTreeAutoscaling")
    for group in cluster["workerGroupSpecs"]:
        assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] > 0


def test_redis_lets_in_whom_it_serves() -> None:
    policy = manifest("NetworkPolicy", "retina-ray-redis")["spec"]
    labels = manifest("StatefulSet", "retina-ray-redis")["spec"]["template"]["metadata"]["labels"]
    assert policy["podSelector"]["matchLabels"] == manifest("Service", "retina-ray-redis")["spec"]["selector"] == labels
    assert policy["ingress"] == [
        {
            "from": [{"podSelector": {"matchLabels": {"app": "retina-ray"}}}],
            "ports": [{"protocol": "TCP", "port": ray_constants.DEFAULT_PORT}],
        }
    ]


def test_an_endpoint_pod_stays_when_machines_are_emptied_and_no_other_pod_is_held() -> None:
    budget = manifest("PodDisruptionBudget", "retina-ray-serve")["spec"]
    # A share, or maxUnavailable, takes an owner with the subresource `scale`; without one nothing is ever evicted.
    [versions] = [
        yaml.load(file.read_bytes(), Loader=yaml.CSafeLoader)["spec"]["versions"]
        for file in schemas.CRDS.glob("*rayclusters.yaml")
    ]
    assert not any("scale" in version.get("subresources", {}) for version in versions)
    assert "maxUnavailable" not in budget
    [group] = CLUSTERS["rayservice.yaml: RayService/retina-ray-endpoint"]["workerGroupSpecs"]
    assert 0 < budget["minAvailable"] < group["minReplicas"], "or nothing can go"
    wanted = budget["selector"]["matchLabels"]
    types = {"head": "head", "worker": "worker"}

    def labels(pod: Pod) -> Document:
        return {**pod.template["metadata"]["labels"], "ray.io/node-type": types.get(pod.kind, "")}

    assert [pod.where for pod in pods() if wanted.items() <= labels(pod).items()] == [
        "rayservice.yaml: RayService/retina-ray-endpoint gpu"
    ]


def test_no_two_resources_make_services_of_one_name() -> None:
    names = [
        each["metadata"]["name"] for _, each in manifests() if each["kind"] in ("RayCluster", "RayJob", "RayService")
    ]
    made = [f"{name}-head-svc" for name in names]
    made += [each["metadata"]["name"] for _, each in manifests() if each["kind"] == "Service"]
    assert len(made) == len(set(made))


def test_every_account_claim_and_secret_of_a_pod_is_made_by_a_manifest_or_by_the_readme() -> None:
    readme = (CLUSTER / "README.md").read_text()
    keys: dict[str, set[str]] = {}
    for name, arguments in re.findall(r"kubectl create secret generic (\S+)((?: *\\?\n? +--from-\S+)+)", readme):
        keys[name] = set(re.findall(r"--from-(?:literal|file)=\"?([\w.]+)", arguments))
    for where, document in manifests():
        text = json.dumps(document)
        for name, key in re.findall(r'"secretKeyRef": \{"name": "([^"]+)", "key": "([^"]+)"', text):
            assert key in keys[name], f"{where}: {key} of {name}"
        for name in re.findall(r'"secretName": "([^"]+)"', text):
            assert name in keys, f"{where}: {name}"
        for name in re.findall(r'"claimName": "([^"]+)"', text):
            assert manifest("PersistentVolumeClaim", name)
        for name in re.findall(r'"configMap": \{"name": "([^"]+)"', text):
            assert manifest("ConfigMap", name)
    assert keys["retina-ray-token"] == {"auth_token"}, "the key that KubeRay looks for"
    assert keys["retina-ray-keys"] == {"keys.yaml"}


def test_everything_is_made_in_one_namespace() -> None:
    named = {each["metadata"].get("namespace") for _, each in manifests() if each["kind"] != "Namespace"}
    namespace = manifest("Namespace", "retina-ray")["metadata"]
    assert named == {None, namespace["name"]}
    assert namespace["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"
