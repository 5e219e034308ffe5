"""The published data sets: the command line, the readers and docs/data.md name the same ones and the same labels."""

import re
from importlib import import_module
from pathlib import Path

import pytest

from retina_ray.cli.data import Adapter
from retina_ray.data.sources.published import PUBLISHED

DOCS = (Path(__file__).resolve().parents[2] / "docs" / "data.md").read_text(encoding="utf-8")
SECTIONS = dict(re.findall(r"^## (\w+)\n(.*?)(?=^## |\Z)", DOCS, re.MULTILINE | re.DOTALL))


def test_the_command_line_offers_each_adapter():
    assert {adapter.value for adapter in Adapter} == {"csv", "folder", *PUBLISHED}


def test_the_docs_have_a_section_for_each_adapter():
    assert list(SECTIONS) == list(PUBLISHED)


@pytest.mark.parametrize("name", PUBLISHED)
def test_the_docs_name_each_publishers_page_and_each_original_label(name: str):
    module = import_module(f"retina_ray.data.sources.{name}")
    pages = re.findall(r"https://[^\s,)]+[^\s,).:]", module.__doc__)
    assert pages
    assert [page for page in pages if page not in SECTIONS[name]] == []
    labels = [*getattr(module, "LABELS", ()), *getattr(module, "KEYWORDS", ()), *getattr(module, "UNSURE", ())]
    assert labels
    assert [label for label in labels if f"`{label}`" not in SECTIONS[name]] == []


def test_the_docs_map_each_keyword_of_odir_to_its_grades():
    from retina_ray.data.sources.odir import KEYWORDS

    table = dict.fromkeys(KEYWORDS, "")
    for labels, tasks, grades in re.findall(r"^\| (`.*?) \| (.*?) \| (.*?) \|$", SECTIONS["odir"], re.MULTILINE):
        table |= {label: (tasks, grades) for label in re.findall(r"`(.*?)`", labels) if label in KEYWORDS}
    assert table == {
        label: (", ".join(grades), ", ".join(map(str, grades.values()))) for label, grades in KEYWORDS.items()
    }
