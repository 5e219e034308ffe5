"""What a process of an endpoint counts of its work, and the counts of all as one page of Prometheus text.

Each process keeps its own registry and hands out copies of it; whoever is asked for the page merges them under the
label ``replica``. Labels have few values, and none that a sender makes up. What is not here: drift (``drift``).
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest

from retina_ray.serving.refusals import Kind

OTHER_ROUTE = "other"
"""Stands for an address that is no route: what senders make up, file names included, becomes no label."""

REPLICA = "replica"
"""The label by which `merge` tells processes apart."""

_REQUEST_SECONDS = (0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0)
_NETWORK_SECONDS = (0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0, 2.0, 5.0)
_BATCH_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Telemetry:
    """Counts of one process; may be used by several threads.

    Args:
        routes: addresses' templates, such as ``/v1/grade``; requests elsewhere count under `OTHER_ROUTE`.
    """

    def __init__(self, routes: Iterable[str] = ()) -> None:
        self._routes = frozenset(routes)
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            "retina_ray_requests", "HTTP requests answered.", ("route", "status"), registry=registry
        )
        self._request_seconds = Histogram(
            "retina_ray_request_seconds",
            "Seconds from a request's first byte to its answer.",
            ("route",),
            buckets=_REQUEST_SECONDS,
            registry=registry,
        )
        self._refused = Counter(
            "retina_ray_photographs_refused", "Photographs without a grade, by why.", ("kind",), registry=registry
        )
        self._in_flight = Gauge(
            "retina_ray_photographs_in_flight", "Photographs that are being graded.", registry=registry
        )
        self._batch_size = Histogram(
            "retina_ray_batch_photographs",
            "Photographs in the batch that a photograph was graded in; one observation per photograph.",
            ("model",),
            buckets=_BATCH_SIZES,
            registry=registry,
        )
        self._network_seconds = Histogram(
            "retina_ray_network_seconds",
            "Seconds of the networks for the batch that a photograph was graded in; one observation per photograph.",
            ("model",),
            buckets=_NETWORK_SECONDS,
            registry=registry,
        )
        self._shadow_dropped = Counter(
            "retina_ray_shadow_copies_dropped",
            "Copies of photographs that a candidate was meant to see and was too slow for.",
            ("model",),
            registry=registry,
        )

    def request(self, route: str, status: int, seconds: float) -> None:
        """Count an answered HTTP request.

        Args:
            route: the address's template, or anything where it is no route.
            status: of HTTP.
            seconds: from its first byte to the answer.
        """
        known = route if route in self._routes else OTHER_ROUTE
        self._requests.labels(known, str(status)).inc()
        self._request_seconds.labels(known).observe(seconds)

    def refused(self, kind: Kind) -> None:
        """Count a photograph that got a problem instead of grades."""
        self._refused.labels(kind).inc()

    def in_flight(self, photographs: int) -> None:
        """State how many photographs are being graded now."""
        self._in_flight.set(photographs)

    def graded(self, model: str, batch_size: int, network_seconds: float) -> None:
        """Count a graded photograph.

        Args:
            model: what the model is served as.
            batch_size: photographs that were graded together with it, itself included.
            network_seconds: that the networks took for all of them.
        """
        self._batch_size.labels(model).observe(batch_size)
        self._network_seconds.labels(model).observe(network_seconds)

    def shadow_dropped(self, model: str) -> None:
        """Count a photograph whose copy did not reach the candidate.

        Args:
            model: what the model is served as that the candidate may replace.
        """
        self._shadow_dropped.labels(model).inc()

    def snapshot(self) -> list[Metric]:
        """Return the counts so far, a copy that pickles; without the times at which the counting began."""
        families = list(self._registry.collect())
        for family in families:
            family.samples = [sample for sample in family.samples if sample.name != f"{family.name}_created"]
        return families


def merge(snapshots: Mapping[str, Iterable[Metric]]) -> str:
    """Return the families of all processes in Prometheus's text format, each with one HELP and one TYPE line.

    Args:
        snapshots: by process, from `Telemetry.snapshot` or `drift.DriftWatch.gauges`.

    Raises:
        ValueError: a family is of two types, a sample is there twice, or it has a label `REPLICA` already.
    """
    merged: dict[str, Metric] = {}
    seen: set[tuple[str, frozenset[tuple[str, str]]]] = set()
    for replica, families in sorted(snapshots.items()):
        for family in families:
            into = merged.setdefault(family.name, Metric(family.name, family.documentation, family.type))
            if into.type != family.type:
                raise ValueError(f"metric {family.name} is a {into.type} and, at {replica}, a {family.type}")
            for sample in family.samples:
                if REPLICA in sample.labels:
                    raise ValueError(f"metric {sample.name} of {replica} has a label {REPLICA} of its own")
                labels = {REPLICA: replica, **sample.labels}
                key = (sample.name, frozenset(labels.items()))
                if key in seen:
                    raise ValueError(f"metric {sample.name} is there twice with labels {labels}")
                seen.add(key)
                into.samples.append(sample._replace(labels=labels))
    return generate_latest(_Families(list(merged.values()))).decode()


@dataclass(frozen=True, slots=True)
class _Families:
    """What `generate_latest` reads."""

    families: list[Metric]

    def collect(self) -> Iterable[Metric]:
        return self.families
