"""What KubeRay's operator says of a resource after Kubernetes has accepted it; v1.7.0, as far as we use it."""

import re
from collections.abc import Iterator
from itertools import chain

from tests.manifests.documents import Document, ray_cluster_of

_NAME = re.compile(r"[a-z]([-a-z0-9]*[a-z0-9])?")
_LONGEST_NAME = {"RayCluster": 53, "RayJob": 47, "RayService": 47}
# Alpha features, which an operator refuses unless it was started with them.
_GATED = {"networkPolicy", "tlsOptions", "historyServerOptions"}
_SET_BY_OPERATOR = {"RAY_REDIS_ADDRESS", "REDIS_PASSWORD", "REDIS_USERNAME", "RAY_enable_autoscaler_v2"}


def problems(document: Document) -> list[str]:
    """Return what the operator has against one of its resources, a sentence each."""
    cluster = ray_cluster_of(document)
    if cluster is None:
        return ["describes no cluster"]
    kinds = {"RayCluster": _of_cluster_alone, "RayJob": _of_job, "RayService": _of_service}
    return list(chain(_of_name(document), kinds[document["kind"]](document["spec"]), _of_cluster(cluster)))


def _of_name(document: Document) -> Iterator[str]:
    name, longest = document["metadata"]["name"], _LONGEST_NAME[document["kind"]]
    if len(name) > longest or not _NAME.fullmatch(name):
        yield f"{name}: the name is longer than {longest}, or no DNS label that begins with a letter"


def _of_cluster_alone(spec: Document) -> Iterator[str]:
    if spec.get("upgradeStrategy", {}).get("type", "None") not in ("None", "Recreate"):
        yield "upgradeStrategy of a RayCluster is None or Recreate"


def _of_job(spec: Document) -> Iterator[str]:
    if not spec.get("entrypoint", "").strip():
        yield "nothing to run"
    if spec.get("ttlSecondsAfterFinished") and not spec.get("shutdownAfterJobFinishes"):
        yield "ttlSecondsAfterFinished without shutdownAfterJobFinishes"
    for name in ("ttlSecondsAfterFinished", "backoffLimit"):
        if spec.get(name, 0) < 0:
            yield f"{name} is negative"
    for name in ("activeDeadlineSeconds", "preRunningDeadlineSeconds"):
        if spec.get(name, 1) <= 0:
            yield f"{name} is not positive"
    if "clusterSelector" in spec:
        yield "a job with a cluster of its own selects none"
    if spec.get("submissionMode", "K8sJobMode") != "K8sJobMode" and "submitterPodTemplate" in spec:
        yield "submitterPodTemplate is for K8sJobMode"
    if spec.get("submitterPodTemplate", {}).get("spec", {}).get("restartPolicy") not in ("Never", "OnFailure"):
        yield "the submitter's restartPolicy must be Never or OnFailure"
    if "upgradeStrategy" in spec["rayClusterSpec"]:
        yield "upgradeStrategy in the cluster of a job"


def _of_service(spec: Document) -> Iterator[str]:
    if not spec.get("serveConfigV2", "").strip():
        yield "nothing to serve"
    if spec.get("upgradeStrategy", {}).get("type", "NewCluster") not in ("NewCluster", "None"):
        yield "an upgradeStrategy that is not checked here"
    if "name" in spec["rayClusterConfig"]["headGroupSpec"].get("headService", {}).get("metadata", {}):
        yield "the head's service has a name of its own"


def _of_cluster(cluster: Document) -> Iterator[str]:
    yield from (f"{name} takes an alpha feature" for name in sorted(_GATED & set(cluster)))
    version = tuple(int(part) for part in re.findall(r"\d+", cluster.get("rayVersion", "")))
    if cluster.get("authOptions", {}).get("mode") == "token" and version < (2, 52):
        yield "token authentication takes rayVersion 2.52 or later"
    head = cluster["headGroupSpec"]["template"]["spec"]
    variables = {each["name"] for each in head["containers"][0].get("env", [])}
    yield from (f"the operator itself sets {name}" for name in sorted(variables & _SET_BY_OPERATOR))
    if cluster.get("gcsFaultToleranceOptions", {}).get("backend", "redis") != "redis":
        yield "another backend than Redis takes an alpha feature"
    groups = cluster.get("workerGroupSpecs", [])
    names = [group["groupName"] for group in groups]
    if len(set(names)) < len(names):
        yield f"two worker groups of one name: {names}"
    scales = cluster.get("enableInTreeAutoscaling", False)
    newer = cluster.get("autoscalerOptions", {}).get("version") == "v2"
    for group in groups:
        yield from (f"{group['groupName']}: {each}" for each in _of_group(group, scales=scales, newer=newer))
    policies = [head, *(group["template"]["spec"] for group in groups)]
    if scales and newer and any(each.get("restartPolicy", "Never") != "Never" for each in policies):
        yield "restartPolicy must be Never with autoscaler v2"


def _of_group(group: Document, *, scales: bool, newer: bool) -> Iterator[str]:
    least, most = group.get("minReplicas"), group.get("maxReplicas")
    if least is None or most is None:
        yield "minReplicas and maxReplicas belong together"
    elif not 0 <= least <= group.get("replicas", least) <= most:
        yield "not minReplicas <= replicas <= maxReplicas"
    if "idleTimeoutSeconds" in group and not (scales and newer):
        yield "idleTimeoutSeconds takes autoscaler v2"
    if "labels" in group.get("rayStartParams", {}):
        yield "labels belong beside rayStartParams"
