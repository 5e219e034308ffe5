"""A model for use in an event loop: loaded by the address of its bundle, and run in a thread of its own."""

import asyncio
import logging
from concurrent.futures import ThreadPoolExecutor

import torch

from retina_ray.bundle import Bundle
from retina_ray.errors import BundleError
from retina_ray.model_versions import registry_of, resolve_model, version_of
from retina_ray.serving.allocator import keep_freed_memory
from retina_ray.serving.batching import Batcher
from retina_ray.serving.exchange import Answer, Failed, HostState, Job
from retina_ray.serving.model_host import HostSettings, ModelHost, reason
from serve_apps.arguments import ModelArguments, ModelSettings

_logger = logging.getLogger("ray.serve")


class HostedModel:
    """A `ModelHost` for use in an event loop: its networks run in one thread, one batch after the other.

    Jobs that arrive while a batch is computed are the next one.

    Args:
        served_as: what requests call the model.
        arguments: of its deployment.
        storage: whose registry ``models:/`` addresses mean.
        keeps: whether the present bundle answers until the next one is loaded. A candidate must not answer in the name
            of the next one.
    """

    def __init__(self, served_as: str, arguments: ModelArguments, storage: str, *, keeps: bool = True) -> None:
        threads = max(1, int(arguments.num_cpus))
        torch.set_num_threads(threads)
        keep_freed_memory()
        batches = tuple(sorted({1, arguments.max_batch}))
        self._host = ModelHost(HostSettings(served_as, precision=arguments.precision, warm_batches=batches))
        self._registry = registry_of(storage)
        self._keeps = keeps
        self._networks = ThreadPoolExecutor(1, thread_name_prefix="networks")
        self._loading = ThreadPoolExecutor(1, thread_name_prefix="loading")
        self._wanted = ModelSettings()

        self._batcher = Batcher(self._host.answer, most=arguments.max_batch, executor=self._networks)
        self._change: asyncio.Future[None] | None = None

    async def use(self, settings: ModelSettings) -> None:
        """Take another bundle: the first one is waited for, a later one is loaded beside the present one.

        Where the first one is refused, the one before it answers: a bundle that is refused where it was declared must
        not keep replicas that start later from answering.

        Raises:
            BundleError: the first bundle is refused, and there is none before it.
        """
        before, self._wanted = self._wanted, settings
        if (settings.bundle, settings.attempt) == (before.bundle, before.attempt):
            return
        if settings.bundle is None or not self._keeps:
            self._host.clear()
        if settings.bundle is None:
            return
        loop = asyncio.get_running_loop()
        self._change = loop.run_in_executor(self._loading, self._load, settings)
        if self._host.state.description is None:
            await self._change
            swap = self._host.state.swap
            if self._host.state.description is None and swap is not None:
                raise BundleError("the model is refused", f"{settings.bundle} ({swap.detail})", "serve another one")

    def state(self) -> HostState:
        """Return what senders have to know."""
        return self._host.state

    async def answer(self, job: Job) -> Answer | HostState | Failed:
        """Answer one job, together with others that arrived while the networks were busy."""
        return await self._batcher.answer(job)

    def _load(self, settings: ModelSettings) -> None:
        assert settings.bundle is not None
        if self._take(settings.bundle) or self._host.state.description is not None:
            return
        swap = self._host.state.swap
        if settings.previous is not None and self._take(settings.previous) and swap is not None:
            self._host.refuse(swap.bundle, swap.detail)

    def _take(self, address: str) -> bool:
        """Load a bundle, and tell whether it answers now."""
        try:
            bundle = Bundle.load(resolve_model(address, config=self._registry))
        except Exception as error:  # of a registry or a storage that is away, too
            self._host.refuse(address, reason(error))
            return False
        answers = self._host.load(bundle, address=address, version=version_of(address))
        _logger.info("%s: %s", address, "answers now" if answers else "refused")
        return answers
