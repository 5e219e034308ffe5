"""Replicas that run a model's networks: they batch what arrives, and take another bundle without stopping."""

from typing import Any

from ray import serve

from retina_ray.serving.exchange import Answer, Failed, HostState, Job
from serve_apps.arguments import ModelArguments, ModelSettings
from serve_apps.hub import HubHandle, reporting


@serve.deployment(name="Model")
class ModelReplica:
    """A replica of a served model.

    Args:
        served_as: what requests call the model.
        arguments: of its deployment.
        storage: whose registry ``models:/`` addresses mean.
        hub: handle of the hub.
        counts: whether it is reported as a replica of the model; a candidate's are not.
    """

    def __init__(
        self, served_as: str, arguments: ModelArguments, storage: str, hub: Any, *, counts: bool = True
    ) -> None:
        # It brings torch along, which whoever builds the application does without.
        from serve_apps.hosted_model import HostedModel

        self._model = HostedModel(served_as, arguments, storage, keeps=counts)
        self._reporting = reporting(HubHandle(hub), served_as, self._model.state) if counts else None

    async def reconfigure(self, user_config: dict[str, Any]) -> None:
        """Take another bundle; Serve calls this at the start and whenever the configuration changes."""
        await self._model.use(ModelSettings.model_validate(user_config))

    async def state(self) -> HostState:
        """Return what senders have to know."""
        return self._model.state()

    async def answer(self, job: Job) -> Answer | HostState | Failed:
        """Answer one job, together with others that arrived while the networks were busy."""
        return await self._model.answer(job)
