"""Log lines of workers: one JSON object each, with what they are about."""

import json
import logging
from collections.abc import Iterator
from datetime import UTC, datetime

import pytest

from retina_ray.orchestration.structured_log import LOGGER, log_as_json

ABOUT = {"run": "mine", "trial": "7", "stage": "student", "rank": "1"}


@pytest.fixture(autouse=True)
def _as_before() -> Iterator[None]:
    logger = logging.getLogger(LOGGER)
    before = logger.handlers, logger.level, logger.propagate
    yield
    logger.handlers, logger.level, logger.propagate = before


def test_a_line_says_what_it_is_about(capsys: pytest.CaptureFixture[str]) -> None:
    log_as_json(ABOUT)
    log_as_json(ABOUT)  # a process that trains several stages says it anew
    logging.getLogger("retina_ray.training.loop").warning("skipped: %s", "a\nb")
    (line,) = capsys.readouterr().err.splitlines()
    found = json.loads(line)
    assert {name: found[name] for name in ABOUT} == ABOUT
    assert (found["level"], found["logger"]) == ("WARNING", "retina_ray.training.loop")
    assert found["message"] == "skipped: a\nb"
    assert abs((datetime.fromisoformat(found["time"]) - datetime.now(UTC)).total_seconds()) < 60


def test_a_traceback_is_one_of_its_fields(capsys: pytest.CaptureFixture[str]) -> None:
    log_as_json(ABOUT)
    try:
        _ = 1 / 0
    except ZeroDivisionError:
        logging.getLogger("retina_ray.data").exception("no")
    (line,) = capsys.readouterr().err.splitlines()
    assert "ZeroDivisionError" in json.loads(line)["traceback"]
