"""Every figure of DeepMT-DR at the debug budget, from its name to its files."""

from pathlib import Path

import pytest

from retina_ray.reproduce.catalogue import EXPERIMENTS
from tests.reproducing import expect_all_files


@pytest.mark.timeout(300)
@pytest.mark.parametrize("name", [name for name in EXPERIMENTS if name.startswith("deepmt-figure")])
def test_an_experiment_runs_from_its_name_to_its_files(
    name: str, storage: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    expect_all_files(name, storage, capsys)
