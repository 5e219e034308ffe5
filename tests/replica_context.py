"""A replica of Ray Serve for code to be in, where none runs."""

from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.context import ReplicaContext
from ray.serve.schema import ReplicaRank


def replica_context() -> ReplicaContext:
    """Return what the ingress asks for, and what the local mode of Ray 2.60 lacks."""
    return ReplicaContext(
        replica_id=ReplicaID(unique_id="local", deployment_id=DeploymentID("Http")),
        servable_object=lambda: None,
        _deployment_config=DeploymentConfig(max_ongoing_requests=80),
        rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
        world_size=1,
    )
