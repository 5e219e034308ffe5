"""What a run's records become on a screen that is a file."""

import io
from typing import Any

import pytest
from rich.console import Console
from rich.progress import Progress

from retina_ray.cli.console import StageDisplay, counting, counting_phases


def shown(*records: dict[str, Any]) -> str:
    out = Console(file=io.StringIO(), width=100)
    display = StageDisplay(out, Progress(console=out, disable=True))
    for record in records:
        display(record)
    assert isinstance(out.file, io.StringIO)
    return out.file.getvalue()


def test_a_stage_that_ran_ends_with_its_time() -> None:
    started = {"stage": "teacher-dr", "kind": "started"}
    assert "finished in 12 s" in shown(started, {"stage": "teacher-dr", "kind": "finished", "wall_s": 12.3})


def test_an_epoch_shows_what_its_stage_measures() -> None:
    record = {"kind": "epoch", "epoch": 2.0, "epochs": 8, "validation_criterion": 0.5, "images_per_second": 7.0}
    text = shown(
        {"stage": "restoration", "kind": "started"},
        {**record, "stage": "restoration", "validation_psnr": 33.456, "validation_ap_MA": 0.123},
        {**record, "stage": "grading", "validation_accuracy_dr": 0.4},
    )
    assert "PSNR 33.46 dB  AP MA 0.12" in text
    assert "accuracy dr 40.0%" in text
    assert text.count("PSNR") == text.count("accuracy") == 1


def test_a_reused_stage_shows_no_time_of_another_run() -> None:
    text = shown(
        {"stage": "teacher-dr", "kind": "reused"},
        {"stage": "teacher-dr", "kind": "finished", "wall_s": 4711.0},
        {"stage": "student", "kind": "started"},
        {"stage": "student", "kind": "finished", "wall_s": 5.0},
    )
    assert text.count("teacher-dr") == 1
    assert "4711" not in text
    assert "finished in 5 s" in text


def test_a_stage_says_how_much_of_its_time_its_processes_took_to_start(monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter([0.0, 62.0, 100.0, 101.0])
    monkeypatch.setattr("retina_ray.cli.console.time.monotonic", lambda: next(clock))
    display = StageDisplay(out := Console(file=io.StringIO(), width=200), Progress(console=out, disable=True))
    for stage, seconds in (("teacher-dr", 37.0), ("test", 0.8)):
        display({"stage": stage, "kind": "started"})
        display({"stage": stage, "kind": "finished", "wall_s": seconds})
    assert isinstance(out.file, io.StringIO)
    said = out.file.getvalue().splitlines()
    assert said[1].endswith("finished in 37 s, 62 s with the start and end of its processes")
    assert said[3].endswith("finished in 1 s")


def test_phases_begin_with_their_names_and_have_a_pace_of_their_own(
    capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    clock = 0.0
    monkeypatch.setattr("retina_ray.cli.console.time.monotonic", lambda: clock)
    with counting_phases() as update:
        update("reading", 0, 100)
        clock = 10.0
        update("reading", 50, 100)
        update("comparing", 0, 40)
        clock = 12.0
        update("comparing", 40, 40)
    assert capsys.readouterr().err.splitlines() == [
        "reading: 0/100",
        "reading: 50/100, 5.0 images/s, 0:00:10 left",
        "comparing: 0/40",
        "comparing: 40/40, 20.0 images/s, 0:00:00 left",
    ]


def test_a_count_has_a_line_per_tenth(capsys: pytest.CaptureFixture[str]) -> None:
    with counting("drawing") as update:
        for done in range(1, 101):
            update(done, 100)
    lines = capsys.readouterr().err.splitlines()
    assert [line.partition(",")[0] for line in lines] == [f"drawing: {done}/100" for done in (1, *range(10, 101, 10))]
