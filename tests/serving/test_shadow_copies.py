"""A shadowing candidate sees copies of photographs: nobody waits for it, and its failures are recorded."""

import asyncio
import hashlib
import threading
from pathlib import Path

import pytest

from retina_ray.bundle import Bundle
from retina_ray.serving.model_host import ModelHost
from retina_ray.serving.model_link import ModelLink
from retina_ray.serving.preparation import Preparation, Prepared
from retina_ray.serving.routing import Route, Trial
from retina_ray.serving.shadow_log import ShadowLog, read_shadow_logs
from tests.serving_links import Broken, Dead, Hanging, ModelsHere, Slow, request, service_of
from tests.serving_photographs import photograph

pytestmark = pytest.mark.serving


def test_a_shadow_sees_copies_and_nobody_waits_for_it(
    hosts: tuple[ModelHost, ModelHost], bundles: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    async def ask() -> None:
        slow = Slow(hosts[1])
        route = Route(ModelLink("grading", ModelsHere([hosts[0]])), ModelLink("grading", slow), Trial(shadow=True))
        service = service_of(route, shadow=ShadowLog(tmp_path, "replica"))
        answers = [await service.grade(request(index)) for index in range(3)]  # while the shadow answers nothing
        assert {answer.model.hash for answer in answers} == {bundles[0].hash}
        slow.go.set()
        assert service._shadow is not None
        await service._shadow.drained()

    asyncio.run(ask())
    records = read_shadow_logs(tmp_path).records
    assert [record.image for record in records] == [hashlib.sha256(photograph(i)).hexdigest() for i in range(3)]
    assert {(record.champion, record.candidate) for record in records} == {(bundles[0].hash, bundles[1].hash)}
    assert all(record.candidate_answer is not None for record in records)


def test_copies_that_a_shadow_is_too_slow_for_are_dropped_and_counted(
    hosts: tuple[ModelHost, ModelHost], tmp_path: Path
) -> None:
    async def ask() -> str:
        slow = Slow(hosts[1])
        route = Route(ModelLink("grading", ModelsHere([hosts[0]])), ModelLink("grading", slow), Trial(shadow=True))
        service = service_of(route, shadow=ShadowLog(tmp_path, "replica"))
        for _ in range(40):
            await service.grade(request())
        return await service.metrics()

    assert 'retina_ray_shadow_copies_dropped_total{model="grading",replica="replica"}' in asyncio.run(ask())


@pytest.mark.parametrize("models", [Dead, Broken, Hanging])
def test_copies_that_a_shadow_fails_on_are_recorded(
    hosts: tuple[ModelHost, ModelHost], bundles: tuple[Bundle, Bundle], tmp_path: Path, models: type[ModelsHere]
) -> None:
    async def ask() -> None:
        links = [ModelLink("grading", each) for each in (ModelsHere([hosts[0]]), models([hosts[1]]))]
        service = service_of(Route(*links, Trial(shadow=True)), shadow=ShadowLog(tmp_path, "replica"))
        assert service._shadow is not None
        service._shadow._seconds = 0.5
        await service.grade(request())
        await service._shadow.drained()

    asyncio.run(ask())
    [record] = read_shadow_logs(tmp_path).records
    assert record.candidate == bundles[1].hash
    assert record.candidate_answer is None


def test_copies_are_prepared_apart_from_photographs_that_are_waited_for(
    hosts: tuple[ModelHost, ModelHost], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    threads = []
    plain = Preparation.prepare

    def noted(self: Preparation, data: bytes, *, name: str = "photograph") -> Prepared:
        threads.append(threading.current_thread().name.partition("_")[0])
        return plain(self, data, name=name)

    monkeypatch.setattr(Preparation, "prepare", noted)

    async def ask() -> None:
        links = [ModelLink("grading", ModelsHere([host])) for host in hosts]
        service = service_of(Route(*links, Trial(shadow=True)), shadow=ShadowLog(tmp_path, "replica"))
        assert service._shadow is not None
        await service.grade(request())
        await service._shadow.drained()

    asyncio.run(ask())
    assert threads == ["prepare", "shadow"]
