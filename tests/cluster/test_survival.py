"""What clusters do to a training on several nodes: it ends with the weights of one that nothing happened to."""

import signal
import time
from pathlib import Path

import pytest

from tests.ray_nodes import Nodes, running
from tests.survival import (
    EPOCHS,
    STEPS_PER_EPOCH,
    a_config,
    command,
    is_whole,
    last_checkpoint,
    nothing_is_left,
    one_that_trains,
    resumed_at,
    saved_at,
    train_to_the_end,
    weights,
)


@pytest.mark.timeout(400)
def test_a_node_is_lost(nodes: Nodes, undisturbed: bytes, data: Path, tmp_path: Path) -> None:
    """It costs the steps since the last checkpoint; another node takes its place."""
    config = a_config(data, tmp_path, name="lost", runtime__checkpoint__every_steps=2)
    with running(nodes, *command(config, nodes)) as run:
        run.wait_for_line(f"epoch 4/{EPOCHS}")
        _, saved = last_checkpoint(tmp_path)
        lost = one_that_trains(nodes)
        lost.kill()
        nodes.nodes.remove(lost)
        begun = time.monotonic()
        line = run.wait_for_line("failed on rank")
        print(f"known after {time.monotonic() - begun:.1f} s: {line.strip()}")
        nodes.add()
        run.wait_for_line("resumed at step")
        print(f"training again {time.monotonic() - begun:.1f} s after the loss, the start of another node included")
        train_to_the_end(run)
    assert resumed_at(run)[0] >= saved
    assert weights(tmp_path) == undisturbed
    is_whole(tmp_path)
    nothing_is_left(nodes)


@pytest.mark.timeout(400)
def test_a_node_gives_notice(nodes: Nodes, undisturbed: bytes, data: Path, tmp_path: Path) -> None:
    """Within a second there is a checkpoint of the last step; nothing is trained after it, nothing is lost."""
    config = a_config(data, tmp_path, name="notice")
    with running(nodes, *command(config, nodes)) as run:
        run.wait_for_line(f"epoch 4/{EPOCHS}")
        assert nodes.nodes[0].find("ProgressRelay"), "where the driver is, so that what it says and hears is not lost"
        leaving = one_that_trains(nodes)
        begun = time.time()
        leaving.give_notice()
        run.wait_for_line("its machine is taken away")
        _, step = last_checkpoint(tmp_path)
        seconds = saved_at(tmp_path) - begun
        nodes.nodes.remove(leaving)
        nodes.add()
        train_to_the_end(run)
        leaving.kill()
    print(f"a checkpoint {seconds:.1f} s after the notice")
    assert seconds < 1
    assert resumed_at(run) == [step], "not a step is lost"
    assert weights(tmp_path) == undisturbed
    is_whole(tmp_path)


@pytest.mark.long
@pytest.mark.timeout(400)
def test_a_driver_is_told_to_stop(nodes: Nodes, undisturbed: bytes, data: Path, tmp_path: Path) -> None:
    config = a_config(data, tmp_path, name="stopped")
    with running(nodes, *command(config, nodes)) as run:
        run.wait_for_line(f"epoch 4/{EPOCHS}")
        begun = time.time()
        run.process.send_signal(signal.SIGTERM)
        text = run.wait(code=143, seconds=60)
        ended = time.time()
    _, step = last_checkpoint(tmp_path)
    print(f"a checkpoint {saved_at(tmp_path) - begun:.1f} s after SIGTERM, ended {ended - begun:.1f} s after it")
    assert f"told to stop: with a checkpoint at step {step}" in text
    assert step >= 4 * STEPS_PER_EPOCH
    nothing_is_left(nodes)
    with running(nodes, *command(config, nodes, "--resume")) as run:
        run.wait()
    assert resumed_at(run) == [step]
    assert weights(tmp_path) == undisturbed
    is_whole(tmp_path)
