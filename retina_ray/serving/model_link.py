"""Asking a served model from another process, which may be given another bundle meanwhile.

What is not here: the transport (``serve_apps``) and the model itself (``model_host``).
"""

import asyncio
import logging
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Protocol, TypeVar

from retina_ray.serving.exchange import Answer, Failed, HostState, Job
from retina_ray.serving.preparation import Preparation, Prepared
from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.schema import ModelDescription
from retina_ray.serving.service import GradeOptions

T = TypeVar("T")

_logger = logging.getLogger(__name__)

_REFRESH_S = 1.0
_STATE_S = 3.0
"""Seconds in which a replica has to say what it runs, which takes it milliseconds; without one, Serve waits forever."""

_MOST_ATTEMPTS = 8
"""While replicas change their model one by one, an attempt meets one that knows neither bundle once in a while."""


class Transport(Protocol):
    """The way to a model's replicas."""

    async def state(self) -> HostState:
        """Return what one of the replicas says of itself."""

    async def answer(self, job: Job) -> Answer | HostState | Failed:
        """Return what `model_host.ModelHost.answer` does of one job."""


@dataclass(frozen=True, slots=True)
class ReadyModel:
    """A model that answers, as whoever prepares photographs for it knows it."""

    description: ModelDescription
    state: HostState

    def preparation(self, *, low_resolution: bool) -> Preparation:
        """Return how its photographs are prepared.

        Raises:
            RefusedError: it takes no low-resolution photographs (``unsupported``).
        """
        wanted = self.state.low_resolution if low_resolution else self.state.preparation
        if wanted is None:
            name = self.description.served_as
            detail = f"the model takes photographs of full resolution only: {name}; leave low_resolution out"
            raise RefusedError("unsupported", detail)
        return wanted

    def check(self, options: GradeOptions) -> None:
        """Check that it can do what is asked.

        Raises:
            RefusedError: it cannot (``unsupported``).
        """
        can = self.description
        lacks = {
            f"draw {options.explain}": options.explain is not None and options.explain not in can.explanations,
            "segment lesions": options.lesions and not can.lesions,
            "enhance photographs": options.enhance and not can.enhances,
        }
        lacking = [what for what, is_lacking in lacks.items() if is_lacking]
        if lacking:
            drawn = ", ".join(can.explanations) or "none"
            detail = f"the model {can.served_as} cannot {' or '.join(lacking)}; it draws: {drawn}"
            raise RefusedError("unsupported", detail)


Prepare = Callable[[Preparation], Awaitable[Prepared]]


class ModelLink:
    """Prepares photographs for the model that a served name stands for at the moment, and has them answered.

    Args:
        served_as: the name.
        transport: the way to its replicas.
        waits: whether a request waits until it is known which model answers; a candidate may have no replica yet.
        clock: seconds.
    """

    def __init__(
        self,
        served_as: str,
        transport: Transport,
        *,
        waits: bool = True,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self.served_as = served_as
        self._waits = waits
        self._transport = transport
        self._clock = clock
        self._state: HostState | None = None
        self._asked_at = float("-inf")
        self._unheard_since: float | None = None
        self._asking: asyncio.Task[None] | None = None

    async def ready(self) -> ReadyModel:
        """Return the model that answers; what is known of it is at most a second or so old.

        Raises:
            RefusedError: none does yet (``not-ready``).
        """
        unknown = self._state is None or self._state.description is None
        if self._clock() - self._asked_at > _REFRESH_S and (self._asking is None or self._asking.done()):
            self._asking = asyncio.create_task(self._ask())
        if unknown and self._waits and self._asking is not None:
            await asyncio.shield(self._asking)  # others wait for it too
        return self._known()

    async def look(self) -> ReadyModel:
        """Return the model that answers, as a replica says now, or as it was last known where none says anything.

        Raises:
            RefusedError: none does yet (``not-ready``).
        """
        await self._ask()
        return self._known()

    async def is_silent(self, seconds: float) -> bool:
        """Tell whether replicas have left all questions unanswered for so long; asks once more before it says so."""
        if self._unheard_s() < seconds:
            return False
        await self._ask()
        return self._unheard_s() >= seconds

    async def answer(self, prepare: Prepare, options: GradeOptions) -> tuple[Prepared, Answer]:
        """Return what a model was shown, and its answer.

        Args:
            prepare: makes a photograph what a model takes; called again only where another model takes another size.
            options: what is wanted of it.

        Raises:
            RefusedError: no model is ready, the one that is cannot do it, its networks failed, or it changed too often.
        """
        model = await self.ready()
        preparation, prepared = None, None
        for _ in range(_MOST_ATTEMPTS):
            model.check(options)
            wanted = model.preparation(low_resolution=options.low_resolution)
            if prepared is None or wanted != preparation:
                preparation, prepared = wanted, await prepare(wanted)
            found = await self._heard(self._transport.answer(Job(prepared, model.description.model.hash, options)))
            if isinstance(found, Answer):
                return prepared, found
            if isinstance(found, Failed):
                what = f"the model's networks failed on the photograph ({found.detail}): {self.served_as}"
                raise RefusedError("internal", f"{what}; repeat the request, or look into the log of its replica")
            self._state = found
            model = self._known()
        detail = f"the model is being replaced: {self.served_as}; repeat the request"
        raise RefusedError("not-ready", detail, retry_after=1.0)

    async def _ask(self) -> None:
        try:
            async with asyncio.timeout(_STATE_S):
                self._state = await self._heard(self._transport.state())
        except Exception:  # no replica answers at the moment; what was known may still be right
            _logger.debug("no state of %s", self.served_as, exc_info=True)
        self._asked_at = self._clock()

    async def _heard(self, reply: Awaitable[T]) -> T:
        """Wait for a reply, and note since when there has been none to anything."""
        if self._unheard_since is None:
            self._unheard_since = self._clock()
        found = await reply
        self._unheard_since = None
        return found

    def _unheard_s(self) -> float:
        return 0.0 if self._unheard_since is None else self._clock() - self._unheard_since

    def _known(self) -> ReadyModel:
        if self._state is None or self._state.description is None:
            swap = None if self._state is None else self._state.swap
            why = f" ({swap.bundle}: {swap.detail or swap.state})" if swap else ""
            detail = f"the model is not loaded yet: {self.served_as}{why}; wait, or look at `retina-ray serve status`"
            raise RefusedError("not-ready", detail, retry_after=2.0)
        return ReadyModel(self._state.description, self._state)
