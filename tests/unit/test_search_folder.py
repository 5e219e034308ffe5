"""Who may use a search's folder, and when: nothing of a search that runs or was another one is written over."""

from pathlib import Path
from typing import Any

import pytest

from retina_ray.config import RunConfig
from retina_ray.data.store import Store
from retina_ray.errors import ConfigError
from retina_ray.orchestration.search_folder import SearchFolder
from retina_ray.provenance import environment
from tests.helpers import tiny_config

DESCRIBED: dict[str, Any] = {
    "space": "sall",
    "trials": 4,
    "points": ({"method.temperature": 3.0},),
    "artifacts": {"teacher-dr": "train-1", "student-dr": "train-2"},
}


@pytest.fixture
def config(tmp_path: Path) -> RunConfig:
    return tiny_config(tmp_path / "data", tmp_path, name="search")


def written(folder: SearchFolder) -> dict[str, bytes]:
    return {name: folder.store.read_bytes(name) for name in folder.store.list() if name != ".lock"}


def begin(config: RunConfig, described: dict[str, Any] = DESCRIBED, *, resume: bool = False) -> SearchFolder:
    with SearchFolder.claim(config, described, resume=resume) as (folder, resumed):
        assert resumed == resume
        folder.begin(config, described)
    return folder


def test_a_search_that_runs_is_left_alone(config: RunConfig) -> None:
    with SearchFolder.claim(config, DESCRIBED, resume=False) as (folder, resumed):
        assert not resumed
        assert not folder.is_there, "nothing is written before the search begins"
        folder.begin(config, DESCRIBED)
        before = written(folder)
        with (
            pytest.raises(ConfigError, match="the search is running"),
            SearchFolder.claim(config, {**DESCRIBED, "trials": 9}, resume=True),
        ):
            pass
        assert written(folder) == before
    begin(config, resume=True)


def test_a_search_that_exists_is_resumed_only_when_asked(config: RunConfig) -> None:
    folder = begin(config)
    before = written(folder)
    with pytest.raises(ConfigError, match=r"the search exists: .*; add --resume"):
        begin(config)
    assert written(folder) == before
    folder.store.write_bytes("run.json", b"{}")
    with pytest.raises(ConfigError, match="a run has this name"):
        begin(config, resume=True)


def test_a_finished_search_that_is_extended_is_not_finished(config: RunConfig) -> None:
    folder = begin(config)
    assert folder.describe()["finished"] is False
    folder.update(finished=True, winner=2)
    begin(config, {**DESCRIBED, "trials": 8}, resume=True)
    described = folder.describe()
    assert (described["finished"], described["trials"], described["winner"]) == (False, 8, 2)


def test_a_search_goes_on_under_the_conditions_it_began_under(config: RunConfig) -> None:
    folder = begin(config)
    before = written(folder)
    elsewhere = {**DESCRIBED, "artifacts": {"teacher-dr": "train-1", "student-dr": "train-3"}}
    why = "the search to resume was begun under other conditions, which concern: student-dr; resume with the same"
    with pytest.raises(ConfigError, match=why):
        begin(config, elsewhere, resume=True)
    with pytest.raises(ConfigError, match="the search to resume had another space: sall, now deepmt_dr"):
        begin(config, {**elsewhere, "space": "deepmt_dr"}, resume=True)
    assert written(folder) == before


def test_what_is_not_there_is_no_search_to_open(tmp_path: Path) -> None:
    assert not SearchFolder(Store(str(tmp_path))).is_there
    with pytest.raises(ConfigError, match="not a search"):
        SearchFolder.open(str(tmp_path))


def test_the_sampler_is_named_among_the_versions() -> None:
    assert environment()["versions"]["optuna"][0].isdigit()
