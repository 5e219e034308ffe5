"""SIGTERM asks once, and ends at the second time; other threads than the main one have no signals."""

import os
import signal
import threading

import pytest

from retina_ray.orchestration.told_to_stop import told_to_stop


def test_the_first_signal_asks_and_the_second_one_does_what_it_did_before() -> None:
    heard = []
    before = signal.signal(signal.SIGTERM, lambda *_: heard.append("before"))
    try:
        with told_to_stop() as told:
            assert not told.is_set()
            os.kill(os.getpid(), signal.SIGTERM)
            assert told.wait(5)
            assert heard == []
            os.kill(os.getpid(), signal.SIGTERM)
            assert heard == ["before"]
        os.kill(os.getpid(), signal.SIGTERM)
        assert heard == ["before", "before"]
    finally:
        signal.signal(signal.SIGTERM, before)


def test_a_block_that_fails_leaves_no_handler() -> None:
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyError), told_to_stop():
        raise KeyError
    assert signal.getsignal(signal.SIGTERM) is before


def test_another_thread_is_never_told() -> None:
    found = []

    def run() -> None:
        with told_to_stop() as told:
            found.append(told.is_set())

    thread = threading.Thread(target=run)
    thread.start()
    thread.join()
    assert found == [False]
