"""The client and the web application understand each other: both real, over a real socket."""

from collections.abc import Iterator
from hashlib import sha256
from pathlib import Path

import pytest

from retina_ray.client import Client, RequestError
from retina_ray.client_transport import Clock
from retina_ray.serving.keys import ApiKey, ApiKeys
from retina_ray.serving.refusals import RefusedError
from tests.bundles import make_everything
from tests.serving_http import SETTINGS, PredictorService, served, wall
from tests.serving_photographs import photograph

KEY = "rr_of-a-clinic"


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[PredictorService, str]]:
    bundle = make_everything(tmp_path_factory.mktemp("dataset")).build(tmp_path_factory.mktemp("bundle"))
    service = PredictorService(bundle, draws=True)
    clinic = ApiKey(id="clinic", sha256=sha256(KEY.encode()).hexdigest(), per_minute=600, scopes=("grade",))
    with served(service, keys=ApiKeys((clinic,))) as url:
        yield service, url


@pytest.fixture
def service(running: tuple[PredictorService, str]) -> Iterator[PredictorService]:
    running[0].asked.clear()
    yield running[0]
    running[0].refusal = running[0].starting = None


@pytest.fixture
def url(running: tuple[PredictorService, str]) -> str:
    return running[1]


@pytest.fixture
def client(url: str) -> Iterator[Client]:
    with Client(url, KEY) as ours:
        yield ours


def test_every_answer_is_understood(service: PredictorService, client: Client) -> None:
    plain = client.grade(photograph())
    rich = client.grade(photograph(), model="tiny", explain="gradcam", lesions=True, enhance=True)
    assert plain.tasks.keys() == rich.tasks.keys() == {"dr", "amd"}
    assert plain.explanation is None
    assert rich.explanation is not None
    assert rich.lesions is not None
    pictures = [*rich.explanation.tasks.values(), rich.enhanced, *(found.mask for found in rich.lesions.values())]
    assert all(picture is not None and picture.startswith(b"\x89PNG\r\n") for picture in pictures)
    assert [model.served_as for model in client.models().models] == ["tiny"]


def test_a_bad_photograph_in_a_batch_fails_alone(service: PredictorService, client: Client, tmp_path: Path) -> None:
    file = tmp_path / "eye.jpg"
    file.write_bytes(photograph(1))
    first, second = client.grade_batch([wall(), file]).photographs
    assert (first.name, second.name) == ("1", str(file))
    assert first.problem is not None
    assert first.problem.type == "no-fundus"
    assert second.answer is not None
    assert second.answer.tasks == client.grade(file).tasks


def test_a_service_that_is_not_ready_is_told_from_one_that_is(service: PredictorService, client: Client) -> None:
    assert client.ready()
    service.starting = "the model is warming up"
    assert not client.ready()


def test_refusals_arrive_with_their_reason(service: PredictorService, client: Client, url: str) -> None:
    with pytest.raises(RequestError, match="no fundus") as caught:
        client.grade(wall())
    assert caught.value.problem is not None
    assert caught.value.problem.image is not None
    with Client(url, "rr_of-somebody") as stranger, pytest.raises(RequestError) as unknown:
        stranger.grade(photograph())
    with pytest.raises(RequestError) as large:
        client.grade(bytes(3 * SETTINGS.max_body_bytes))
    assert (unknown.value.status, large.value.status) == (401, 413)


def test_an_overloaded_service_is_asked_again_when_it_says(service: PredictorService, url: str) -> None:
    waits: list[float] = []

    def rest(seconds: float) -> None:
        waits.append(seconds)
        service.refusal = None

    service.refusal = RefusedError("overloaded", "all are busy; wait 2 s", retry_after=2.0)
    with Client(url, KEY, clock=Clock(sleep=rest)) as client:
        assert client.grade(photograph()).tasks.keys() == {"dr", "amd"}
    [wait] = waits
    assert 2.0 < wait < 3.0
    first, second = service.asked
    assert first.idempotency_key == second.idempotency_key is not None
