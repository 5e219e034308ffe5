"""The Kubernetes manifests: taken by a strict API server and by KubeRay's operator; these checks would tell."""

import copy
import re
import tomllib
from collections.abc import Callable
from typing import Any

import kubernetes_validate
import pytest
import yaml

from tests.manifests import dockerfile, kuberay_rules, pods, schemas
from tests.manifests.documents import CLUSTER, ROOT, Document, Pod, manifest, manifests, pods_of, ray_cluster_of, read

KUBERNETES = kubernetes_validate.latest_version()
OF_KUBERAY = {name: each for name, each in manifests() if each["apiVersion"].startswith("ray.io/")}
BUILT_IN = {name: each for name, each in manifests() if name not in OF_KUBERAY}


def problems(document: Document) -> list[str]:
    """Return what anybody has against a custom resource."""
    found = schemas.problems(document)
    if not found:  # the other rules presume the right types
        found = kuberay_rules.problems(document)
        found += [each for pod in pods_of("here", document) for each in pods.problems(pod)]
    return found


@pytest.mark.parametrize("name", OF_KUBERAY)
def test_kuberay_takes(name: str) -> None:
    assert not problems(OF_KUBERAY[name])


@pytest.mark.parametrize("name", BUILT_IN)
def test_kubernetes_takes(name: str) -> None:
    kubernetes_validate.validate(BUILT_IN[name], KUBERNETES, strict=True)
    assert not [each for pod in pods_of(name, BUILT_IN[name]) for each in pods.problems(pod)]


def test_every_kind_that_is_asked_for_is_there() -> None:
    assert set(OF_KUBERAY) == {
        "raycluster.yaml: RayCluster/retina-ray",
        "rayjob-train.yaml: RayJob/retina-ray-train",
        "rayjob-tune.yaml: RayJob/retina-ray-tune",
        "rayservice.yaml: RayService/retina-ray-endpoint",
    }


def worker(document: Document) -> Document:
    found: Document = document["spec"]["rayClusterConfig"]["workerGroupSpecs"][0]
    return found


def container(document: Document) -> Document:
    found: Document = worker(document)["template"]["spec"]["containers"][0]
    return found


def rename(found: dict[str, Any], key: str, to: str) -> None:
    found[to] = found.pop(key)


BREAKS: dict[str, tuple[Callable[[Document], Any], str]] = {
    "a key that nobody knows": (lambda d: rename(worker(d), "minReplicas", "minReplica"), "unknown key minReplica"),
    "one in a container": (lambda d: rename(container(d), "volumeMounts", "volumeMount"), "unknown key volumeMount"),
    "one of ours in the metadata": (lambda d: d["metadata"].update(owner="us"), "unknown key owner"),
    "a number as text": (lambda d: worker(d).update(replicas="2"), "is not of type 'integer'"),
    "a text as number": (lambda d: worker(d)["rayStartParams"].update({"num-cpus": 4}), "is not of type 'string'"),
    "another value than those there are": (
        lambda d: d["spec"]["rayClusterConfig"]["authOptions"].update(mode="tokens"),
        "is not one of",
    ),
    "no template": (lambda d: worker(d).pop("template"), "'template' is a required property"),
    "a null": (lambda d: container(d).update(env=None), "is not of type 'array'"),
    "a port twice": (lambda d: container(d)["ports"].append(container(d)["ports"][0]), "is there twice"),
    "a group twice": (
        lambda d: ray_cluster_of(d)["workerGroupSpecs"].append(worker(d)),  # type: ignore[index]
        "two worker groups",
    ),
    "more at least than at most": (lambda d: worker(d).update(minReplicas=9), "not minReplicas <="),
    "a bound without autoscaler v2": (
        lambda d: d["spec"]["rayClusterConfig"].update(enableInTreeAutoscaling=False),
        "takes autoscaler v2",
    ),
    "a variable of the operator's": (
        lambda d: d["spec"]["rayClusterConfig"]["headGroupSpec"]["template"]["spec"]["containers"][0]["env"].append(
            {"name": "RAY_REDIS_ADDRESS", "value": "redis:6379"}
        ),
        "the operator itself sets",
    ),
    "a token for a Ray without": (lambda d: d["spec"]["rayClusterConfig"].update(rayVersion="2.40.0"), "2.52 or later"),
    "an alpha feature": (lambda d: d["spec"]["rayClusterConfig"].update(tlsOptions={}), "alpha feature"),
    "a long name": (lambda d: d["metadata"].update(name="r" * 48), "longer than 47"),
    "a name with a capital": (lambda d: d["metadata"].update(name="Retina"), "no DNS label"),
    "nothing to serve": (lambda d: d["spec"].update(serveConfigV2=" "), "nothing to serve"),
    "a mount without a volume": (
        lambda d: container(d)["volumeMounts"].append({"name": "nope", "mountPath": "/x"}),
        "volume nope is not there",
    ),
    "two volumes at one path": (
        lambda d: container(d)["volumeMounts"].append({"name": "home", "mountPath": "/tmp"}),
        "{'mountPath': '/tmp'} is there twice",
    ),
    "more requested than allowed": (
        lambda d: container(d).update(resources={"requests": {"cpu": "8"}, "limits": {"cpu": "7500m"}}),
        "more is requested than the limit",
    ),
    "a GPU requested alone": (
        lambda d: container(d).update(resources={"requests": {"nvidia.com/gpu": 1}}),
        "must be the same",
    ),
    "no such amount": (lambda d: container(d)["resources"]["limits"].update(memory="28Gib"), "does not match"),
    "root": (lambda d: container(d)["securityContext"].update(runAsUser=0), "may run as root"),
    "a capability": (lambda d: container(d)["securityContext"].pop("capabilities"), "keeps capabilities"),
    "a folder of the host": (
        lambda d: worker(d)["template"]["spec"]["volumes"].append({"name": "host", "hostPath": {"path": "/"}}),
        "volume host of kind",
    ),
    "two ways to ask": (
        lambda d: container(d)["livenessProbe"].update(exec={"command": ["true"]}),
        "asks in no or several ways",
    ),
}


@pytest.mark.parametrize("name", BREAKS)
def test_what_is_wrong_is_told(name: str) -> None:
    document = copy.deepcopy(manifest("RayService", "retina-ray-endpoint"))
    make, told = BREAKS[name]
    make(document)
    assert [each for each in problems(document) if told in each], problems(document)


@pytest.mark.parametrize(
    ("change", "told"),
    [
        ({"shutdownAfterJobFinishes": False}, "without shutdownAfterJobFinishes"),
        ({"backoffLimit": -1}, "backoffLimit is negative"),
        ({"submissionMode": "HTTPMode"}, "is for K8sJobMode"),
        ({"entrypoint": ""}, "nothing to run"),
    ],
)
def test_what_is_wrong_with_a_job_is_told(change: Document, told: str) -> None:
    document = copy.deepcopy(manifest("RayJob", "retina-ray-train"))
    document["spec"].update(change)
    assert [each for each in problems(document) if told in each], problems(document)


# Mappings whose keys are the user's own.
FREE = {"labels", "matchLabels", "rayStartParams", "requests", "limits", "configMap", "annotations"}


def places(found: Any, path: tuple[Any, ...] = ()) -> list[tuple[Any, ...]]:
    """Return the way to every key and value of a document."""
    pairs = found.items() if isinstance(found, dict) else enumerate(found) if isinstance(found, list) else ()
    return [each for key, value in pairs for each in ((*path, key), *places(value, (*path, key)))]


def at(document: Document, path: tuple[Any, ...]) -> Any:
    found: Any = document
    for key in path:
        found = found[key]
    return found


def test_no_renamed_key_and_no_wrong_type_gets_past_the_schema() -> None:
    original = manifest("RayService", "retina-ray-endpoint")
    passed = []
    seen = set()
    for path in places(original):
        # One of several alike is enough: the schema of a list's entries is one.
        alike = tuple("[]" if isinstance(key, int) else key for key in path)
        if alike in seen or not isinstance(path[-1], str) or path[0] in ("apiVersion", "kind"):
            continue
        seen.add(alike)
        if not FREE & set(path[:-1]):
            renamed = copy.deepcopy(original)
            rename(at(renamed, path[:-1]), path[-1], f"{path[-1]}X")
            passed += [("renamed", path)] if not schemas.problems(renamed) else []
        retyped = copy.deepcopy(original)
        at(retyped, path[:-1])[path[-1]] = [["wrong"]]
        passed += [("retyped", path)] if not schemas.problems(retyped) else []
    assert len(seen) > 150
    assert not passed


def test_the_schemas_are_those_of_the_operator_that_is_installed_and_come_with_their_licence() -> None:
    about = (schemas.CRDS / "ATTRIBUTION.md").read_text()
    [version] = re.findall(r"KubeRay v([\d.]+) ", about)
    assert f"kuberay/kuberay-operator --version {version}\n" in (CLUSTER / "README.md").read_text()
    licence = (schemas.CRDS / "LICENSE").read_text()
    assert "Apache License" in licence
    assert licence.rstrip().endswith("limitations under the License.")
    # Neither the package nor the image has them.
    assert not [each for each in dockerfile.those("COPY") if "tests" in each.text]
    assert "tests" not in str(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"])


def test_a_key_that_stands_there_twice_is_told() -> None:
    with pytest.raises(yaml.YAMLError, match="duplicate key 'b'"):
        read("a: {b: 1, b: 2}")


def test_a_manifest_of_no_known_kind_is_told() -> None:
    assert schemas.problems({"apiVersion": "ray.io/v2", "kind": "RayCluster"}) == [
        "no such kind: ('ray.io/v2', 'RayCluster')"
    ]


@pytest.mark.parametrize("change", [{"replica": 1}, {"replicas": "1"}], ids=["unknown key", "wrong type"])
def test_what_is_wrong_with_a_built_in_kind_is_told(change: Document) -> None:
    document = copy.deepcopy(manifest("StatefulSet", "retina-ray-redis"))
    document["spec"].update(change)
    with pytest.raises(kubernetes_validate.ValidationError, match="replica"):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_a_version_that_kubernetes_never_had_is_told() -> None:
    document = {**manifest("StatefulSet", "retina-ray-redis"), "apiVersion": "apps/v9"}
    with pytest.raises(kubernetes_validate.SchemaNotFoundError):
        kubernetes_validate.validate(document, KUBERNETES, strict=True)


def test_pods_of_a_statefulset_have_the_volumes_that_it_claims() -> None:
    [pod] = pods_of("redis", manifest("StatefulSet", "retina-ray-redis"))
    assert isinstance(pod, Pod)
    assert {volume["name"] for volume in pod.spec["volumes"]} == {"data"}
