"""What the command line shows of a search: lines where there is no terminal, a table where there is one."""

import io
import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from rich.console import Console
from rich.live import Live

from retina_ray.cli.search_display import SearchDisplay, parameters, search_display
from retina_ray.cli.tune import search_and_publish
from retina_ray.orchestration.tune_driver import SearchOptions
from retina_ray.search.goals import Goal
from retina_ray.search.journal import Report, TrialRecord
from tests.helpers import tiny_config

ASKED = TrialRecord(
    number=3,
    params={"method.temperature": 4.25, "method.ratio.dr": 1.0, "layers": 2},
    distributions={},
    overrides={"method.temperature": 4.25},
    asked=0,
)
REPORTED = replace(
    ASKED,
    reports=[Report(1, 2.0, {"kappa": 0.51234, "ece": None}, False, 3.0)],
    stages={"teacher-dr": "reused", "student": "trained"},
)
ENDED = replace(REPORTED, state="stopped", ended=2)
FAILED = replace(ASKED, state="failed", ended=1, reason="loss term 'dr' is not finite")


def test_each_event_is_a_line(capsys: pytest.CaptureFixture[str]) -> None:
    display = SearchDisplay(4, ["kappa", "ece"], None)
    for record in (ASKED, REPORTED, ENDED, FAILED):
        display(record)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0] == "trial   3  temperature=4.25  ratio.dr=1  layers=2"
    assert lines[1] == "trial   3  epoch 2  kappa 0.512  ece   running"
    assert lines[2] == "trial   3  epoch 2  kappa 0.512  ece   stopped  about 0:00:09 left"
    assert lines[3] == "trial   3  failed: loss term 'dr' is not finite"


def test_the_table_shows_running_trials_first_and_how_many_are_done() -> None:
    out = Console(file=io.StringIO(), force_terminal=True, width=120, no_color=True)
    with Live(console=out, auto_refresh=False) as live:
        display = SearchDisplay(2, ["kappa"], live)
        display(ENDED)
        display(replace(REPORTED, number=7))
    text = out.file.getvalue()  # type: ignore[attr-defined]
    shown = text[text.rindex("1 of 2 trials") :]
    assert shown.index(" 7 ") < shown.index(" 3 ")
    assert "running" in shown
    assert "stopped" in shown
    assert "0.512" in shown


def test_the_time_left_is_shared_by_the_trials_that_run(capsys: pytest.CaptureFixture[str]) -> None:
    display = SearchDisplay(5, ["kappa"], None)
    for record in (ENDED, replace(REPORTED, number=4), replace(REPORTED, number=5), replace(ENDED, number=6)):
        display(record)
    assert capsys.readouterr().err.splitlines()[-1].endswith("about 0:00:04 left")  # 3 trials of 3 s, two by two


def test_a_result_that_was_taken_over_says_nothing_of_the_time_left(capsys: pytest.CaptureFixture[str]) -> None:
    display = SearchDisplay(4, ["kappa"], None)
    display(replace(ENDED, number=0, stages=dict.fromkeys(ENDED.stages, "reused"), state="complete"))
    display(ENDED)
    lines = capsys.readouterr().err.splitlines()
    assert lines[0].endswith("complete")
    assert lines[1].endswith("about 0:00:06 left")  # 2 trials of 3 s


def test_with_cross_validation_folds_are_counted(capsys: pytest.CaptureFixture[str]) -> None:
    with search_display(2, [Goal("kappa", "max")], unit="fold") as display:
        display(REPORTED)
    assert "  fold 2  kappa 0.512" in capsys.readouterr().err
    table = io.StringIO()
    with Live(console=Console(file=table, force_terminal=True, width=120), auto_refresh=False) as live:
        SearchDisplay(2, ["kappa"], live, unit="fold")(REPORTED)
    assert "fold" in table.getvalue()
    assert "epoch" not in table.getvalue()


def test_the_table_of_trials_has_the_terminal_to_itself(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    screen, after = io.StringIO(), []

    def run_search(*_: Any, listener: Callable[[Any], None], on_trial: Callable[[Any], None], **__: Any) -> Any:
        listener({"stage": "teacher-dr", "kind": "step", "epoch": 0.5, "epochs": 2})
        for record in (ASKED, REPORTED):
            on_trial(record)
            written = len(screen.getvalue())
            time.sleep(0.3)  # the stages' display used to draw ten times a second
            after.append(screen.getvalue()[written:])
        return SimpleNamespace(folder=SimpleNamespace(store=SimpleNamespace(uri="here")))

    for module in ("console", "search_display", "tune"):
        terminal = lambda: Console(file=screen, force_terminal=True, width=120)  # noqa: E731
        monkeypatch.setattr(f"retina_ray.cli.{module}.error_console", terminal)
    monkeypatch.setattr("retina_ray.orchestration.tune_driver.run_search", run_search)
    monkeypatch.setattr("retina_ray.orchestration.tune_winner.publish_winner", lambda *_: "winner")
    monkeypatch.setattr("retina_ray.orchestration.ray_settings.connected", lambda *_, **__: nullcontext())
    options = SearchOptions("sall", trials=2)
    assert search_and_publish(tiny_config(tmp_path, tmp_path), options, resume=False) == ("here", "winner")
    assert after == ["", ""]
    assert "0 of 2 trials" in screen.getvalue()


def test_when_all_is_done_nothing_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    SearchDisplay(1, ["kappa"], None)(ENDED)
    assert capsys.readouterr().err.rstrip().endswith("stopped  done")


def test_parameters_are_short() -> None:
    assert parameters(ASKED) == "temperature=4.25  ratio.dr=1  layers=2"
