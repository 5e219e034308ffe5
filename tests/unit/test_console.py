"""What a run's records become on a screen that is a file."""

import io
from typing import Any

from rich.console import Console
from rich.progress import Progress

from retina_ray.cli.console import StageDisplay


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
