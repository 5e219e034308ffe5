"""Ctrl-C on a running search: it ends at once and whole, and the same command with --resume goes on."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from retina_ray.config import to_yaml
from retina_ray.data.store import Store
from retina_ray.search.journal import events, read_trials
from tests.helpers import tiny_config
from tests.killing import MARK, family


def tune(folder: Path, trials: int, *more: str) -> "subprocess.Popen[str]":
    """Start a search in a session of its own, as a terminal does."""
    program = [sys.executable, "-c", "from retina_ray.cli.main import main; main()"]
    arguments = [
        "tune",
        "sall",
        "--config",
        "tiny.yaml",
        "--trials",
        str(trials),
        "--concurrent",
        "1",
        "--name",
        "search",
        *more,
    ]
    return subprocess.Popen(
        [*program, *arguments],
        cwd=folder,
        env={**os.environ, MARK: str(folder)},
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        start_new_session=True,
    )


@pytest.mark.long
@pytest.mark.timeout(900)
def test_ctrl_c_ends_a_search_which_resume_brings_to_its_end(data: Path, tmp_path: Path) -> None:
    config = tiny_config(data, tmp_path / "runs", name="search", train__epochs=3)
    (tmp_path / "tiny.yaml").write_text(to_yaml(config), encoding="utf-8")
    store = Store(str(tmp_path / "runs" / "search"))
    process = tune(tmp_path, 50)
    deadline = time.monotonic() + 400
    while len(events(read_trials(store))) < 6:
        assert time.monotonic() < deadline
        assert process.poll() is None
        time.sleep(0.05)
    os.killpg(process.pid, signal.SIGINT)
    said, _ = process.communicate(timeout=60)
    assert process.returncode == 130
    assert "interrupted" in said.splitlines()[-1]
    assert "--resume" in said.splitlines()[-1]
    assert "Traceback" not in said
    deadline = time.monotonic() + 30
    while left := family(str(tmp_path)):
        assert time.monotonic() < deadline, f"still running: {left}"
        time.sleep(0.1)
    before = {record.number: record for record in read_trials(store) if record.state != "running"}
    assert before
    process = tune(tmp_path, len(before) + 1, "--resume")
    said, _ = process.communicate(timeout=400)
    assert process.returncode == 0, said
    after = {record.number: record for record in read_trials(store)}
    assert len(after) == len(before) + 1
    assert before.items() <= after.items()
