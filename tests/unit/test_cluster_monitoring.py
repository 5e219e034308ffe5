"""Prometheus and Grafana: every metric that they ask for is one that is exported, every place one that is there."""

import json
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any
from unittest.mock import Mock, patch

import promql_parser as promql
import pytest
import ray
import yaml
from prometheus_client.parser import text_string_to_metric_families
from ray._private import ray_constants

from retina_ray.bundle_manifest import CONFIDENCE_BINS, Reference
from retina_ray.orchestration import run_metrics
from retina_ray.serving.drift import DriftCounts, DriftWatch
from retina_ray.serving.http import ROUTES
from retina_ray.serving.telemetry import Telemetry, merge
from tests.manifests.documents import CLUSTER, manifest, pods, read

MONITORING = CLUSTER / "monitoring"
DASHBOARD = json.loads((MONITORING / "grafana/dashboards/retina-ray.json").read_text())
PANELS = [panel for panel in DASHBOARD["panels"] if panel["type"] != "row"]
[RULES] = read((MONITORING / "prometheus/rules.yaml").read_text())
ALERTS = [rule for group in RULES["groups"] for rule in group["rules"]]
SCRAPES = {
    file.stem: read(file.read_text())[0] for file in (MONITORING / "prometheus").glob("*.yaml") if file.stem != "rules"
}

REPORTER = "dashboard/modules/reporter/reporter_agent.py"
OF_RAY = {
    "ray_serve_deployment_queued_queries": ("serve/_private/router.py", {"deployment", "application"}),
    "ray_node_gpus_utilization": (REPORTER, {"GpuIndex"}),
    "ray_node_cpu_utilization": (REPORTER, {"ip"}),
    "ray_node_mem_used": (REPORTER, {"ip"}),
    "ray_node_mem_total": (REPORTER, {"ip"}),
}
"""Metrics of Ray's own: the file below its package that defines them, without the ``ray_``, and some of the labels."""

OF_PROMETHEUS: dict[str, set[str]] = {"up": set()}
OF_TARGETS = {"job", "instance"}
"""Labels that Prometheus gives to whatever it fetches."""


@cache
def exported() -> dict[str, set[str]]:
    """Return the labels of every metric of ours, by the name that it is exported under."""
    return {**of_the_endpoint(), **of_a_training()}


def of_the_endpoint() -> dict[str, set[str]]:
    """Return the labels on the page that an endpoint answers with, by metric."""
    telemetry = Telemetry(ROUTES)
    telemetry.request("/v1/grade", 200, 0.1)
    telemetry.refused("overloaded")
    telemetry.in_flight(1)
    telemetry.graded("sall", 1, 0.1)
    telemetry.shadow_dropped("sall")
    bins = tuple([0] * (CONFIDENCE_BINS - 1) + [100])
    usual = Reference(images=100, channel_mean=(9, 9, 9), channel_std=(1, 1, 1), confidence={"dr": list(bins)})
    watch = DriftWatch("sall", usual, bundle="1")
    watch.add(DriftCounts(200, (9.0, 9.0, 9.0), {"dr": bins}, abstentions={"dr": 1}))
    found: dict[str, set[str]] = {}
    for family in text_string_to_metric_families(merge({"a": telemetry.snapshot(), "hub": watch.gauges()})):
        for sample in family.samples:
            found.setdefault(sample.name, set()).update(sample.labels)
    return found


def of_a_training() -> dict[str, set[str]]:
    """Return the labels that a training's gauges are set with, by metric as Ray exports it."""
    found: dict[str, set[str]] = {}

    class Noted(Mock):
        def __init__(self, name: str, text: str, tag_keys: tuple[str, ...]) -> None:
            super().__init__()
            self.set_default_tags = lambda tags: self.labels.update(tags)
            self.labels, self.keys, self.name = set[str](), set(tag_keys), f"ray_{name}"

        def set(self, value: float, tags: dict[str, str]) -> None:
            assert {*tags, *self.labels} == self.keys
            found.setdefault(self.name, set()).update(self.keys)

    with patch.object(run_metrics, "Gauge", Noted):
        metrics = run_metrics.RunMetrics(dict.fromkeys(run_metrics.TAGS, "x"))
    spent = {"step": 1, "epoch": 1.0, "compute_s": 1.0, "data_wait_s": 1.0, "forward_s": 1.0, "checkpoint_s": 1.0}
    told = {"images_per_second": 1.0, "data_wait_share": 0.1, "validation_criterion": 1.0, "train_loss": 1.0}
    metrics.take({"kind": "epoch", **spent, **told})
    metrics.stalled(1.0)
    return found


def expressions() -> Iterator[tuple[str, str]]:
    """Yield every expression, with where it is."""
    for panel in PANELS:
        for target in panel["targets"]:
            yield f"{panel['title']} {target['refId']}", target["expr"].replace("$run", ".*")
    for rule in ALERTS:
        yield rule["alert"], rule["expr"]


EXPRESSIONS = dict(expressions())


def selectors(node: Any, wanted: type = promql.VectorSelector) -> Iterator[Any]:
    """Yield the metrics that a parsed expression selects, or its parts of another type."""
    if isinstance(node, wanted):
        yield node
    for name in ("expr", "lhs", "rhs", "vector_selector", "args", "param"):
        inner = getattr(node, name, None)
        for each in inner if isinstance(inner, list) else [inner]:
            if each is not None and not isinstance(each, str):
                yield from selectors(each, wanted)


def problems(expression: str) -> list[str]:
    """Return what is wrong with the metrics of an expression."""
    try:
        parsed = promql.parse(expression)
    except ValueError as error:
        return [f"no PromQL: {error}"]
    known = {**exported(), **OF_PROMETHEUS, **{name: labels for name, (_, labels) in OF_RAY.items()}}
    found = list(selectors(parsed))
    asked = [(each.name, matcher.name) for each in found for matcher in each.matchers.matchers]
    for part in selectors(parsed, promql.AggregateExpr):
        kept = part.modifier.labels if part.modifier is not None else []
        asked += [(each.name, label) for each in selectors(part) for label in kept]
    told = [] if found else ["asks for nothing"]
    told += [f"nobody exports {each.name}" for each in found if each.name not in known]
    told += [
        f"{name} has no label {label}" for name, label in asked if label not in known.get(name, {label}) | OF_TARGETS
    ]
    return told


@pytest.mark.parametrize("where", EXPRESSIONS)
def test_every_metric_is_exported(where: str) -> None:
    assert not problems(EXPRESSIONS[where])


@pytest.mark.parametrize(
    ("expression", "told"),
    [
        ("rate(retina_ray_request_total[5m])", "nobody exports retina_ray_request_total"),
        ('retina_ray_requests_total{state="500"}', "has no label state"),
        ("max by (run, stadium) (rate(ray_retina_ray_step[5m]))", "has no label stadium"),
        ("max by (term) (ray_retina_ray_step)", "has no label term"),
        ("sum by (route) (ray_serve_deployment_queued_queries)", "has no label route"),
        ("histogram_quantile(0.99, sum by (le) (rate(retina_ray_request_seconds_buckets[5m])))", "nobody exports"),
        ("a / retina_ray_drift_limits", "nobody exports retina_ray_drift_limits"),
        ("sum by (run) (ray_retina_ray_steps)", "nobody exports"),
        ("sum by run (x)", "no PromQL"),
        ("1 + 1", "asks for nothing"),
    ],
)
def test_what_is_wrong_with_an_expression_is_told(expression: str, told: str) -> None:
    assert [each for each in problems(expression) if told in each]


@pytest.mark.parametrize("name", OF_RAY)
def test_rays_own_metrics_are_there(name: str) -> None:
    file, labels = OF_RAY[name]
    source = (Path(ray.__file__).parent / file).read_text()
    assert all(f'"{each}"' in source for each in (name.removeprefix("ray_"), *labels))
    assert any(name in expression for expression in EXPRESSIONS.values()), "no longer asked for"


def test_a_training_sets_all_its_metrics() -> None:
    assert of_a_training().keys() == {f"ray_{name}" for name in run_metrics.METRICS}


def test_everything_that_was_to_be_watched_is() -> None:
    asked = " ".join(EXPRESSIONS.values())
    for name in (*run_metrics.METRICS, "request_seconds_bucket", "photographs_in_flight", "drift_alarm", "drift_value"):
        assert name in asked, name
    assert "histogram_quantile(0.99" in asked


def test_the_labels_of_legends_are_those_of_the_expression() -> None:
    for panel in PANELS:
        for target in panel["targets"]:
            grouped = re.findall(r"by \(([^)]*)\)", target["expr"])
            labels = set(re.findall(r"\{\{(\w+)\}\}", target["legendFormat"]))
            if grouped:
                assert labels <= {label.strip() for label in grouped[0].split(",")}, panel["title"]
            else:
                [selector] = selectors(promql.parse(target["expr"].replace("$run", ".*")))
                assert labels <= exported()[selector.name], panel["title"]


def test_panels_lie_beside_each_other_and_know_their_source() -> None:
    taken: set[tuple[int, int]] = set()
    for panel in DASHBOARD["panels"]:
        grid = panel["gridPos"]
        cells = {
            (x, y) for x in range(grid["x"], grid["x"] + grid["w"]) for y in range(grid["y"], grid["y"] + grid["h"])
        }
        assert not cells & taken, panel["title"]
        assert max(x for x, _ in cells) < 24
        taken |= cells
    assert len({panel["id"] for panel in DASHBOARD["panels"]}) == len(DASHBOARD["panels"])
    assert all(panel["datasource"] == {"type": "prometheus", "uid": "${datasource}"} for panel in PANELS)
    variables = {each["name"] for each in DASHBOARD["templating"]["list"]}
    assert set(re.findall(r"\$\{?(\w+)", json.dumps(PANELS))) <= variables


def test_grafana_finds_the_dashboard_and_prometheus() -> None:
    readme = (CLUSTER / "README.md").read_text()
    provisioning = MONITORING / "grafana/provisioning"
    [provider] = yaml.safe_load((provisioning / "dashboards/retina-ray.yaml").read_text())["providers"]
    assert f"cluster/monitoring/grafana/dashboards:{provider['options']['path']}" in readme
    [source] = yaml.safe_load((provisioning / "datasources/prometheus.yaml").read_text())["datasources"]
    assert source["type"] == "prometheus"
    assert "cluster/monitoring/grafana/provisioning:/etc/grafana/provisioning" in readme


def test_prometheus_looks_where_ray_and_the_endpoint_are() -> None:
    box = {each["job_name"]: each for each in SCRAPES["box"]["scrape_configs"]}
    [file] = box["ray"]["file_sd_configs"][0]["files"]
    assert file == f"/tmp/ray/{ray_constants.PROMETHEUS_SERVICE_DISCOVERY_FILE}"
    kubernetes = {each["job_name"]: each for each in SCRAPES["kubernetes"]["scrape_configs"]}
    [target] = kubernetes["endpoint"]["static_configs"][0]["targets"]
    namespace = manifest("Namespace", "retina-ray")["metadata"]["name"]
    # KubeRay calls the service of a RayService after it.
    name = manifest("RayService", "retina-ray-endpoint")["metadata"]["name"]
    assert target == f"{name}-serve-svc.{namespace}:8000"
    assert kubernetes["ray"]["kubernetes_sd_configs"][0]["namespaces"] == {"names": [namespace]}
    kept = {each["source_labels"][0]: each["regex"] for each in kubernetes["ray"]["relabel_configs"] if "regex" in each}
    of_ray = [pod for pod in pods() if pod.kind in ("head", "worker")]
    for pod in of_ray:
        assert kept["__meta_kubernetes_pod_label_app"] == pod.template["metadata"]["labels"]["app"]
        assert kept["__meta_kubernetes_pod_container_port_name"] in [each["name"] for each in pod.container["ports"]]


def test_prometheus_is_let_in() -> None:
    rules = manifest("NetworkPolicy", "retina-ray")["spec"]["ingress"]
    [monitors] = [
        rule for rule in rules if any("monitoring" in str(peer.get("namespaceSelector")) for peer in rule["from"])
    ]
    assert {each["port"] for each in monitors["ports"]} == {8080, 8000}


def test_prometheus_on_aws_finds_the_clusters_machines() -> None:
    [config] = read((CLUSTER / "aws.yaml").read_text())
    [job] = SCRAPES["aws"]["scrape_configs"]
    [discovery] = job["ec2_sd_configs"]
    filters = {each["name"]: each["values"] for each in discovery["filters"]}
    assert filters["tag:ray-cluster-name"] == [config["cluster_name"]]
    assert f"--metrics-export-port={discovery['port']}" in " ".join(config["worker_start_ray_commands"])


def test_every_prometheus_reads_the_rules() -> None:
    assert SCRAPES.keys() == {"box", "aws", "kubernetes"}
    assert all(config["rule_files"] == ["/etc/prometheus/rules.yaml"] for config in SCRAPES.values())
    assert len({rule["alert"] for rule in ALERTS}) == len(ALERTS)
    for rule in ALERTS:
        labels = set(re.findall(r"\$labels\.(\w+)", rule["annotations"]["summary"]))
        grouped = re.search(r"by \(([^)]*)\)", rule["expr"])
        assert labels <= set(re.split(r",\s*", grouped[1]) if grouped else [])
