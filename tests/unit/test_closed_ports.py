"""The network policy and the security group open the endpoint to those who may ask, and none of Ray's ports."""

from pathlib import Path
from typing import Any

import pytest
import yaml
from ray.serve._private import constants as serve_constants

CLUSTER = Path(__file__).resolve().parents[2] / "cluster"
ENDPOINT = 8000
OPERATORS_PORTS = {8265}
MONITORS_PORTS = {8080, ENDPOINT}
RAYS_PORTS = {
    "statistics of HAProxy": serve_constants.RAY_SERVE_HAPROXY_STATS_PORT,
    "metrics of HAProxy": serve_constants.RAY_SERVE_HAPROXY_METRICS_PORT,
    "the proxy beside HAProxy": 8500,
    "a replica's own server": serve_constants.RAY_SERVE_DIRECT_INGRESS_MIN_HTTP_PORT,
    "GCS": 6379,
    "Ray Client": 10001,
    "dashboard": 8265,
    "dashboard agent": 52365,
    "metrics": 8080,
}


@pytest.fixture(scope="module")
def policy() -> dict[str, Any]:
    found: dict[str, Any] = yaml.safe_load((CLUSTER / "kuberay/network-policy.yaml").read_text())
    return found


def admitted(policy: dict[str, Any], pod: dict[str, str], namespace: dict[str, str], port: int) -> bool:
    """Tell whether a policy lets a pod in, by the rules of NetworkPolicy."""

    def fits(peer: dict[str, Any]) -> bool:
        labels = peer.get("podSelector", {}).get("matchLabels", {})
        # Without a namespace selector a peer is in the policy's own namespace.
        spaces = peer["namespaceSelector"].get("matchLabels", {}) if "namespaceSelector" in peer else {"own": "yes"}
        return labels.items() <= pod.items() and spaces.items() <= namespace.items()

    return any(
        any(fits(peer) for peer in rule["from"])
        and ("ports" not in rule or port in [each["port"] for each in rule["ports"]])
        for rule in policy["spec"]["ingress"]
    )


@pytest.mark.parametrize("name", RAYS_PORTS)
def test_who_asks_the_endpoint_reaches_nothing_else(policy: dict[str, Any], name: str) -> None:
    assert "Ingress" in policy["spec"]["policyTypes"]
    asks, elsewhere = {"retina-ray/asks": "true"}, {"kubernetes.io/metadata.name": "ingress"}
    assert admitted(policy, asks, elsewhere, ENDPOINT)
    assert not admitted(policy, {}, elsewhere, ENDPOINT)
    assert not admitted(policy, asks, elsewhere, RAYS_PORTS[name])
    assert not admitted(policy, {}, elsewhere, RAYS_PORTS[name])
    assert not admitted(policy, {"app": "retina-ray"}, elsewhere, RAYS_PORTS[name]), "of another namespace"


def test_a_clusters_pods_reach_each_other(policy: dict[str, Any]) -> None:
    assert all(admitted(policy, {"app": "retina-ray"}, {"own": "yes"}, port) for port in RAYS_PORTS.values())


def test_operator_and_monitoring_reach_what_they_need_alone(policy: dict[str, Any]) -> None:
    operator = {"app.kubernetes.io/name": "kuberay-operator"}
    monitoring = {"kubernetes.io/metadata.name": "monitoring"}
    ports = {ENDPOINT, *RAYS_PORTS.values()}
    assert {port for port in ports if admitted(policy, operator, {}, port)} == OPERATORS_PORTS
    assert {port for port in ports if admitted(policy, {}, monitoring, port)} == MONITORS_PORTS


def test_the_security_group_opens_the_endpoint_to_the_load_balancer_and_nothing_else() -> None:
    template = yaml.safe_load((CLUSTER / "aws-security-group.yaml").read_text())
    opened = template["Resources"]["Machines"]["Properties"]["SecurityGroupIngress"]
    sources = {
        (each["FromPort"], each["ToPort"]): each.get("CidrIp") or each.get("SourceSecurityGroupId") for each in opened
    }
    assert sources == {(ENDPOINT, ENDPOINT): {"Ref": "LoadBalancerGroup"}}
    # Who applies it has to say which network: nothing is open to the world by default.
    assert all("Default" not in parameter for parameter in template["Parameters"].values())
    within = template["Resources"]["EachOther"]["Properties"]
    assert within["SourceSecurityGroupId"] == within["GroupId"]
