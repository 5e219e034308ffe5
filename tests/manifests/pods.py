"""What Kubernetes says of a pod only when it is made, after the object that describes it was accepted.

The rules of the API server that the schemas cannot say, and those of the Pod Security Standard ``restricted``.
"""

import re
from collections.abc import Iterator
from typing import Any

from tests.manifests.documents import Document, Pod, quantity

_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]{0,61}[a-z0-9])?")
_HANDLERS = {"httpGet", "exec", "tcpSocket", "grpc"}
_RESTRICTED_VOLUMES = {
    *("configMap", "csi", "downwardAPI", "emptyDir", "ephemeral", "persistentVolumeClaim", "projected", "secret")
}


def problems(pod: Pod) -> list[str]:
    """Return what Kubernetes has against a pod, a sentence each."""
    return [f"{pod.where}: {each}" for each in (*_refused(pod.spec), *_privileged(pod.spec))]


def _refused(spec: Document) -> Iterator[str]:
    """Yield what the API server refuses."""
    volumes = [volume["name"] for volume in spec.get("volumes", [])]
    yield from (f"volume {name} is there twice" for name in _twice(volumes))
    for volume in spec.get("volumes", []):
        if len(volume) != 2:
            yield f"volume {volume['name']} is of {len(volume) - 1} kinds"
    names = [container["name"] for container in (*spec.get("initContainers", []), *spec["containers"])]
    yield from (f"container {name} is there twice" for name in _twice(names))
    yield from (f"{name} is no name for a container" for name in names if not _LABEL.fullmatch(name))
    for container in (*spec.get("initContainers", []), *spec["containers"]):
        yield from (f"{container['name']}: {each}" for each in _of_container(container, set(volumes)))


def _of_container(container: Document, volumes: set[str]) -> Iterator[str]:
    if not container.get("image"):
        yield "no image"
    mounts = container.get("volumeMounts", [])
    yield from (f"volume {mount['name']} is not there" for mount in mounts if mount["name"] not in volumes)
    yield from (f"two volumes at {path}" for path in _twice([mount["mountPath"] for mount in mounts]))
    variables = container.get("env", [])
    yield from (f"variable {name} is there twice" for name in _twice([each["name"] for each in variables]))
    yield from (f"variable {each['name']} has two values" for each in variables if {"value", "valueFrom"} <= set(each))
    ports = container.get("ports", [])
    yield from (f"port {port} is there twice" for port in _twice([each["containerPort"] for each in ports]))
    yield from (f"port name {each['name']} is longer than 15" for each in ports if len(each.get("name", "")) > 15)
    for name in ("startupProbe", "livenessProbe", "readinessProbe"):
        probe = container.get(name, {})
        if probe and len(_HANDLERS & set(probe)) != 1:
            yield f"{name} asks in no or several ways"
        if name != "readinessProbe" and probe.get("successThreshold", 1) != 1:
            yield f"{name} must succeed once"
    yield from _of_resources(container.get("resources", {}))


def _of_resources(resources: Document) -> Iterator[str]:
    limits, requests = resources.get("limits", {}), resources.get("requests", {})
    for kind in {**limits, **requests}:
        try:
            limit, request = (quantity(each[kind]) if kind in each else None for each in (limits, requests))
        except ValueError:
            yield f"{kind} is no amount"
            continue
        if limit is not None and request is not None and request > limit:
            yield f"{kind}: more is requested than the limit"
        if "/" in kind and (limit is None or request not in (None, limit)):
            yield f"{kind}: limit and request must be the same"


def _privileged(spec: Document) -> Iterator[str]:
    """Yield what the standard ``restricted`` refuses."""
    yield from (f"{name} of the host" for name in ("hostNetwork", "hostPID", "hostIPC") if spec.get(name))
    for volume in spec.get("volumes", []):
        kinds = set(volume) - {"name"}
        if not kinds <= _RESTRICTED_VOLUMES:
            yield f"volume {volume['name']} of kind {kinds}"
    of_pod = spec.get("securityContext", {})
    for container in (*spec.get("initContainers", []), *spec["containers"]):
        own = container.get("securityContext", {})
        both = {**of_pod, **own}
        refused = {
            "may run as root": both.get("runAsNonRoot") is not True or both.get("runAsUser") == 0,
            "may gain privileges": own.get("allowPrivilegeEscalation") is not False or own.get("privileged"),
            "keeps capabilities": own.get("capabilities", {}).get("drop") != ["ALL"] or "add" in own["capabilities"],
            "may make any system call": both.get("seccompProfile", {}).get("type") != "RuntimeDefault",
        }
        yield from (f"{container['name']} {what}" for what, is_so in refused.items() if is_so)


def _twice(values: list[Any]) -> list[Any]:
    return sorted({each for each in values if values.count(each) > 1})
