"""What processes report comes together: metrics by replica, drift over all, who runs what, heads of audit logs."""

from dataclasses import replace
from pathlib import Path

import pytest
from prometheus_client.parser import text_string_to_metric_families

from retina_ray.bundle import Bundle
from retina_ray.serving.audit import AuditEntry, AuditLog, HeadsLog
from retina_ray.serving.drift import DriftCounts
from retina_ray.serving.hub import Hub, Report
from retina_ray.serving.keys import ApiKey, ApiKeys
from retina_ray.serving.telemetry import Telemetry
from tests.bundles import make_everything
from tests.serving_links import host_of

pytestmark = pytest.mark.serving


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return make_everything(tmp_path_factory.mktemp("dataset")).build(tmp_path_factory.mktemp("bundle"))


def value(text: str, name: str, **labels: str) -> float | None:
    for family in text_string_to_metric_families(text):
        for sample in family.samples:
            if sample.name == name and labels.items() <= sample.labels.items():
                return float(sample.value)
    return None


def test_metrics_are_told_apart_by_replica_and_those_of_the_gone_are_dropped() -> None:
    clock = Clock()
    hub = Hub(None, None, clock)
    for replica, times in (("one", 1), ("two", 2)):
        telemetry = Telemetry(["/v1/grade"])
        for _ in range(times):
            telemetry.request("/v1/grade", 200, 0.1)
        hub.report(Report(replica, metrics=telemetry.snapshot()))
    text = hub.metrics()
    assert value(text, "retina_ray_requests_total", replica="one", status="200") == 1
    assert value(text, "retina_ray_requests_total", replica="two", status="200") == 2
    clock.now = 5.0
    hub.report(Report("two", metrics=telemetry.snapshot()))
    clock.now = 11.0
    assert value(hub.metrics(), "retina_ray_requests_total", replica="one") is None
    assert value(hub.metrics(), "retina_ray_requests_total", replica="two") == 2


def test_drift_is_watched_over_all_replicas_and_anew_for_another_model(bundle: Bundle) -> None:
    hub = Hub(None, None)
    state = host_of(bundle).state
    hub.report(Report("model", served_as="grading", host=state))
    counts = DriftCounts(images=150, channel_sum=(150.0, 150.0, 150.0))
    for replica in ("one", "two"):
        hub.report(Report(replica, drift={("grading", bundle.hash): counts}))
    assert value(hub.metrics(), "retina_ray_drift_photographs", model="grading") == 300
    assert value(hub.metrics(), "retina_ray_drift_alarm", model="grading") == 0  # 12 reference images say too little
    assert state.description is not None
    version = state.description.model.model_copy(update={"hash": "another"})
    other = replace(state, description=state.description.model_copy(update={"model": version}))
    hub.report(Report("model", served_as="grading", host=other))
    assert value(hub.metrics(), "retina_ray_drift_photographs", model="grading") == 0


def test_replicas_of_a_model_are_those_that_still_report(bundle: Bundle) -> None:
    clock = Clock()
    hub = Hub(None, None, clock)
    state = host_of(bundle).state
    for replica in ("one", "two"):
        hub.report(Report(replica, served_as="grading", host=state))
    hub.report(Report("three", served_as="other", host=state))
    assert len(hub.hosts("grading")) == 2
    clock.now = 11.0
    hub.report(Report("two", served_as="grading", host=state))
    assert len(hub.hosts("grading")) == 1


def test_leases_follow_the_keys() -> None:
    hub = Hub(ApiKeys([ApiKey(id="clinic", sha256="0" * 64, per_minute=5)]), None)
    assert hub.lease("clinic", 5).granted == 5
    assert hub.lease("clinic", 1).granted == 0
    assert hub.lease("stranger", 1).granted == 0


def test_heads_of_audit_logs_are_noted(tmp_path: Path) -> None:
    log = AuditLog(tmp_path, "one")
    log.append(AuditEntry("r", "clinic", None, None, {"refused": "overloaded"}))
    hub = Hub(None, HeadsLog(tmp_path))
    hub.report(Report("one", audit=log.head()))
    [heads] = tmp_path.glob("*.heads.jsonl")
    assert log.head().hash in heads.read_text()


def test_a_heads_log_that_cannot_be_written_costs_nothing_else(
    bundle: Bundle, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    log = AuditLog(tmp_path, "one")
    heads = HeadsLog(tmp_path)
    heads.close()  # as on a full disk, every write fails
    hub = Hub(None, heads)
    state = host_of(bundle).state
    counts = DriftCounts(images=1, channel_sum=(1.0, 1.0, 1.0))
    for times in range(1, 4):
        log.append(AuditEntry("r", "clinic", None, None, {"refused": "overloaded"}))
        drift = {("grading", bundle.hash): counts}
        hub.report(Report("one", audit=log.head(), served_as="grading", host=state, drift=drift))
        assert value(hub.metrics(), "retina_ray_drift_photographs", model="grading") == times
    assert len(hub.hosts("grading")) == 1
    assert len([line for line in caplog.records if "heads of audit logs cannot be written" in line.message]) == 1
