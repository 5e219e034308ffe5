"""A model for use in an event loop: loaded by the address of its bundle, and run in a thread of its own."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

import torch

from retina_ray.bundle import Bundle
from retina_ray.errors import BundleError, RetinaRayError
from retina_ray.model_versions import registry_of, resolve_model, version_of
from retina_ray.serving.exchange import Answer, HostState, Job
from retina_ray.serving.model_host import HostSettings, ModelHost
from serve_apps.arguments import ModelArguments, ModelSettings

_logger = logging.getLogger("ray.serve")


class HostedModel:
    """A `ModelHost` for use in an event loop: its networks run in one thread, one batch after the other.

    Args:
        served_as: what requests call the model.
        arguments: of its deployment.
        storage: whose registry ``models:/`` addresses mean.
    """

    def __init__(self, served_as: str, arguments: ModelArguments, storage: str) -> None:
        threads = max(1, int(arguments.num_cpus))
        torch.set_num_threads(threads)
        batches = tuple(sorted({1, arguments.max_batch}))
        self._host = ModelHost(HostSettings(served_as, precision=arguments.precision, warm_batches=batches))
        self._registry = registry_of(storage)
        self._networks = ThreadPoolExecutor(1, thread_name_prefix="networks")
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="loading")
        self._wanted: str | None = None
        self._change: asyncio.Future[bool] | None = None

    async def use(self, settings: ModelSettings) -> None:
        """Take another bundle: the first one is waited for, a later one is loaded beside the present one.

        Raises:
            BundleError: the first bundle is refused.
        """
        if settings.bundle == self._wanted:
            return
        self._wanted = settings.bundle
        if settings.bundle is None:
            return
        loop = asyncio.get_running_loop()
        self._change = loop.run_in_executor(self._loading, self._load, settings.bundle)
        if self._host.state.description is None:
            await self._change
            swap = self._host.state.swap
            if swap is not None:
                raise BundleError("the model is refused", f"{settings.bundle} ({swap.detail})", "serve another one")

    def state(self) -> HostState:
        """Return what senders have to know."""
        return self._host.state

    async def answer(self, jobs: list[Job]) -> list[Answer | HostState]:
        """Answer jobs, as `ModelHost.answer` does."""
        return await asyncio.get_running_loop().run_in_executor(self._networks, self._host.answer, jobs)

    def _load(self, address: str) -> bool:
        try:
            bundle = Bundle.load(resolve_model(address, config=self._registry))
        except RetinaRayError as error:
            self._host.refuse(address, error)
            return False
        answers = self._host.load(bundle, address=address, version=version_of(address))
        _logger.info("%s: %s", address, "answers now" if answers else "refused")
        return answers
