"""The application: ``serve_apps.app:build``, which the YAML files beside it name as their import path."""

from typing import Any

from ray.serve import Application, Deployment

from serve_apps.arguments import Arguments, IngressSettings, ModelArguments, ModelSettings
from serve_apps.hub import HubReplica
from serve_apps.ingress import HttpReplica
from serve_apps.model import ModelReplica
from serve_apps.names import HTTP, candidate_deployment, model_deployment

_ROOM = 4
"""Batches that may gather in a model's replica while it computes one; more wait with whoever sent them."""


def build(arguments: Arguments) -> Application:
    """Return the application; which bundles it serves is in its deployments' ``user_config``.

    Args:
        arguments: how it is built.
    """
    hub = _deployment(HubReplica).bind(arguments)
    apart = arguments.layout == "two_hop"
    models = {name: _model(name, each, arguments, hub) for name, each in arguments.models.items()} if apart else {}
    candidates = {name: _candidate(name, each, arguments, hub) for name, each in arguments.models.items() if apart}
    http = arguments.http
    cpus = http.num_cpus + (0.0 if apart else sum(each.num_cpus for each in arguments.models.values()))
    gpus = 0.0 if apart else sum(each.num_gpus for each in arguments.models.values())
    deployment = _deployment(HttpReplica).options(
        name=HTTP,
        autoscaling_config=http.scaling.for_serve(),
        # More than are graded at a time, so that it is this application that says no, with a reason.
        max_ongoing_requests=2 * http.in_flight + 16,
        max_queued_requests=http.in_flight,
        backpressure_config={"status_code": 503, "retry_after_s": 1},
        ray_actor_options={"num_cpus": cpus, "num_gpus": gpus},
        user_config=IngressSettings().model_dump(),
        max_surge_percent=100,
    )
    return deployment.bind(arguments, hub, models, candidates)


def _model(name: str, each: ModelArguments, arguments: Arguments, hub: Application) -> Application:
    deployment = _deployment(ModelReplica).options(
        name=model_deployment(name), autoscaling_config=each.scaling.for_serve(), **_options(each)
    )
    return deployment.bind(name, each, arguments.storage, hub)


def _candidate(name: str, each: ModelArguments, arguments: Arguments, hub: Application) -> Application:
    """Return the deployment of a candidate: no replica until there is one."""
    scaling = {**each.scaling.for_serve(), "min_replicas": 0, "initial_replicas": 0}
    deployment = _deployment(ModelReplica).options(
        name=candidate_deployment(name), autoscaling_config=scaling, **_options(each)
    )
    return deployment.bind(name, each, arguments.storage, hub, counts=False)


def _options(each: ModelArguments) -> dict[str, Any]:
    return {
        "max_ongoing_requests": _ROOM * each.max_batch,
        "ray_actor_options": {"num_cpus": each.num_cpus, "num_gpus": each.num_gpus},
        "user_config": ModelSettings().model_dump(),
        "max_surge_percent": 100,
    }


def _deployment(decorated: object) -> Deployment:
    """Return a decorated class as what it is; Serve's decorators are typed as if they returned the class."""
    assert isinstance(decorated, Deployment)
    return decorated
