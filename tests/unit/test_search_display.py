"""What the command line shows of a search: lines where there is no terminal, a table where there is one."""

import io
from dataclasses import replace

import pytest
from rich.console import Console
from rich.live import Live

from retina_ray.cli.search_display import SearchDisplay, parameters
from retina_ray.search.journal import Report, TrialRecord

ASKED = TrialRecord(
    number=3,
    params={"method.temperature": 4.25, "method.ratio.dr": 1.0, "layers": 2},
    distributions={},
    overrides={"method.temperature": 4.25},
    asked=0,
)
REPORTED = replace(ASKED, reports=[Report(1, 2.0, {"kappa": 0.51234, "ece": None}, False, 3.0)])
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


def test_when_all_is_done_nothing_is_left(capsys: pytest.CaptureFixture[str]) -> None:
    SearchDisplay(1, ["kappa"], None)(ENDED)
    assert capsys.readouterr().err.rstrip().endswith("stopped  done")


def test_parameters_are_short() -> None:
    assert parameters(ASKED) == "temperature=4.25  ratio.dr=1  layers=2"
