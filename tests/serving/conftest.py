"""Fixtures that several files share: a client and a server that misbehaves, a champion and its candidate."""

from collections.abc import Iterator

import pytest

from retina_ray.bundle import Bundle
from retina_ray.client import Client
from retina_ray.serving.model_host import ModelHost
from tests.bundles import make_everything
from tests.misbehaving import Server, Time, serving
from tests.serving_links import host_of


@pytest.fixture
def server() -> Iterator[Server]:
    with serving(Server()) as running:
        yield running


@pytest.fixture
def time_() -> Time:
    return Time()


@pytest.fixture
def client(server: Server, time_: Time) -> Iterator[Client]:
    with Client(server.url, "rr_key", clock=time_.clock) as ours:
        yield ours


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> tuple[Bundle, Bundle]:
    made = make_everything(tmp_path_factory.mktemp("dataset"))
    return made.build(tmp_path_factory.mktemp("a")), made.build(tmp_path_factory.mktemp("b"), name="candidate")


@pytest.fixture(scope="module")
def hosts(bundles: tuple[Bundle, Bundle]) -> tuple[ModelHost, ModelHost]:
    return host_of(bundles[0]), host_of(bundles[1])
