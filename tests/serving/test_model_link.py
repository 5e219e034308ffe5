"""Photographs are prepared for the model that answers, also while replicas change it one by one."""

import asyncio
from dataclasses import replace
from pathlib import Path

import pytest

from retina_ray.bundle import Bundle
from retina_ray.serving import model_link
from retina_ray.serving.exchange import Failed, HostState, Job
from retina_ray.serving.model_link import ModelLink
from retina_ray.serving.preparation import Preparation, Prepared
from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.routing import Route, Trial
from retina_ray.serving.service import GradeOptions
from tests.bundles import make_everything
from tests.serving_links import ModelsAway, ModelsHere, host_of
from tests.serving_photographs import photograph

pytestmark = pytest.mark.serving


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    """Two models that want photographs of different sizes."""
    small = make_everything(tmp_path_factory.mktemp("small"), size=64)
    large = make_everything(tmp_path_factory.mktemp("large"), size=96)
    return small.build(tmp_path_factory.mktemp("a")), large.build(tmp_path_factory.mktemp("b"), name="large")


async def prepare(preparation: Preparation) -> Prepared:
    return preparation.prepare(photograph())


def test_a_photograph_is_prepared_for_the_model_that_answers(bundles: tuple[Bundle, Bundle]) -> None:
    small, _ = bundles
    link = ModelLink("grading", ModelsHere([host_of(small)]))
    prepared, answer = asyncio.run(link.answer(prepare, GradeOptions()))
    assert answer.response.model.hash == small.hash
    assert len(prepared.pixels) == small.manifest.preprocessing.image_size


def test_a_replica_with_another_model_gets_the_photograph_again(bundles: tuple[Bundle, Bundle]) -> None:
    small, large = bundles
    host = host_of(small)
    models = ModelsHere([host])
    link = ModelLink("grading", models)

    async def ask() -> str:
        await link.ready()
        models.hosts = [host_of(large)]  # it never had the small one, as a replica that has just started
        prepared, answer = await link.answer(prepare, GradeOptions())
        assert len(prepared.pixels) == large.manifest.preprocessing.image_size
        return answer.response.model.hash

    assert asyncio.run(ask()) == large.hash
    assert [job.model for job in models.jobs] == [small.hash, large.hash]


def test_no_request_fails_while_two_replicas_are_given_another_model(bundles: tuple[Bundle, Bundle]) -> None:
    small, large = bundles
    hosts = [host_of(small), host_of(small)]
    link = ModelLink("grading", ModelsHere(hosts))

    async def ask(times: int) -> set[str]:
        found = set()
        for _ in range(times):
            _, answer = await link.answer(prepare, GradeOptions())
            found.add(answer.response.model.hash)
        return found

    async def roll_out() -> None:
        assert await ask(4) == {small.hash}
        assert hosts[0].load(large, address="large")
        assert await ask(6) <= {small.hash, large.hash}
        assert hosts[1].load(large, address="large")
        link._state = hosts[1].state  # what the next refresh brings
        assert await ask(4) == {large.hash}

    asyncio.run(roll_out())


def test_a_model_that_changes_without_end_is_not_ready(bundles: tuple[Bundle, Bundle]) -> None:
    state = host_of(bundles[0]).state

    class Restless(ModelsHere):
        async def answer(self, job: Job) -> HostState:
            self.jobs.append(job)
            return state

    models = Restless([host_of(bundles[0])])
    with pytest.raises(RefusedError) as refused:
        asyncio.run(ModelLink("grading", models).answer(prepare, GradeOptions()))
    assert refused.value.kind == "not-ready"
    assert refused.value.retry_after
    assert len(models.jobs) == 8


def test_a_model_that_is_not_loaded_yet_is_not_ready() -> None:
    with pytest.raises(RefusedError) as refused:
        asyncio.run(ModelLink("grading", ModelsHere([host_of()])).ready())
    assert refused.value.kind == "not-ready"
    assert "grading" in refused.value.detail


def test_nobody_waits_for_a_candidate(bundles: tuple[Bundle, Bundle]) -> None:
    begun = asyncio.Event()

    class Starting(ModelsHere):
        async def state(self) -> HostState:
            await begun.wait()
            return await super().state()

    link = ModelLink("grading", Starting([host_of(bundles[0])]), waits=False)

    async def ask() -> None:
        with pytest.raises(RefusedError):
            await link.ready()
        begun.set()
        assert link._asking is not None
        await link._asking
        assert (await link.ready()).description.model.hash == bundles[0].hash

    asyncio.run(ask())


def test_low_resolution_is_refused_where_the_model_takes_none(bundles: tuple[Bundle, Bundle]) -> None:
    link = ModelLink("grading", ModelsHere([host_of(bundles[0])]))
    with pytest.raises(RefusedError) as refused:
        asyncio.run(link.answer(prepare, GradeOptions(low_resolution=True)))
    assert refused.value.kind == "unsupported"


def test_a_wish_is_checked_again_where_the_model_has_changed(bundles: tuple[Bundle, Bundle]) -> None:
    state = host_of(bundles[0]).state
    assert state.description is not None
    version = state.description.model.model_copy(update={"hash": "earlier"})
    draws_more = state.description.model_copy(update={"explanations": ["gmsv"], "model": version})

    class Changing(ModelsHere):
        async def state(self) -> HostState:
            return replace(state, description=draws_more)

    models = Changing([host_of(bundles[0])])
    with pytest.raises(RefusedError, match="cannot draw gmsv") as refused:
        asyncio.run(ModelLink("grading", models).answer(prepare, GradeOptions(explain="gmsv")))
    assert refused.value.kind == "unsupported"
    assert [job.model for job in models.jobs] == ["earlier"]


def test_networks_that_raise_are_a_failure_of_the_service(bundles: tuple[Bundle, Bundle]) -> None:
    class Failing(ModelsHere):
        async def answer(self, job: Job) -> Failed:
            return Failed("OutOfMemoryError")

    with pytest.raises(RefusedError, match=r"networks failed .*OutOfMemoryError.*repeat the request") as refused:
        asyncio.run(ModelLink("grading", Failing([host_of(bundles[0])])).answer(prepare, GradeOptions()))
    assert refused.value.kind == "internal"


def test_nobody_waits_long_for_replicas_that_are_away(
    bundles: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_link, "_STATE_S", 0.05)

    async def ask() -> None:
        models = ModelsAway([host_of(bundles[0])])
        link = ModelLink("grading", models)
        for way in (link.ready, link.look):
            with pytest.raises(RefusedError) as refused:
                await way()
            assert refused.value.kind == "not-ready"
        models.are_away = False
        await link.look()
        models.are_away = True
        assert (await link.look()).description.model.hash == bundles[0].hash  # as it was last known

    asyncio.run(ask())


def test_replicas_are_silent_once_nothing_was_answered_for_long(
    bundles: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_link, "_STATE_S", 0.05)
    now = 0.0

    async def ask() -> None:
        nonlocal now
        models = ModelsAway([host_of(bundles[0])], are_away=False)
        link = ModelLink("grading", models, clock=lambda: now)
        await link.ready()
        now = 1000.0
        assert not await link.is_silent(15.0)  # nobody has asked them anything
        models.are_away = True
        await link.look()
        now = 1014.0
        assert not await link.is_silent(15.0)
        now = 1015.0
        assert await link.is_silent(15.0)
        models.are_away = False
        assert not await link.is_silent(15.0)  # it asks before it says so

    asyncio.run(ask())


@pytest.mark.parametrize("percent", [0.0, 10.0, 50.0, 100.0])
def test_the_share_of_a_canary(percent: float, tmp_path: Path) -> None:
    import hashlib

    link = ModelLink("grading", ModelsHere([]))
    route = Route(link, link, Trial(canary_percent=percent))
    images = [hashlib.sha256(str(index).encode()).hexdigest() for index in range(2_000)]
    share = sum(route.goes_to_candidate(image) for image in images) / len(images)
    assert share == pytest.approx(percent / 100, abs=0.03)
    assert [route.goes_to_candidate(image) for image in images] == [route.goes_to_candidate(image) for image in images]


def test_without_a_candidate_nothing_goes_to_it() -> None:
    route = Route(ModelLink("grading", ModelsHere([])), None, Trial(canary_percent=100.0))
    assert not route.goes_to_candidate("f" * 64)
