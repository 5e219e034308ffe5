"""A model as replicas hold it: what it answers with when bundles are refused, tried again or taken away."""

import asyncio
import shutil
from pathlib import Path

import pytest

from retina_ray.bundle import Bundle
from retina_ray.errors import BundleError
from retina_ray.serving.exchange import Answer, Failed, Job
from retina_ray.serving.service import GradeOptions
from serve_apps.arguments import ModelArguments, ModelSettings
from serve_apps.hosted_model import HostedModel
from serve_apps.ingress import LocalTransport
from tests.bundles import make_everything
from tests.serving.test_model_host import broken
from tests.serving_photographs import photograph


@pytest.fixture(scope="module")
def bundles(tmp_path_factory: pytest.TempPathFactory) -> dict[str, str]:
    folder = tmp_path_factory.mktemp("bundles")
    made = make_everything(folder / "dataset")
    found = {name: made.build(folder / name, name=name).store.uri for name in ("first", "second")}
    return found | {"broken": broken(Bundle.load(found["first"]), folder / "broken").store.uri}


def hosted(*, keeps: bool = True) -> HostedModel:
    return HostedModel("grading", ModelArguments(max_batch=4), "runs", keeps=keeps)


def hash_of(model: HostedModel) -> str | None:
    description = model.state().description
    return None if description is None else description.model.hash


async def loaded(model: HostedModel) -> None:
    assert model._change is not None
    await model._change


def test_a_replica_that_starts_with_a_refused_bundle_answers_with_the_one_before(bundles: dict[str, str]) -> None:
    async def run() -> None:
        model = hosted()
        await model.use(ModelSettings(bundle=bundles["broken"], previous=bundles["first"]))
        assert hash_of(model) == Bundle.load(bundles["first"]).hash
        swap = model.state().swap
        assert swap is not None
        assert (swap.bundle, swap.state) == (bundles["broken"], "refused")
        with pytest.raises(BundleError, match="the model is refused"):
            await hosted().use(ModelSettings(bundle=bundles["broken"]))

    asyncio.run(run())


def test_a_bundle_that_was_away_is_tried_again(bundles: dict[str, str], tmp_path: Path) -> None:
    async def run() -> None:
        model = hosted()
        await model.use(ModelSettings(bundle=bundles["first"]))
        later = str(tmp_path / "later")
        await model.use(ModelSettings(bundle=later))
        await loaded(model)
        swap = model.state().swap
        assert swap is not None
        assert swap.state == "refused"
        shutil.copytree(bundles["second"], later)
        await model.use(ModelSettings(bundle=later))
        await loaded(model)
        assert hash_of(model) == Bundle.load(bundles["first"]).hash, "nothing has changed"
        await model.use(ModelSettings(bundle=later, attempt=1))
        await loaded(model)
        assert hash_of(model) == Bundle.load(bundles["second"]).hash
        assert model.state().swap is None

    asyncio.run(run())


def test_a_candidate_never_answers_in_the_name_of_the_next_one(bundles: dict[str, str]) -> None:
    async def run() -> None:
        model = hosted(keeps=False)
        await model.use(ModelSettings(bundle=bundles["first"]))
        with pytest.raises(BundleError, match="the model is refused"):
            await model.use(ModelSettings(bundle=bundles["broken"]))
        assert hash_of(model) is None
        await model.use(ModelSettings(bundle=bundles["second"]))
        assert hash_of(model) == Bundle.load(bundles["second"]).hash
        await model.use(ModelSettings())
        assert hash_of(model) is None

    asyncio.run(run())


def test_models_in_one_process_answer_each_for_itself(bundles: dict[str, str]) -> None:
    async def run() -> None:
        models = {name: hosted() for name in ("first", "second")}
        transports = {}
        for name, model in models.items():
            await model.use(ModelSettings(bundle=bundles[name]))
            transports[name] = LocalTransport(model)
        preparation = models["first"].state().preparation
        assert preparation is not None
        prepared = preparation.prepare(photograph())
        asked = ["first", "second"] * 4
        hashes = {name: Bundle.load(bundles[name]).hash for name in transports}
        jobs = [Job(prepared, hashes[name], GradeOptions()) for name in asked]
        answers = await asyncio.gather(*(transports[name].answer(job) for name, job in zip(asked, jobs, strict=True)))
        for name, answer in zip(asked, answers, strict=True):
            assert isinstance(answer, Answer)
            assert answer.response.model.hash == hashes[name]
        # All that came in one moment is one batch of each.
        assert [answer.batch_size for answer in answers if isinstance(answer, Answer)] == [4] * 8

    asyncio.run(run())


def test_what_fails_fails_alone(bundles: dict[str, str]) -> None:
    async def run() -> None:
        model = hosted()
        await model.use(ModelSettings(bundle=bundles["first"]))
        preparation = model.state().preparation
        assert preparation is not None
        prepared = preparation.prepare(photograph())
        hash_ = Bundle.load(bundles["first"]).hash
        # These networks segment nothing, which whoever sends jobs checks; here nobody has.
        jobs = [Job(prepared, hash_, GradeOptions(lesions=lesions)) for lesions in (False, True)]
        first, graded, failed = await asyncio.gather(*map(model.answer, [jobs[0], *jobs]))
        assert isinstance(first, Answer)
        assert isinstance(graded, Answer)
        assert isinstance(failed, Failed)
        assert failed.detail == "ValueError"

    asyncio.run(run())
