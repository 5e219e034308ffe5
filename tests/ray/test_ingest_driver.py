"""Ingest on a Ray cluster: the same data set as without one, whatever happens to its workers."""

import os
import signal
from pathlib import Path

import pytest

from retina_ray.data.conversion import Target
from retina_ray.data.parts import PART_ROWS, Part, ensure_part, plan_parts
from retina_ray.data.sources.files import versions
from retina_ray.data.store import Store
from retina_ray.errors import DataError, ResourceError
from retina_ray.orchestration.ingest_driver import on_cluster
from tests.clinic import SIZE, made, sample, tree

pytestmark = pytest.mark.usefixtures("ray_cluster")


def parts_of(folder: Path, number: int) -> list[Part]:
    rows = sample(folder / "in", number)
    found = versions(file for row in rows for file in row.files)
    return plan_parts(rows, Target(SIZE, "jpeg"), Store(str(folder / "out")), found)


def test_a_cluster_makes_the_same_data_set(tmp_path: Path) -> None:
    rows = sample(tmp_path / "in", 3 * PART_ROWS + 1)
    rows[5].image.write_bytes(b"")
    with on_cluster("auto") as work:
        summary = made(rows, tmp_path / "there", work=work)
    assert summary == made(rows, tmp_path / "here")
    assert tree(tmp_path / "there") == tree(tmp_path / "here")


def test_a_worker_that_dies_is_replaced(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, 2 * PART_ROWS)
    victim, mark = parts[1].name, tmp_path / "died"

    def dying(part: Part) -> Part:
        if part.name == victim and not mark.exists():
            mark.touch()
            os.kill(os.getpid(), signal.SIGKILL)
        return ensure_part(part)

    with on_cluster("auto") as work:
        finished = list(work(dying, parts))
    assert mark.exists()
    assert {part.name for part in finished} == {part.name for part in parts}
    assert sorted(path.name for path in (tmp_path / "out/parts").iterdir()) == sorted(part.name for part in parts)


def test_a_workers_error_comes_back_as_it_is(tmp_path: Path) -> None:
    parts = parts_of(tmp_path, 3)
    (tmp_path / "out").write_text("a file where the data set should go")
    with on_cluster("auto") as work, pytest.raises(DataError, match="cannot be written to"):
        list(work(ensure_part, parts))


def test_a_part_that_kills_every_worker_is_given_up(tmp_path: Path) -> None:
    def deadly(_: Part) -> Part:
        os._exit(1)

    with on_cluster("auto") as work, pytest.raises(ResourceError, match="could not be made on the cluster"):
        list(work(deadly, parts_of(tmp_path, 3)))
