"""The files below cluster/ as data, read as strictly as Kubernetes reads them, and the pods in them."""

import json
from collections.abc import Hashable, Iterator
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parents[2]
CLUSTER = ROOT / "cluster"
KUBERAY = CLUSTER / "kuberay"

Document = dict[str, Any]


class _Strict(yaml.SafeLoader):
    """Refuses a key that stands twice in a mapping, of which other readers take the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if key in seen:
                raise yaml.constructor.ConstructorError(None, None, f"duplicate key {key!r}", key_node.start_mark)
            seen.add(key)
        return super().construct_mapping(node, deep)


def read(text: str) -> list[Any]:
    """Return the documents of a YAML text.

    Raises:
        yaml.YAMLError: it is none, or a key is there twice.
    """
    return [each for each in yaml.load_all(text, Loader=_Strict) if each is not None]


@cache
def manifests() -> tuple[tuple[str, Document], ...]:
    """Return the Kubernetes manifests, each with ``FILE: KIND/NAME``."""
    found = []
    for file in sorted(KUBERAY.glob("*.yaml")):
        for document in read(file.read_text()):
            plain = json.loads(json.dumps(document))  # in which no two places share what an alias stands for
            found.append((f"{file.name}: {document['kind']}/{document['metadata']['name']}", plain))
    return tuple(found)


def manifest(kind: str, name: str) -> Document:
    """Return one of the manifests."""
    [found] = [each for _, each in manifests() if (each["kind"], each["metadata"]["name"]) == (kind, name)]
    return found


def ray_cluster_of(document: Document) -> Document | None:
    """Return the description of a Ray cluster in one of KubeRay's resources, if it is one."""
    spec = document.get("spec", {})
    places = {"RayCluster": spec, "RayJob": spec.get("rayClusterSpec"), "RayService": spec.get("rayClusterConfig")}
    return places.get(document["kind"])


@dataclass(frozen=True)
class Pod:
    """A pod that a manifest describes.

    Attributes:
        where: it is described, for messages.
        template: its metadata and spec.
        kind: ``head``, ``worker``, ``submitter``, or ``other`` where it is not Ray's.
        group: the worker group's own entry, of a worker.
    """

    where: str
    template: Document
    kind: str
    group: Document | None = None

    @property
    def spec(self) -> Document:
        """What it consists of."""
        return dict(self.template["spec"])

    @property
    def container(self) -> Document:
        """The only container that we describe."""
        [found] = self.spec["containers"]
        return dict(found)


def pods_of(where: str, document: Document) -> Iterator[Pod]:
    """Yield the pods that a manifest describes."""
    cluster = ray_cluster_of(document)
    if cluster is not None:
        yield Pod(f"{where} head", cluster["headGroupSpec"]["template"], "head")
        for group in cluster.get("workerGroupSpecs", []):
            yield Pod(f"{where} {group['groupName']}", group["template"], "worker", group)
    if document["kind"] == "RayJob" and "submitterPodTemplate" in document["spec"]:
        yield Pod(f"{where} submitter", document["spec"]["submitterPodTemplate"], "submitter")
    if document["kind"] in ("Deployment", "StatefulSet", "Job", "DaemonSet"):
        template = dict(document["spec"]["template"])
        # A StatefulSet mounts a volume of its own for each claim, under the claim's name.
        claims = [each["metadata"]["name"] for each in document["spec"].get("volumeClaimTemplates", [])]
        volumes = [{"name": name, "persistentVolumeClaim": {"claimName": name}} for name in claims]
        template["spec"] = {**template["spec"], "volumes": [*template["spec"].get("volumes", []), *volumes]}
        yield Pod(where, template, "other")


def pods() -> list[Pod]:
    """Return the pods of all manifests."""
    return [pod for where, document in manifests() for pod in pods_of(where, document)]


def quantity(text: str | int | float) -> float:
    """Return an amount as Kubernetes writes it, ``500m`` or ``28Gi``, as a number.

    Raises:
        ValueError: it is none.
    """
    factors = {"m": 1e-3, "k": 1e3, "M": 1e6, "G": 1e9, "T": 1e12}
    factors |= {"Ki": 2**10, "Mi": 2**20, "Gi": 2**30, "Ti": 2**40}
    written = str(text)
    unit = next((each for each in sorted(factors, key=len, reverse=True) if written.endswith(each)), "")
    return float(written.removesuffix(unit)) * factors.get(unit, 1)
