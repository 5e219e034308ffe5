"""What the pages on data say about words that the code prints."""

from pathlib import Path

import pytest

from retina_ray.data.conversion import UNREADABLE
from retina_ray.data.refusals import FIXES
from retina_ray.data.schema import KNOWN_TASKS, SPLIT_WORDS
from retina_ray.data.sources.base import SUFFIXES

DOCS = Path(__file__).resolve().parents[2] / "docs"


@pytest.mark.parametrize("kind", [*FIXES, UNREADABLE])
def test_every_kind_of_refusal_is_explained(kind):
    assert f"`{kind}`" in (DOCS / "ingest.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("words", [SUFFIXES, SPLIT_WORDS])
def test_every_word_that_is_read_is_named(words):
    text = (DOCS / "ingest.md").read_text(encoding="utf-8")
    assert [word for word in words if word not in text] == []


@pytest.mark.parametrize("task", ["dr", "dme", "amd"])
def test_grades_have_the_names_that_inspect_prints(task):
    text = " ".join((DOCS / "data.md").read_text(encoding="utf-8").split())
    names = ", ".join(f"{grade} {name}" for grade, name in enumerate(KNOWN_TASKS[task].grades))
    assert f"`{task}`: {names}" in text
