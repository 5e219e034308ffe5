"""A host answers like the predictor, and is given another model without a request that fails."""

import threading
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from retina_ray.bundle import MANIFEST, WEIGHTS, Bundle
from retina_ray.data.synthetic import draw
from retina_ray.serving.exchange import Answer, HostState, Job
from retina_ray.serving.model_host import ModelHost
from retina_ray.serving.predictor import Predictor
from retina_ray.serving.preparation import Prepared
from retina_ray.serving.service import GradeOptions
from tests.bundles import Made, make_everything
from tests.serving_links import host_of

pytestmark = pytest.mark.serving


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Made:
    return make_everything(tmp_path_factory.mktemp("dataset"))


@pytest.fixture(scope="module")
def bundle(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return made.build(tmp_path_factory.mktemp("bundle"))


@pytest.fixture(scope="module")
def other(made: Made, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return made.build(tmp_path_factory.mktemp("other"), name="other")


@pytest.fixture(scope="module")
def prepared(bundle: Bundle) -> list[Prepared]:
    predictor = Predictor(bundle)
    return [predictor.prepare(photograph(index)) for index in range(3)]


def photograph(index: int) -> bytes:
    import simplejpeg

    return bytes(simplejpeg.encode_jpeg(draw(size=128, task="dr", grade=index, seed=3, index=index).image))


def jobs(prepared: list[Prepared], bundle: Bundle, options: GradeOptions | None = None) -> list[Job]:
    return [Job(each, bundle.hash, options or GradeOptions()) for each in prepared]


def answers(found: list[Answer | HostState]) -> list[Answer]:
    assert all(isinstance(each, Answer) for each in found)
    return [each for each in found if isinstance(each, Answer)]


def test_answers_are_those_of_the_predictor(bundle: Bundle, prepared: list[Prepared]) -> None:
    wanted = Predictor(bundle).grade_batch(prepared)
    found = answers(host_of(bundle).answer(jobs(prepared, bundle)))
    for one, two in zip(found, wanted, strict=True):
        for task, grade in two.tasks.items():
            assert one.response.tasks[task].grade == grade.grade
            assert one.response.tasks[task].probabilities == pytest.approx(grade.probabilities, abs=1e-5)
        assert one.response.image == two.image
        assert one.batch_size == 3


def test_jobs_that_want_different_things_are_answered_together(bundle: Bundle, prepared: list[Prepared]) -> None:
    plain, explained = GradeOptions(), GradeOptions(explain="gradcam")
    mixed = [
        Job(prepared[0], bundle.hash, plain),
        Job(prepared[1], bundle.hash, explained),
        *jobs(prepared[2:], bundle),
    ]
    found = answers(host_of(bundle).answer(mixed))
    assert [sorted(each.maps) for each in found] == [[], ["amd", "dr"], []]
    assert [each.batch_size for each in found] == [2, 1, 2]
    wanted = Predictor(bundle).grade_batch(prepared)
    for one, two in zip(found, wanted, strict=True):
        assert one.response.tasks["dr"].probabilities == pytest.approx(two.tasks["dr"].probabilities, abs=1e-5)


def test_what_was_prepared_for_the_model_before_is_still_answered(
    bundle: Bundle, other: Bundle, prepared: list[Prepared]
) -> None:
    host = host_of(bundle)
    assert host.load(other, address="other")
    assert host.state.description is not None
    assert host.state.description.model.hash == other.hash
    for model in (bundle, other):
        assert answers(host.answer(jobs(prepared[:1], model)))[0].response.model.hash == model.hash


def test_what_was_prepared_for_an_unknown_model_gets_the_state(bundle: Bundle, prepared: list[Prepared]) -> None:
    [found] = host_of(bundle).answer([Job(prepared[0], "another", GradeOptions())])
    assert isinstance(found, HostState)
    assert found.description is not None
    assert found.description.model.hash == bundle.hash


def test_a_host_without_a_model_says_so(bundle: Bundle, prepared: list[Prepared]) -> None:
    [found] = host_of().answer(jobs(prepared[:1], bundle))
    assert found == HostState()


def broken(bundle: Bundle, folder: Path) -> Bundle:
    """Return a bundle whose hashes are right and whose weights are not numbers."""
    import hashlib
    import json

    copy = bundle.copy_to(type(bundle.store)(str(folder)))
    weights = {
        name: torch.full_like(tensor, torch.nan) if tensor.is_floating_point() else tensor
        for name, tensor in load_file(folder / WEIGHTS).items()
    }
    save_file(weights, folder / WEIGHTS)
    manifest = json.loads((folder / MANIFEST).read_text())
    manifest["files"][WEIGHTS] = hashlib.sha256((folder / WEIGHTS).read_bytes()).hexdigest()
    (folder / MANIFEST).write_text(json.dumps(manifest))
    assert copy.hash
    return Bundle.load(folder)


def test_a_model_that_fails_its_check_is_refused_and_the_old_one_stays(
    bundle: Bundle, prepared: list[Prepared], tmp_path: Path
) -> None:
    host = host_of(bundle)
    assert not host.load(broken(bundle, tmp_path), address="broken one")
    swap = host.state.swap
    assert swap is not None
    assert (swap.bundle, swap.state) == ("broken one", "refused")
    assert swap.detail
    assert answers(host.answer(jobs(prepared[:1], bundle)))[0].response.model.hash == bundle.hash
    assert host.load(bundle, address="the old one")  # loading what is there already clears the refusal
    assert host.state.swap is None


def test_no_request_fails_while_models_are_swapped(bundle: Bundle, other: Bundle, prepared: list[Prepared]) -> None:
    host = host_of(bundle)
    swapped = threading.Event()

    def swap() -> None:
        for each in (other, bundle, other):
            assert host.load(each, address="next")
        swapped.set()

    thread = threading.Thread(target=swap)
    thread.start()
    seen, hashes = 0, {bundle.hash, other.hash}
    while not swapped.is_set() or seen < 10:
        state = host.state
        assert state.description is not None
        [found] = answers(host.answer([Job(prepared[0], state.description.model.hash, GradeOptions())]))
        assert found.response.model.hash in hashes
        seen += 1
    thread.join()
    assert host.state.swap is None


def test_a_state_says_what_the_model_can_do(bundle: Bundle) -> None:
    state = host_of(bundle).state
    description = state.description
    assert description is not None
    assert description.served_as == "grading"
    assert description.explanations == ["gradcam"]
    assert not description.lesions
    assert not description.enhances
    assert state.low_resolution is None
    assert state.preparation == Predictor(bundle).preparation
    assert description.tasks["dr"].grades == list(bundle.manifest.tasks[0].grades)
    assert description.card.startswith("# ")


def test_a_version_is_told(bundle: Bundle) -> None:
    host = ModelHost(host_of()._settings)
    assert host.load(bundle, address="models:/tiny/3", version=3)
    assert host.state.description is not None
    assert host.state.description.model.version == 3
