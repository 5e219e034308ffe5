"""The API keeps what its description promises: schemathesis sends what it allows and what it forbids."""

import re
from collections.abc import Iterator
from typing import Any, get_args

import pytest
import requests
import schemathesis
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from schemathesis import Case, GenerationMode
from schemathesis.specs.openapi.checks import negative_data_rejection

from retina_ray.serving.http_description import IMAGE_TYPES
from retina_ray.serving.refusals import Kind
from retina_ray.serving.schema import BatchResponse, GradeResponse, Problem
from tests.bundles import make_everything
from tests.serving_http import PredictorService, served
from tests.serving_photographs import photograph

PHOTOGRAPHS = st.sampled_from([photograph(0), photograph(1)])
"""What a valid body is: that other bytes are refused is tested elsewhere, with many more of them."""

for media_type in IMAGE_TYPES:
    schemathesis.openapi.media_type(media_type, PHOTOGRAPHS)
schemathesis.openapi.format("binary", PHOTOGRAPHS)


@pytest.fixture(scope="module")
def url(tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    bundle = make_everything(tmp_path_factory.mktemp("dataset")).build(tmp_path_factory.mktemp("bundle"))
    with served(PredictorService(bundle, draws=True)) as address:
        yield address


@pytest.fixture(scope="module")
def document(url: str) -> dict[str, Any]:
    found: dict[str, Any] = requests.get(f"{url}/v1/openapi.json", timeout=20).json()
    return found


@pytest.fixture(scope="module")
def api(url: str) -> Any:
    return schemathesis.openapi.from_url(f"{url}/v1/openapi.json")


OPERATIONS = {
    ("/v1/grade", "post"): 25,
    ("/v1/grade/batch", "post"): 25,
    ("/v1/models", "get"): 3,
    ("/healthz", "get"): 3,
    ("/readyz", "get"): 3,
    ("/metrics", "get"): 3,
}
"""Requests to each, of either kind."""


@pytest.mark.parametrize("mode", GenerationMode)
@pytest.mark.parametrize(("path", "method"), OPERATIONS)
def test_the_api_keeps_its_promises(api: Any, path: str, method: str, mode: GenerationMode) -> None:
    operation = api[path][method]
    if mode is GenerationMode.NEGATIVE and method == "get":
        return  # nothing in the request can be wrong

    @given(operation.as_strategy(generation_mode=mode))
    @settings(max_examples=OPERATIONS[path, method], suppress_health_check=[*HealthCheck])
    def keeps_its_promises(case: Case) -> None:
        # In a form, a value of another type in the place of the list is one part like any other: a bad photograph.
        excluded = [negative_data_rejection] if path == "/v1/grade/batch" else []
        case.call_and_validate(excluded_checks=excluded)

    keeps_its_promises()


def test_every_route_is_described(document: dict[str, Any]) -> None:
    assert document["openapi"].startswith("3.1.")
    methods = {(path, method) for path, operations in document["paths"].items() for method in operations}
    assert methods == OPERATIONS.keys()


def test_every_reference_leads_somewhere(document: dict[str, Any]) -> None:
    schemas = document["components"]["schemas"]
    references = set(re.findall(r"'\$ref': '#/components/schemas/([^']+)'", str(document)))
    assert "Problem" in references
    assert references <= schemas.keys()
    assert all(schemas[name].get("description") for name in references), "a schema says what it is"


def test_every_refusal_is_described_with_an_example(document: dict[str, Any]) -> None:
    seen = set()
    for operation in document["paths"].values():
        for details in operation.values():
            for status, response in details["responses"].items():
                assert response["description"]
                for media_type, content in response.get("content", {}).items():
                    if media_type != "application/problem+json":
                        assert status == "200"
                        continue
                    for example in content["examples"].values():
                        problem = Problem.model_validate(example["value"])
                        assert str(problem.status) == status
                        seen.add(problem.type)
    # What there is no example of: an address that is described cannot be one where nothing is.
    assert seen == {*get_args(Kind), "unsupported-media-type"} - {"not-found"}


def test_the_examples_of_answers_are_answers(document: dict[str, Any]) -> None:
    def example(path: str) -> Any:
        return document["paths"][path]["post"]["responses"]["200"]["content"]["application/json"]["example"]

    graded = GradeResponse.model_validate(example("/v1/grade")).tasks["dr"]
    assert sum(graded.probabilities) == pytest.approx(1)
    assert graded.referable_probability == pytest.approx(sum(graded.probabilities[2:]))
    kinds = [item.problem is None for item in BatchResponse.model_validate(example("/v1/grade/batch")).photographs]
    assert kinds == [True, False]
