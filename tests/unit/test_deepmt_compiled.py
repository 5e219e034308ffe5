"""train.compile in every stage of DeepMT-DR and with every map."""

import subprocess
import sys
from pathlib import Path

import pytest
from torch import nn

from retina_ray.config import OptimConfig, TrainConfig
from retina_ray.training.engine import build_engine
from retina_ray.training.world import World
from tests.deepmt import method_of
from tests.deepmt_compiled import CASES

ROOT = Path(__file__).resolve().parents[2]


@pytest.mark.long
@pytest.mark.timeout(400)  # each net is traced several times
def test_compiled_parts_compute_the_same_in_every_stage_and_with_every_map() -> None:
    command = [sys.executable, "-m", "tests.deepmt_compiled"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(done.stdout.splitlines()) == len(CASES)


@pytest.mark.parametrize(
    ("stage", "changes", "parts"),
    [
        ("restoration", {}, ["super_resolution", "segmentation"]),
        ("grading", {}, ["segmentation", "grader"]),
        ("joint", {}, ["super_resolution", "segmentation"]),
        ("joint", {"method.evidence.map": "none"}, ["super_resolution", "segmentation", "grader"]),
    ],
)
def test_what_is_differentiated_twice_is_not_compiled(
    stage: str, changes: dict[str, object], parts: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    compiled: list[nn.Module] = []
    monkeypatch.setattr(nn.Module, "compile", lambda part: compiled.append(part))
    train = TrainConfig(compile=True, global_batch_size=2)
    engine = build_engine(method_of(stage, changes), optim=OptimConfig(), train=train, seed=0, world=World())
    assert [name for name, net in engine.network.nets.named_children() if net in compiled] == parts
    assert len(compiled) == len(parts)
