"""A repeated request gets the answer that was given; a key is good for one request only."""

from collections.abc import Callable

import pytest

from retina_ray.serving.answer_cache import AnswerCache
from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.schema import GradeResponse, ImageQuality, ModelVersion, Timing

pytestmark = pytest.mark.serving


def answer(enhanced: bytes | None = None) -> GradeResponse:
    response = GradeResponse(
        tasks={},
        image=ImageQuality(ok=True),
        model=ModelVersion(name="m", hash="h"),
        timing=Timing(prepare_ms=1.0, network_ms=1.0),
    )
    return response.model_copy(update={"enhanced": enhanced})


class Clock:
    now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def cache(clock: Callable[[], float]) -> AnswerCache:
    return AnswerCache(clock)


def test_a_repetition_gets_the_same_answer(cache: AnswerCache) -> None:
    given = answer()
    assert cache.find("clinic", "k", "question") is None
    cache.keep("clinic", "k", "question", given)
    assert cache.find("clinic", "k", "question") is given


def test_a_key_of_another_sender_is_another_key(cache: AnswerCache) -> None:
    cache.keep("clinic", "k", "question", answer())
    assert cache.find("hospital", "k", "question") is None


def test_a_key_that_was_used_for_something_else_is_refused(cache: AnswerCache) -> None:
    cache.keep("clinic", "k", "question", answer())
    with pytest.raises(RefusedError) as refused:
        cache.find("clinic", "k", "another question")
    assert refused.value.kind == "key-reused"
    assert "'k'" in refused.value.detail


def test_answers_are_forgotten_after_a_minute(cache: AnswerCache, clock: Clock) -> None:
    cache.keep("clinic", "k", "question", answer())
    clock.now = 59.0
    assert cache.find("clinic", "k", "question") is not None
    clock.now = 61.0
    assert cache.find("clinic", "k", "question") is None


def test_the_oldest_answers_make_room(cache: AnswerCache) -> None:
    for index in range(1_001):
        cache.keep("clinic", f"k{index}", "question", answer())
    assert cache.find("clinic", "k0", "question") is None
    assert cache.find("clinic", "k1", "question") is not None


def test_pictures_count_towards_the_room(cache: AnswerCache) -> None:
    cache.keep("clinic", "small", "question", answer())
    for index in range(3):
        cache.keep("clinic", f"k{index}", "question", answer(bytes(30 * 2**20)))
    assert cache.find("clinic", "small", "question") is None
    assert cache.find("clinic", "k0", "question") is None
    assert cache.find("clinic", "k2", "question") is not None
