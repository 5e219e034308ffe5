"""Answers that were given a moment ago, by idempotency key: a request that is repeated gets the same answer again.

A client that lost an answer repeats its request under the same key. Where the process that answered gets the
repetition, nothing is computed and nothing is logged twice. What is not here: sharing answers between processes;
another one computes the answer again, which harms nobody.
"""

import time
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass

from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.schema import GradeResponse

_LIFE_S = 60.0
_MOST = 1_000
_MOST_BYTES = 64 * 2**20


@dataclass(frozen=True, slots=True)
class _Kept:
    question: Hashable
    answer: GradeResponse
    bytes: int
    until: float


class AnswerCache:
    """Keeps answers for a minute, a thousand or 64 MiB of them at most.

    Args:
        clock: seconds.
    """

    def __init__(self, clock: Callable[[], float] = time.monotonic) -> None:
        self._clock = clock
        self._kept: OrderedDict[tuple[str, str], _Kept] = OrderedDict()
        self._bytes = 0

    def find(self, key_id: str, idempotency_key: str, question: Hashable) -> GradeResponse | None:
        """Return the answer that was given under a key, if it is kept.

        Args:
            key_id: whose idempotency key it is.
            idempotency_key: of the request.
            question: what was asked: the photograph's hash and the options.

        Raises:
            RefusedError: something else was asked under the key (``key-reused``).
        """
        self._forget()
        kept = self._kept.get((key_id, idempotency_key))
        if kept is None:
            return None
        if kept.question != question:
            detail = f"the idempotency key {idempotency_key!r} was used for another request; make a new one for each"
            raise RefusedError("key-reused", detail)
        return kept.answer

    def keep(self, key_id: str, idempotency_key: str, question: Hashable, answer: GradeResponse) -> None:
        """Keep an answer; the oldest ones make room."""
        self._drop((key_id, idempotency_key))
        kept = _Kept(question, answer, _size(answer), self._clock() + _LIFE_S)
        self._kept[key_id, idempotency_key] = kept
        self._bytes += kept.bytes
        self._forget()

    def _forget(self) -> None:
        """Drop what is too old and what is too much; answers are in the order of their time."""
        while self._kept:
            oldest = next(iter(self._kept))
            too_much = len(self._kept) > _MOST or self._bytes > _MOST_BYTES
            if not too_much and self._kept[oldest].until > self._clock():
                return
            self._drop(oldest)

    def _drop(self, key: tuple[str, str]) -> None:
        kept = self._kept.pop(key, None)
        if kept is not None:
            self._bytes -= kept.bytes


def _size(answer: GradeResponse) -> int:
    pictures = [*(answer.explanation.tasks.values() if answer.explanation else ())]
    pictures += [lesion.mask for lesion in (answer.lesions or {}).values()]
    return 1024 + sum(len(picture) for picture in (*pictures, answer.enhanced or b"", answer.fundus or b""))
