"""Ranks that got nowhere: their stacks lie beside the artifact, and the error names them."""

import pickle
from pathlib import Path
from typing import Any

from retina_ray.data.store import Store
from retina_ray.errors import StalledError
from retina_ray.orchestration.stalls import Stalls


def test_stacks_are_kept_and_the_ranks_named(tmp_path: Path) -> None:
    heard: list[dict[str, Any]] = []
    stalls = Stalls(heard.append, lambda stage: Store(str(tmp_path / stage)))
    stalls({"stage": "student", "kind": "step", "step": 3})
    assert stalls.error("student") is None
    for rank in (1, 0):
        stalls({"stage": "student", "kind": "stalled", "rank": rank, "seconds": 8.0, "stacks": f"of rank {rank}"})
    assert (tmp_path / "student" / "stacks-0-rank-1.txt").read_text() == "of rank 1"
    assert (tmp_path / "student" / "stacks-1-rank-0.txt").read_text() == "of rank 0"
    assert heard[0] == {"stage": "student", "kind": "step", "step": 3}
    assert [each["file"] for each in heard[1:]] == [
        f"{tmp_path}/student/stacks-0-rank-1.txt",
        f"{tmp_path}/student/stacks-1-rank-0.txt",
    ]
    assert all("stacks" not in each for each in heard), "whole stacks are not for the screen"
    error = stalls.error("student")
    assert isinstance(error, StalledError)
    assert (error.ranks, error.seconds, error.folder) == ([0, 1], 8.0, f"{tmp_path}/student")
    assert str(pickle.loads(pickle.dumps(error))) == str(error)
    assert stalls.error("teacher") is None
    stalls({"stage": "student", "kind": "restored", "step": 2, "damaged": []})
    assert stalls.error("student") is None, "what comes later ends of something else"
    stalls({"stage": "student", "kind": "stalled", "rank": 1, "seconds": 8.0, "stacks": "again"})
    assert (tmp_path / "student" / "stacks-2-rank-1.txt").read_text() == "again"
