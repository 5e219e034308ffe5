"""Counts of several processes become one page that Prometheus reads, without a name that a sender made up."""

import math
import pickle
from concurrent.futures import ThreadPoolExecutor

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import Metric
from prometheus_client.parser import text_string_to_metric_families

from retina_ray.serving.telemetry import Telemetry, merge

GRADE = "/v1/grade"
TEXT = st.text(st.characters(codec="utf-8"), max_size=6)


def worked(requests: int = 1) -> Telemetry:
    """Return the counts of a process in which everything has happened."""
    telemetry = Telemetry([GRADE, "/healthz"])
    for _ in range(requests):
        telemetry.request(GRADE, 200, 0.03)
    telemetry.refused("no-fundus")
    telemetry.in_flight(3)
    telemetry.graded("dr", 4, 0.012)
    telemetry.shadow_dropped("dr")
    return telemetry


def read(page: str) -> dict[tuple[str, frozenset[tuple[str, str]]], float]:
    """Return the values of a page by name and labels, and check its form."""
    values = {}
    for line in ("HELP", "TYPE"):
        named = [row.split()[2] for row in page.splitlines() if row.startswith(f"# {line} ")]
        assert len(named) == len(set(named))
    for family in text_string_to_metric_families(page):
        for sample in family.samples:
            key = (sample.name, frozenset(sample.labels.items()))
            assert key not in values
            values[key] = sample.value
    return values


def value(page: str, name: str, **labels: str) -> float:
    return read(page)[name, frozenset(labels.items())]


def test_what_happened_is_on_the_page() -> None:
    page = merge({"a": worked().snapshot()})
    assert value(page, "retina_ray_requests_total", replica="a", route=GRADE, status="200") == 1
    assert value(page, "retina_ray_photographs_refused_total", replica="a", kind="no-fundus") == 1
    assert value(page, "retina_ray_photographs_in_flight", replica="a") == 3
    assert value(page, "retina_ray_batch_photographs_sum", replica="a", model="dr") == 4
    assert value(page, "retina_ray_network_seconds_sum", replica="a", model="dr") == pytest.approx(0.012)
    assert value(page, "retina_ray_shadow_copies_dropped_total", replica="a", model="dr") == 1
    buckets = [("0.02", 0), ("0.05", 1), ("+Inf", 1)]
    for bound, count in buckets:
        assert value(page, "retina_ray_request_seconds_bucket", replica="a", route=GRADE, le=bound) == count


def test_processes_are_told_apart_and_add_up() -> None:
    snapshots = {f"r{index}": worked(index + 1).snapshot() for index in range(3)}
    page = merge({name: pickle.loads(pickle.dumps(snapshot)) for name, snapshot in snapshots.items()})
    counts = [
        value(page, "retina_ray_requests_total", replica=f"r{index}", route=GRADE, status="200") for index in range(3)
    ]
    assert counts == [1, 2, 3]
    assert page == merge(dict(reversed(snapshots.items())))


def test_the_parser_sees_the_types() -> None:
    types = {family.name: family.type for family in text_string_to_metric_families(merge({"a": worked().snapshot()}))}
    assert types["retina_ray_requests"] == "counter"
    assert types["retina_ray_request_seconds"] == "histogram"
    assert not [name for name in types if name.endswith("_created")]


def test_a_made_up_address_becomes_no_label() -> None:
    telemetry = Telemetry([GRADE])
    for address in ("/v1/grade/smith_john_19500101.jpg", "/wp-admin", GRADE + "/"):
        telemetry.request(address, 404, 0.001)
    page = merge({"a": telemetry.snapshot()})
    assert "smith" not in page
    assert value(page, "retina_ray_requests_total", replica="a", route="other", status="404") == 3


def test_a_snapshot_is_a_copy() -> None:
    telemetry = worked()
    before = telemetry.snapshot()
    page = merge({"a": before})
    telemetry.request(GRADE, 200, 0.03)
    assert merge({"a": before}) == page
    assert merge({"a": telemetry.snapshot()}) != page
    assert merge({"a": before}) == page  # merging changes no snapshot


def test_registries_are_private() -> None:
    worked()
    assert (
        read(merge({"a": Telemetry().snapshot()}))["retina_ray_photographs_in_flight", frozenset({("replica", "a")})]
        == 0
    )


def test_threads_lose_no_count() -> None:
    telemetry = Telemetry([GRADE])
    with ThreadPoolExecutor(4) as pool:
        list(pool.map(lambda _: telemetry.request(GRADE, 200, 0.01), range(2000)))
    page = merge({"a": telemetry.snapshot()})
    assert value(page, "retina_ray_requests_total", replica="a", route=GRADE, status="200") == 2000


def test_one_name_with_two_types_is_refused() -> None:
    with pytest.raises(ValueError, match=r"metric x is a gauge and, at b, a counter"):
        merge({"a": [Metric("x", "", "gauge")], "b": [Metric("x", "", "counter")]})


def test_a_replica_label_of_its_own_is_refused() -> None:
    family = Metric("x", "", "gauge")
    family.add_sample("x", {"replica": "me"}, 1.0)
    with pytest.raises(ValueError, match="label replica of its own"):
        merge({"a": [family]})


def test_the_same_labels_twice_are_refused() -> None:
    """Of which Prometheus would drop one."""
    family = Metric("x", "", "gauge")
    family.add_sample("x", {"model": "dr"}, 1.0)
    assert merge({"a": [family], "b": [family]}).count("x{") == 2
    with pytest.raises(ValueError, match="metric x is there twice"):
        merge({"a": [family, family]})


def test_no_processes_make_an_empty_page() -> None:
    assert merge({}) == ""


@given(
    st.dictionaries(
        TEXT,
        st.lists(st.tuples(st.sampled_from("xyz"), TEXT, st.floats(allow_nan=False)), max_size=6),
        max_size=4,
    )
)
def test_any_names_and_values_are_read_back(drawn: dict[str, list[tuple[str, str, float]]]) -> None:
    """Quotes, line breaks and backslashes in names of processes and models included; families may repeat in one."""
    snapshots, expected = {}, {}
    for replica, samples in drawn.items():
        snapshots[replica] = []
        for name, label, number in samples:
            key = (name, frozenset({("replica", replica), ("model", label)}))
            if key in expected:
                continue
            expected[key] = number
            family = Metric(name, "What it is.", "gauge")
            family.add_sample(name, {"model": label}, number)
            snapshots[replica].append(family)
    found = read(merge(snapshots))
    assert found.keys() == expected.keys()
    assert all(math.isclose(found[key], number) for key, number in expected.items())
