"""docs/gpu.md against the code, and one process that is made to believe in 511 others."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from torch import Tensor
from torch.nn.parallel import DistributedDataParallel
from torch.testing._internal.distributed.fake_pg import FakeStore

from retina_ray.config_runtime import RuntimeConfig
from retina_ray.data.shards import ShardedDataset
from retina_ray.orchestration.resources import share_out
from retina_ray.orchestration.stages import torch_config
from retina_ray.training.ballot import Ballot
from retina_ray.training.engine import Engine
from retina_ray.training.evaluate import validate
from retina_ray.training.step import train_step
from retina_ray.training.world import World
from tests.helpers import same_state, tiny_config, tiny_engine, tiny_grader, tiny_loader

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "gpu.md").read_text(encoding="utf-8")
MENTIONS = re.compile(r"\b(?:cuda|nccl|bf16|bfloat16)\b|\bis_cuda\b|is_available\(", re.IGNORECASE)
LISTED = re.compile(r"`((?:retina_ray|serve_apps|benchmarks|tests)/[\w./-]+\.\w+)`")


def rows() -> list[list[str]]:
    """The cells of every row of the page's tables of records, without their headings."""
    found: list[list[str]] = []
    of_records = False
    for line in PAGE.splitlines():
        cells = [cell.strip() for cell in line.strip("|").split(" | ")] if line[:2] == "| " else []
        if cells and of_records:
            found.append(cells)
        of_records = cells[-1:] == ["record"] or (of_records and line.startswith("|"))
    return found


def files(*folders: str) -> list[str]:
    return [str(file.relative_to(ROOT)) for folder in folders for file in sorted((ROOT / folder).rglob("*.py"))]


def test_every_file_that_may_see_a_gpu_is_listed() -> None:
    seen = [
        name
        for name in files("retina_ray", "serve_apps", "benchmarks")
        if MENTIONS.search((ROOT / name).read_text(encoding="utf-8"))
    ]
    assert len(seen) > 20
    assert sorted(set(seen) - set(LISTED.findall(PAGE))) == []


def test_every_test_that_needs_a_gpu_is_listed() -> None:
    needing = [name for name in files("tests/gpu") if Path(name).name.startswith("test_")]
    assert needing
    assert sorted(set(needing) - set(LISTED.findall(PAGE))) == []


def test_every_listed_file_exists() -> None:
    named = [name for row in rows() for cell in row[:-1] for name in LISTED.findall(cell)]
    assert len(named) > 40
    assert sorted({name for name in named if not (ROOT / name).is_file()}) == []


def test_a_path_has_a_record_or_is_called_untested() -> None:
    for row in rows():
        records = LISTED.findall(row[-1])
        assert records or row[-1].startswith("untested"), f"{row[0]}: {row[-1]}"
        assert all(name.startswith("benchmarks/results/") and (ROOT / name).is_file() for name in records), row[0]


@pytest.mark.parametrize("text", ["if torch.cuda.is_available():", 'device.type == "cuda"', "x.is_cuda", "under bf16"])
def test_a_mention_is_found(text: str) -> None:
    assert MENTIONS.search(text)


@pytest.mark.parametrize("text", ["nvidia-dali-cuda130", "half of it", "a fused optimiser"])
def test_what_is_no_mention_is_not(text: str) -> None:
    assert not MENTIONS.search(text)


RANKS = 512


@contextmanager
def pretended() -> Iterator[World]:
    """Rank 0 of 512, none of the others real: sums leave a tensor as it is, gathering repeats this rank's."""
    dist.init_process_group("fake", rank=0, world_size=RANKS, store=FakeStore())
    try:
        yield World.detect(torch.device("cpu"))
    finally:
        dist.destroy_process_group()


def mean_of_equals(_: None, bucket: dist.GradBucket) -> torch.futures.Future[Tensor]:
    """Do to a bucket of gradients what averaging over ranks that all have the same does to the wrapper's own sum."""
    done: torch.futures.Future[Tensor] = torch.futures.Future()
    done.set_result(bucket.buffer() / RANKS)
    return done


def train(world: World, dataset: ShardedDataset) -> tuple[Engine, dict[str, Tensor], dict[str, float]]:
    """Train two steps of two micro-batches of 4 images a rank; return the weights and a validation as well."""
    engine = tiny_engine(tiny_grader(), tiny_config(Path("none"), Path("none")), world)
    if isinstance(engine.model, DistributedDataParallel):
        # What a pretended all-reduce hands back is nothing, which the wrapper takes for an error.
        engine.model.register_comm_hook(None, mean_of_equals)
    loader = tiny_loader(dataset, "train", world=world, global_batch=4 * world.size)
    for step in range(2):
        micro_batches = [batch for epoch in (2 * step, 2 * step + 1) for batch in next(loader.epoch(epoch))]
        train_step(engine, micro_batches, step=step, lr=1e-2)
    loader.close()
    engine.guard.check()
    held_out = tiny_loader(dataset, "validation", world=world, global_batch=16 * world.size)
    measures = validate(engine, held_out)
    held_out.close()
    return engine, {name: value.clone() for name, value in engine.network.state_dict().items()}, measures


def test_one_of_512_ranks_goes_its_way(data: Path) -> None:
    """Where all ranks have the same images, the mean of their gradients is the gradient of one, and so is the result.

    To the bit: 512 is a power of two, so dividing by it and multiplying with it rounds nothing.
    """
    dataset = ShardedDataset.open(str(data))
    _, expected, alone = train(World(), dataset)
    with pretended() as world:
        assert (world.rank, world.size) == (0, RANKS)
        engine, found, measures = train(world, dataset)
        assert isinstance(engine.model, DistributedDataParallel)
        ballot = Ballot(world)
        assert [ballot.cast(True, False), ballot.cast(False, False)] == [(False, False), (True, False)]
        assert world.gather("here") == ["here"] * RANKS
        world.barrier()
    assert same_state(found, expected)
    assert measures == pytest.approx(alone, nan_ok=True)


@pytest.mark.parametrize(
    ("gpus_per_worker", "gpus", "backend"),
    [(1.0, 2, None), (0.6, 2, None), (0.5, 2, "gloo"), (0.5, 1, "gloo"), (1.0, 0, None)],
)
def test_ranks_that_may_share_a_gpu_talk_over_gloo(gpus_per_worker: float, gpus: int, backend: str | None) -> None:
    runtime = RuntimeConfig(workers=2, cpus_per_worker=1, gpus_per_worker=gpus_per_worker, stall_s=100.0)
    config = torch_config(runtime, share_out(runtime, [{"CPU": 4, "GPU": gpus}]))
    assert (config.backend, config.timeout_s) == (backend, 160)
