"""Keys that are added to the file, and taken from it, while a service runs."""

import logging
import os
from pathlib import Path

import pytest

from retina_ray.errors import ConfigError
from retina_ray.serving.hub import Hub
from retina_ray.serving.key_file import KeyFile
from retina_ray.serving.keys import add, as_yaml, issue
from retina_ray.serving.refusals import RefusedError


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def path(tmp_path: Path) -> Path:
    return tmp_path / "keys.yaml"


def test_a_new_key_may_ask_and_one_that_was_removed_may_not(path: Path) -> None:
    (first, entry), (second, other) = issue("first", 10, ["grade"]), issue("second", 20, ["grade"])
    add(path, entry)
    clock = Clock()
    keys = KeyFile(path, clock)
    assert keys.check(first, "grade").id == "first"
    add(path, other)
    with pytest.raises(RefusedError):
        keys.check(second, "grade")  # the file is not looked at for every request
    clock.now = 1.0
    assert keys.check(second, "grade").id == "second"
    path.write_text("keys:\n" + as_yaml(other))
    clock.now = 2.0
    assert keys.per_minute == {"second": 20}
    with pytest.raises(RefusedError):
        keys.check(first, "grade")


@pytest.mark.parametrize("spoilt", ["keys: [", "keys: []", None])
def test_a_file_that_was_spoilt_leaves_the_keys_and_is_logged_once(
    path: Path, spoilt: str | None, caplog: pytest.LogCaptureFixture
) -> None:
    text, entry = issue("clinic", 10, ["grade"])
    add(path, entry)
    clock = Clock()
    keys = KeyFile(path, clock)
    if spoilt is None:
        os.remove(path)
    else:
        path.write_text(spoilt)
    with caplog.at_level(logging.ERROR):
        for clock.now in (1.0, 2.0, 3.0):
            assert keys.check(text, "grade").id == "clinic"
    assert len(caplog.records) == 1
    add(path.with_suffix(".new"), entry)
    os.replace(path.with_suffix(".new"), path)
    clock.now = 4.0
    assert keys.check(text, "grade").id == "clinic"


def test_a_file_that_cannot_be_used_from_the_start_is_refused(path: Path) -> None:
    with pytest.raises(ConfigError):
        KeyFile(path)


def test_the_hub_counts_for_new_keys_and_keeps_what_others_have_used(path: Path) -> None:
    add(path, issue("first", 2, ["grade"])[1])
    clock = Clock()
    hub = Hub(KeyFile(path, clock), None, clock)
    assert hub.lease("first", 2).granted == 2
    assert hub.lease("second", 1).granted == 0
    add(path, issue("second", 3, ["grade"])[1])
    clock.now = 1.0
    assert hub.lease("second", 3).granted == 3
    assert hub.lease("first", 1).granted == 0, "its bucket is as empty as before"
