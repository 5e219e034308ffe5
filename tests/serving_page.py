"""What the tests of the page do in the browser again and again."""

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import requests

from retina_ray.serving.schema import GradeResponse, TaskGrade
from tests.serving_http import PredictorService


def open_page(browser: Any, url: str, size: dict[str, int]) -> Iterator[Any]:
    """Open the page; whatever the browser complains of or asks another server for fails the test."""
    context = browser.new_context(viewport=size)
    page = context.new_page()
    page.set_default_timeout(10_000)
    complaints: list[str] = []
    # What the page tells its user of is logged by the browser as well.
    page.on("console", lambda line: None if "Failed to load" in line.text else complaints.append(line.text))
    page.on("pageerror", lambda error: complaints.append(str(error)))
    page.on("request", lambda sent: complaints.append(sent.url) if not is_ours(sent.url, url) else None)
    page.goto(url)
    yield page
    context.close()
    assert complaints == []


def is_ours(address: str, url: str) -> bool:
    return address.startswith((f"{url}/", "data:", "blob:"))


def choose(page: Any, file: Path) -> None:
    page.set_input_files("#file", file)


def graded(page: Any) -> None:
    page.locator("#status", has_text=re.compile("^Graded ")).wait_for()


UNSURE = TaskGrade(
    grade=2,
    grade_name="NPDR II",
    probabilities=[0.06, 0.33, 0.41, 0.15, 0.05],
    confidence=0.41,
    referable=True,
    referable_probability=0.61,
    prediction_set=[1, 2, 3],
    coverage=0.9,
    abstain=True,
)
"""What the tiny networks of these tests never are."""


def loaded(page: Any) -> None:
    page.locator("#model option").first.wait_for(state="attached")


def answer_to(service: PredictorService, page: Any) -> GradeResponse:
    """Return the API's own answer to the photograph that the page sent last."""
    asked = service.asked[-1]
    query = {"explain": asked.options.explain, "lesions": str(asked.options.lesions).lower()}
    headers = {"Content-Type": "application/octet-stream"}
    response = requests.post(f"{page.url}v1/grade", asked.photograph, params=query, headers=headers, timeout=20)
    return GradeResponse.model_validate_json(response.content)


def shown(share: float) -> str:
    """Return a probability as the page writes it."""
    whole = "< 1" if share < 0.005 else "> 99" if 0.995 < share < 1 else f"{100 * share:.0f}"
    return f"{whole}\u00a0%"


def in_words(names: list[str]) -> str:
    return names[0] if len(names) == 1 else f"{', '.join(names[:-1])} or {names[-1]}"
