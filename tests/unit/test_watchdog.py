"""A process that gets nowhere says where it is and ends, also where its interpreter is stuck; one that moves lives."""

import multiprocessing
import time
from contextlib import suppress
from multiprocessing.connection import Connection

import pytest

from retina_ray.training.watchdog import STALLED, Watchdog, stacks
from tests.helpers import warm_processes

LIMIT_S = 0.5
FIRST_S = 1.5


def lost_in_the_woods(seconds: float) -> None:
    time.sleep(seconds)


def live(told: Connection, beats: int, pause_s: float, then_s: float) -> None:
    """Beat some times, then do nothing for a while."""
    dog = Watchdog(LIMIT_S, lambda stacks, seconds: told.send((stacks, seconds)), first_s=FIRST_S)
    with dog.watching():
        for _ in range(beats):
            dog.beat()
            time.sleep(pause_s)
        lost_in_the_woods(then_s)
    time.sleep(2 * LIMIT_S)


def lived(beats: int, pause_s: float, then_s: float) -> tuple[int | None, list[tuple[str, float]]]:
    """Return how such a process ended, and what it told, each time with the seconds."""
    ours, theirs = multiprocessing.Pipe(duplex=False)
    process = warm_processes().Process(target=live, args=(theirs, beats, pause_s, then_s))
    process.start()
    theirs.close()
    told = []
    with suppress(EOFError):
        while True:
            told.append(ours.recv())
    process.join()
    return process.exitcode, told


@pytest.mark.parametrize(("beats", "limit_s"), [(2, LIMIT_S), (0, FIRST_S)])
def test_ends_a_process_that_gets_nowhere_and_says_where_it_is(beats: int, limit_s: float) -> None:
    begun = time.monotonic()
    status, ((told, seconds),) = lived(beats=beats, pause_s=0.0, then_s=60.0)
    assert status == STALLED
    assert seconds == limit_s
    assert "lost_in_the_woods" in told
    assert "thread MainThread" in told
    assert time.monotonic() - begun < 30


@pytest.mark.parametrize(("beats", "pause_s", "then_s"), [(8, LIMIT_S / 4, 0.0), (0, 0.0, 2 * LIMIT_S)])
def test_lets_live_what_moves_or_has_not_begun(beats: int, pause_s: float, then_s: float) -> None:
    assert lived(beats, pause_s, then_s) == (0, [])


def test_stacks_name_every_thread() -> None:
    assert "test_stacks_name_every_thread" in stacks()
