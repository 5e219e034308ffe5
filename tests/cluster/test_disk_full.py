"""A training whose disk fills up in the middle: it ends with a message, and goes on when there is room again."""

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

import pytest

from tests.helpers import ONE_STAGE, tiny_config
from tests.ray_nodes import ray_nodes, running
from tests.survival import EPOCHS, TWO, command, is_whole, last_checkpoint, resumed_at, weights

pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

DISK_MIB = 40


@contextmanager
def a_small_disk(folder: Path) -> Iterator[Path]:
    """Keep a small disk alive in a name space of its own; gives its folder as anybody can reach it."""
    folder.mkdir()
    mount = f"mount -t tmpfs -o size={DISK_MIB}m tmpfs {folder} && echo mounted && exec cat"
    words = ["unshare", "--user", "--map-root-user", "--mount", "sh", "-c", mount]
    with subprocess.Popen(words, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as keeper:
        assert keeper.stdout is not None
        assert keeper.stdout.readline() == "mounted\n"
        yield Path(f"/proc/{keeper.pid}/root{folder}")
        keeper.kill()


def fill(disk: Path) -> Path:
    """Write a file until there is no room left."""
    file = disk / "filler"
    with file.open("wb", buffering=0) as open_file, suppress(OSError):
        while True:
            open_file.write(bytes(2**16))
    return file


def test_a_full_disk_ends_it_with_a_message_and_room_lets_it_go_on(data: Path, tmp_path: Path) -> None:
    with ray_nodes(head_cpus=2) as nodes, a_small_disk(tmp_path / "disk") as disk:

        def words(name: str, storage: Path, *more: str) -> list[str]:
            changes = {**ONE_STAGE, **TWO, "train__epochs": EPOCHS, "runtime__checkpoint__every_steps": 2}
            config = tiny_config(data, storage, name=name, **changes)
            return [*command(config, nodes), *more]

        nodes.command(*words("undisturbed", tmp_path / "plain"))
        with running(nodes, *words("full", disk)) as run:
            run.wait_for_line(f"epoch 4/{EPOCHS}")
            filler = fill(disk)
            text = run.wait(code=2)
        assert f"error: this place cannot be written to: {disk}/artifacts/" in text
        assert "No space left on device" in text.splitlines()[-1]
        _, step = last_checkpoint(disk)
        filler.unlink()
        with running(nodes, *words("full", disk, "--resume")) as run:
            run.wait()
        assert resumed_at(run)[0] == step
        assert weights(disk) == weights(tmp_path / "plain")
        is_whole(disk)
        assert not list(disk.rglob("*.tmp*"))
