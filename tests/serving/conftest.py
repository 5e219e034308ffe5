"""What tests of Serve's deployments share that run in this process."""

import pytest
from ray import serve
from ray.serve._private.common import DeploymentID, ReplicaID
from ray.serve._private.config import DeploymentConfig
from ray.serve.context import ReplicaContext
from ray.serve.schema import ReplicaRank


@pytest.fixture
def replica_context(monkeypatch: pytest.MonkeyPatch) -> None:
    """What the local mode of Ray 2.60 lacks and its own `serve.batch` asks for: a replica to be in."""
    replica = ReplicaContext(
        replica_id=ReplicaID(unique_id="local", deployment_id=DeploymentID("Http")),
        servable_object=lambda: None,
        _deployment_config=DeploymentConfig(max_ongoing_requests=80),
        rank=ReplicaRank(rank=0, node_rank=0, local_rank=0),
        world_size=1,
    )
    monkeypatch.setattr(serve.context, "_INTERNAL_REPLICA_CONTEXT", replica)
