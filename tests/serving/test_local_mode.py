"""The application in Serve's local mode: its real deployments and handles, in one process."""

import asyncio
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import requests
from ray import serve

from retina_ray.bundle import Bundle
from serve_apps.app import build
from serve_apps.arguments import Arguments
from tests.bundles import make_everything
from tests.helpers import warm_processes
from tests.replica_context import replica_context
from tests.serving_http import listening_app, post, wait_until
from tests.serving_photographs import photograph

_CALLABLES: dict[int, Callable[..., Any]] = {}
_NUMBERS = itertools.count()


def _callable(number: int) -> Callable[..., Any]:
    return _CALLABLES[number]


class Carried:
    """A function that stays what it is where a handle pickles and unpickles its arguments."""

    def __init__(self, function: Callable[..., Any]) -> None:
        self._number = next(_NUMBERS)
        _CALLABLES[self._number] = function

    def __reduce__(self) -> tuple[Callable[..., Any], tuple[int]]:
        return _callable, (self._number,)


@pytest.mark.ray
def test_the_application_answers_in_serves_local_mode(tmp_path: Path) -> None:
    # In a process of its own: the local mode has no end, so what it opened would stay open.
    process = warm_processes().Process(target=answer_in_local_mode, args=(tmp_path,))
    process.start()
    process.join(100)
    assert process.exitcode == 0


def answer_in_local_mode(tmp_path: Path) -> None:
    serve.context._INTERNAL_REPLICA_CONTEXT = replica_context()
    made = make_everything(tmp_path / "dataset")
    bundles = [made.build(tmp_path / name, name=name) for name in ("first", "second")]
    arguments = Arguments.model_validate({"models": {"grading": {}}, "layout": "one_hop", "audit": str(tmp_path)})
    handle = serve.run(build(arguments), _local_testing_mode=True)

    def use(bundle: Bundle) -> None:
        models = {"grading": {"bundle": bundle.store.uri}}
        handle.reconfigure.remote({"models": models}).result()

    async def app(scope: Any, receive: Any, send: Any) -> None:
        loop = asyncio.get_running_loop()

        def here(function: Callable[..., Any]) -> Carried:
            """Return what calls a function in this loop; the deployment runs in another."""

            async def call(*arguments: Any) -> Any:
                return await asyncio.wrap_future(asyncio.run_coroutine_threadsafe(function(*arguments), loop))

            return Carried(call)

        await handle.remote(scope, here(receive), here(send))

    with listening_app(app) as url:
        assert requests.get(f"{url}/readyz", timeout=20).status_code == 503
        for bundle in bundles:  # the second is loaded beside the first
            use(bundle)
            wait_until(lambda: answering(url) == bundle.hash, "the model answers")  # noqa: B023
        assert requests.get(f"{url}/readyz", timeout=20).status_code == 200
        assert post(url, b"no image").status_code == 422
    assert len(list(tmp_path.glob("*.audit.jsonl"))) == 1


def answering(url: str) -> str | None:
    """Return the hash of the model that answers; what an endpoint knows of a model is a second old."""
    answer = post(url, photograph())
    return str(answer.json()["model"]["hash"]) if answer.status_code == 200 else None
