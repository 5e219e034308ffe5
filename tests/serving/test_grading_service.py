"""An endpoint's process: bounds, audit before answers, canaries, pictures, what it does without models or a hub."""

import asyncio
import hashlib
import json
from pathlib import Path

import cv2
import numpy as np
import pytest

from retina_ray.bundle import Bundle
from retina_ray.serving import grading_service, model_link
from retina_ray.serving.audit import AuditLog
from retina_ray.serving.grading_service import ServiceLimits
from retina_ray.serving.hub import Hub, Report
from retina_ray.serving.keys import ApiKey, ApiKeys
from retina_ray.serving.model_host import ModelHost
from retina_ray.serving.model_link import ModelLink
from retina_ray.serving.refusals import RefusedError
from retina_ray.serving.routing import Route, Trial
from retina_ray.serving.schema import GradeResponse
from retina_ray.serving.service import GradeOptions
from tests.serving_links import (
    Broken,
    Dead,
    Hanging,
    HubAway,
    HubHere,
    ModelsAway,
    ModelsHere,
    Slow,
    forever,
    host_of,
    request,
    run,
    service_of,
)
from tests.serving_photographs import photograph

pytestmark = pytest.mark.serving


def champion(host: ModelHost) -> Route:
    return Route(ModelLink("grading", ModelsHere([host])))


def test_an_answer_is_complete(hosts: tuple[ModelHost, ModelHost], bundles: tuple[Bundle, Bundle]) -> None:
    answer = run(lambda: service_of(champion(hosts[0])).grade(request()))
    assert set(answer.tasks) == {"dr", "amd"}
    assert answer.request_id == "r0"
    assert answer.model.hash == bundles[0].hash
    assert answer.timing.total_ms is not None
    assert answer.timing.total_ms >= answer.timing.prepare_ms
    assert answer.explanation is None
    assert answer.lesions is None
    assert answer.enhanced is None


def test_an_overlay_is_drawn_over_the_square(hosts: tuple[ModelHost, ModelHost]) -> None:
    service = service_of(champion(hosts[0]))
    answer = run(lambda: service.grade(request(options=GradeOptions(explain="gradcam"))))
    sent = GradeResponse.model_validate_json(answer.model_dump_json())  # as the sender gets it
    assert sent.explanation is not None
    assert set(sent.explanation.tasks) == {"dr", "amd"}
    for file in sent.explanation.tasks.values():
        picture = cv2.imdecode(np.frombuffer(file, np.uint8), cv2.IMREAD_COLOR)
        assert picture is not None
        assert picture.shape == (64, 64, 3)
        assert picture.std() > 5


@pytest.mark.parametrize(
    ("data", "kind", "reason"),
    [
        (b"no image", "unreadable-image", "send it again"),
        (cv2.imencode(".png", np.full((100, 100, 3), 90, np.uint8))[1].tobytes(), "no-fundus", "no fundus found"),
    ],
)
def test_a_photograph_that_cannot_be_graded_is_refused_with_a_verdict(
    hosts: tuple[ModelHost, ModelHost], tmp_path: Path, data: bytes, kind: str, reason: str
) -> None:
    service = service_of(champion(hosts[0]), audit=AuditLog(tmp_path, "replica"))
    with pytest.raises(RefusedError) as refused:
        run(lambda: service.grade(request(data=data)))
    assert refused.value.kind == kind
    assert refused.value.image is not None
    assert reason in str(refused.value.image.reason)
    [log] = tmp_path.glob("*.audit.jsonl")
    [line] = [json.loads(line) for line in log.read_text().splitlines()]
    assert line["answer"] == {"refused": kind}
    assert line["image"] == hashlib.sha256(data).hexdigest()


def test_the_audit_line_is_written_before_the_answer_is_given(
    hosts: tuple[ModelHost, ModelHost], bundles: tuple[Bundle, Bundle], tmp_path: Path
) -> None:
    service = service_of(champion(hosts[0]), audit=AuditLog(tmp_path, "replica"))
    answer = run(lambda: service.grade(request()))
    [log] = tmp_path.glob("*.audit.jsonl")
    [line] = [json.loads(line) for line in log.read_text().splitlines()]
    assert (line["request"], line["key"], line["model"]) == ("r0", "clinic", bundles[0].hash)
    assert line["answer"]["tasks"]["dr"]["grade"] == answer.tasks["dr"].grade


def test_an_answer_that_cannot_be_logged_does_not_leave(hosts: tuple[ModelHost, ModelHost], tmp_path: Path) -> None:
    log = AuditLog(tmp_path, "replica")
    log.close()  # as on a full disk, every write fails
    with pytest.raises(RefusedError, match="audit log cannot be written"):
        run(lambda: service_of(champion(hosts[0]), audit=log).grade(request()))


def test_more_than_the_limit_is_refused_at_once(hosts: tuple[ModelHost, ModelHost]) -> None:
    async def overload() -> None:
        slow = Slow(hosts[0])
        service = service_of(Route(ModelLink("grading", slow)), limits=ServiceLimits(in_flight=2))
        taken = [asyncio.create_task(service.grade(request(index))) for index in range(2)]
        for _ in taken:
            await slow.here.acquire()
        with pytest.raises(RefusedError) as refused:
            await service.grade(request(2))
        assert refused.value.kind == "overloaded"
        assert refused.value.retry_after
        slow.go.set()
        assert len(await asyncio.gather(*taken)) == 2
        assert await service.grade(request(2))  # there is room again

    asyncio.run(overload())


def test_an_answer_that_takes_too_long_is_given_up(hosts: tuple[ModelHost, ModelHost]) -> None:
    async def wait() -> None:
        slow = Slow(hosts[0])
        service = service_of(Route(ModelLink("grading", slow)), limits=ServiceLimits(seconds=0.05))
        with pytest.raises(RefusedError) as refused:
            await service.grade(request())
        assert refused.value.kind == "timeout"
        assert "0.05 s" in refused.value.detail

    asyncio.run(wait())


def test_an_unknown_model_and_an_unknown_wish_are_refused(hosts: tuple[ModelHost, ModelHost]) -> None:
    service = service_of(champion(hosts[0]))
    with pytest.raises(RefusedError, match="grading") as refused:
        run(lambda: service.grade(request(model="glaucoma")))
    assert refused.value.kind == "unknown-model"
    for options in (GradeOptions(explain="gmsv"), GradeOptions(lesions=True), GradeOptions(enhance=True)):
        with pytest.raises(RefusedError) as refused:
            run(lambda options=options: service.grade(request(options=options)))
        assert refused.value.kind == "unsupported"


def test_a_repetition_is_neither_computed_nor_logged_again(hosts: tuple[ModelHost, ModelHost], tmp_path: Path) -> None:
    models = ModelsHere([hosts[0]])
    service = service_of(Route(ModelLink("grading", models)), audit=AuditLog(tmp_path, "replica"))

    async def twice() -> None:
        first = await service.grade(request(idempotency_key="k"))
        assert await service.grade(request(idempotency_key="k")) is first
        with pytest.raises(RefusedError) as refused:
            await service.grade(request(1, idempotency_key="k"))
        assert refused.value.kind == "key-reused"

    asyncio.run(twice())
    assert len(models.jobs) == 1
    [log] = tmp_path.glob("*.audit.jsonl")
    assert len(log.read_text().splitlines()) == 1


def test_a_canary_answers_its_share(hosts: tuple[ModelHost, ModelHost], bundles: tuple[Bundle, Bundle]) -> None:
    links = [ModelLink("grading", ModelsHere([host])) for host in hosts]
    route = Route(*links, Trial(canary_percent=50.0))

    async def ask() -> list[bool]:
        service = service_of(route)
        found = []
        for index in range(16):
            answer = await service.grade(request(index))
            to_candidate = route.goes_to_candidate(hashlib.sha256(photograph(index)).hexdigest())
            assert answer.model.hash == bundles[1 if to_candidate else 0].hash
            found.append(to_candidate)
        return found

    assert set(asyncio.run(ask())) == {True, False}


def test_the_champion_answers_for_a_canary_that_is_not_ready(
    hosts: tuple[ModelHost, ModelHost], bundles: tuple[Bundle, Bundle]
) -> None:
    candidate = ModelLink("grading", ModelsHere([host_of()]), waits=False)
    route = Route(ModelLink("grading", ModelsHere([hosts[0]])), candidate, Trial(canary_percent=100.0))
    answer = run(lambda: service_of(route).grade(request()))
    assert answer.model.hash == bundles[0].hash


def canary(hosts: tuple[ModelHost, ModelHost], candidate: ModelsHere) -> Route:
    links = [ModelLink("grading", models) for models in (ModelsHere([hosts[0]]), candidate)]
    return Route(*links, Trial(canary_percent=100.0))


@pytest.mark.parametrize("models", [Dead, Broken, Hanging])
def test_the_champion_answers_for_a_canary_that_fails_or_is_slow(
    hosts: tuple[ModelHost, ModelHost],
    bundles: tuple[Bundle, Bundle],
    models: type[ModelsHere],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    monkeypatch.setattr(grading_service, "_CANDIDATE_SHARE", 0.01)  # of 30 s
    answer = run(lambda: service_of(canary(hosts, models([hosts[1]]))).grade(request()))
    assert answer.model.hash == bundles[0].hash


def test_a_canary_leaves_the_champion_most_of_the_time() -> None:
    assert 0.0 < grading_service._CANDIDATE_SHARE < 0.5


def test_what_is_wrong_with_a_photograph_a_canary_tells_the_user(hosts: tuple[ModelHost, ModelHost]) -> None:
    service = service_of(canary(hosts, ModelsHere([hosts[1]])))
    with pytest.raises(RefusedError) as refused:
        run(lambda: service.grade(request(data=b"no image")))
    assert refused.value.kind == "unreadable-image"


def test_a_key_is_limited(hosts: tuple[ModelHost, ModelHost]) -> None:
    hub = HubHere(Hub(ApiKeys([ApiKey(id="clinic", sha256="0" * 64, per_minute=3)]), None))

    async def ask() -> None:
        service = service_of(champion(hosts[0]), hub=hub)
        await service.admit("clinic", 3)
        with pytest.raises(RefusedError) as refused:
            await service.admit("clinic", 1)
        assert refused.value.kind == "rate-limited"

    asyncio.run(ask())


def test_models_are_described_with_their_replicas_and_a_refused_successor(
    hosts: tuple[ModelHost, ModelHost], bundles: tuple[Bundle, Bundle]
) -> None:
    from retina_ray.errors import BundleError

    hub = HubHere()
    host = host_of(bundles[0])
    host.refuse("models:/tiny/2", str(BundleError("it is damaged", "x", "y")))
    hub.hub.report(Report("model", served_as="grading", host=host.state))

    async def ask() -> None:
        service = service_of(champion(host), hub=hub)
        [description] = (await service.models()).models
        assert description.replicas == 1
        assert description.rollout is not None
        assert description.rollout.state == "refused"
        assert "it is damaged" in description.rollout.detail
        assert await service.not_ready() is None

    asyncio.run(ask())


def test_a_process_without_a_model_says_why_it_is_not_ready() -> None:
    service = service_of(champion(host_of()))

    async def ask() -> str | None:
        return await service.not_ready()

    assert "grading" in str(asyncio.run(ask()))


def test_a_process_whose_model_has_been_away_for_long_is_not_ready(
    hosts: tuple[ModelHost, ModelHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model_link, "_STATE_S", 0.05)
    now = 0.0

    async def ask() -> None:
        nonlocal now
        models = ModelsAway([hosts[0]], are_away=False)
        service = service_of(Route(ModelLink("grading", models, clock=lambda: now)))
        assert await service.not_ready() is None
        models.are_away = True
        for seconds in (2.0, 10.0, 16.0):
            now = seconds
            assert await service.not_ready() is None  # a replica that was killed is back by then
            await asyncio.sleep(0)  # the question goes out
        now = 17.0
        assert "no replica of the model answers: grading" in str(await service.not_ready())
        models.are_away = False
        assert await service.not_ready() is None

    asyncio.run(ask())


def test_nobody_waits_long_for_a_hub_that_is_away(
    hosts: tuple[ModelHost, ModelHost], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(grading_service, "_HUB_S", 0.05)

    async def ask() -> None:
        service = service_of(champion(hosts[0]), hub=HubAway())
        for way in (lambda: service.admit("clinic", 1), service.metrics, service.models):
            with pytest.raises(RefusedError, match="at the moment; repeat the request") as refused:
                await way()
            assert refused.value.kind == "overloaded"
            assert refused.value.retry_after

    asyncio.run(ask())


@pytest.mark.parametrize("away", [False, True])
def test_what_the_hub_did_not_take_it_is_told_again(
    hosts: tuple[ModelHost, ModelHost], bundles: tuple[Bundle, Bundle], monkeypatch: pytest.MonkeyPatch, away: bool
) -> None:
    monkeypatch.setattr(grading_service, "_HUB_S", 0.05)
    taken: list[Report] = []

    class Restarting(HubHere):
        is_back = False

        async def report(self, report: Report) -> None:
            if not self.is_back:
                await forever() if away else None
                raise ConnectionError
            taken.append(report)

    async def ask() -> None:
        hub = Restarting()
        service = service_of(champion(hosts[0]), hub=hub)
        for index in range(2):
            await service.grade(request(index))
            with pytest.raises(TimeoutError if away else ConnectionError):
                await service.report()
        await service.grade(request(2))
        hub.is_back = True
        await service.report()
        await service.report()

    asyncio.run(ask())
    assert [{watched: counts.images for watched, counts in report.drift.items()} for report in taken] == [
        {("grading", bundles[0].hash): 3},
        {},
    ]
