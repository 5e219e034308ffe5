"""Temporary folders of private clusters: gone with their process, or when the next one starts."""

import os
import signal
from multiprocessing.connection import Connection
from pathlib import Path

from retina_ray.orchestration.scratch import scratch_folder
from tests.helpers import warm_processes


def hold(answer: Connection) -> None:
    with scratch_folder() as folder:
        answer.send(folder)
        signal.pause()


def test_a_folder_lasts_as_long_as_its_process() -> None:
    processes = warm_processes()
    ours, theirs = processes.Pipe()
    process = processes.Process(target=hold, args=(theirs,))
    process.start()
    other = Path(ours.recv())
    with scratch_folder() as own:
        assert Path(own) != other
        assert other.is_dir(), "its process lives"
    assert not Path(own).exists()
    assert process.pid is not None
    os.kill(process.pid, signal.SIGKILL)
    process.join()
    assert other.is_dir(), "a killed process removes nothing"
    with scratch_folder():
        assert not other.exists()
