"""Tiny data sets, configurations, networks and ranks that the training tests share."""

import multiprocessing
import os
import pickle
import tempfile
import traceback
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing import forkserver
from multiprocessing.connection import Connection
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn

from retina_ray.config import RunConfig, override
from retina_ray.data.augment import Augmentation
from retina_ray.data.batch import Batch
from retina_ray.data.loader import Loader, Samples
from retina_ray.data.order import Share
from retina_ray.data.schema import SPLITS, Task
from retina_ray.data.selection import Selection, select
from retina_ray.data.shard_writer import Row, ShardWriter
from retina_ray.data.shards import ShardedDataset
from retina_ray.methods.sall import SallGrader
from retina_ray.models.sall import MultiTaskGrader
from retina_ray.training.engine import Engine, build_engine
from retina_ray.training.world import World

DR = Task(name="dr", grades=("none", "mild", "severe"))
AMD = Task(name="amd", grades=("none", "late"))
SCLEROSIS = Task(name="arteriosclerosis", grades=("none", "some"))

SIZE = 32
RANK_TIMEOUT_S = 90

ONE_STAGE = {"method__tasks": ["dr"], "method__synergic_labels": False, "method__multi_task": False}
"""Changes for `tiny_config` that leave one network to train."""


def write_dataset(
    folder: Path,
    *,
    tasks: tuple[Task, ...] = (DR, AMD),
    rows: tuple[int, int, int] = (22, 9, 11),
    both: bool = False,
    group_size: int = 2,
) -> ShardedDataset:
    """Write and open a data set of raw 32 px images, each channel as bright as the grade of one task.

    Args:
        folder: where it goes.
        tasks: up to three; an image is graded for one of them in turn.
        rows: of train, validation and test.
        both: grade every image for every task.
        group_size: images per patient.
    """
    noise = np.random.default_rng(5)
    number = 0
    with ShardWriter(str(folder), tasks=tasks, image_size=SIZE, encoding="raw", source="tests") as writer:
        for split, count in zip(SPLITS, rows, strict=True):
            for position in range(count):
                severity = {
                    task.name: (position // len(tasks) + place) % task.num_grades for place, task in enumerate(tasks)
                }
                pixels = noise.integers(0, 60, (SIZE, SIZE, 3), dtype=np.uint8)
                for channel, task in enumerate(tasks):
                    pixels[:, :, channel] += np.uint8(60 * severity[task.name])
                graded = tasks if both else (tasks[position % len(tasks)],)
                writer.add(
                    Row(
                        image_id=f"image-{number:04d}",
                        group_id=f"{split}-{position // group_size}",
                        source="tests",
                        split=split,
                        image=pixels.tobytes(),
                        width=SIZE,
                        height=SIZE,
                        sha256="0" * 64,
                        grades={task.name: severity[task.name] for task in graded},
                    )
                )
                number += 1
    return ShardedDataset.open(str(folder))


def tiny_config(data: Path, storage: Path, **changes: Any) -> RunConfig:
    """Return a configuration that trains on `write_dataset` within seconds; keys of changes have ``__`` for dots."""
    values = {
        "data.path": str(data),
        "data.image_size": SIZE,
        "method.backbone": "shufflenet_v2_x0_5",
        "method.weights": "none",
        "method.dropout": 0.2,
        "optim.lr": 2e-3,
        "train.epochs": 2,
        "train.global_batch_size": 8,
        "train.patience": None,
        "evaluate.bootstrap": 5,
        "runtime.storage": str(storage),
        "runtime.workers": 0,
        "runtime.use_gpu": False,
        "runtime.loader": "torch",
        "runtime.checkpoint.every_s": None,
        "tracking.enabled": False,
    }
    return override(
        RunConfig(name="tiny"), {**values, **{key.replace("__", "."): value for key, value in changes.items()}}
    )


class TinyBackbone(nn.Module):
    """Images (B, 3, H, W) -> features (B, 8), with or without batch statistics."""

    def __init__(self, *, batch_norm: bool) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(3, 8, 5, stride=4)
        self.norm = nn.BatchNorm2d(8) if batch_norm else nn.GroupNorm(2, 8)

    def forward(self, images: Tensor) -> Tensor:
        return torch.relu(self.norm(self.convolution(images))).mean(dim=(2, 3))


@dataclass(frozen=True)
class TinyGrader(SallGrader):
    """SALL's losses on a network small enough to be trained hundreds of times."""

    batch_norm: bool = True

    def build_model(self, *, initial_weights: bool = True) -> MultiTaskGrader:
        return MultiTaskGrader(TinyBackbone(batch_norm=self.batch_norm), 8, grades=self.grades, dropout=self.dropout)


def tiny_grader(*, dropout: float = 0.3, batch_norm: bool = True, temperature: float = 2.0) -> TinyGrader:
    """Return a multi-task method over the tasks of `write_dataset`, hard labels only."""
    return TinyGrader(
        grades={"dr": 3, "amd": 2},
        tasks=("dr", "amd"),
        synergic_labels=False,
        temperature=temperature,
        ratio={},
        loss_weight={"dr": 1.0, "amd": 0.5},
        backbone="tiny",
        weights="none",
        dropout=dropout,
        batch_norm=batch_norm,
    )


def tiny_engine(method: SallGrader, config: RunConfig, world: World | None = None) -> Engine:
    """Return a fresh engine on the CPU."""
    return build_engine(method, optim=config.optim, train=config.train, seed=config.seed, world=world or World())


def tiny_selection(dataset: ShardedDataset) -> Selection:
    """Return all rows of a data set with all their grades."""
    return select(dataset, tasks=[task.name for task in dataset.tasks])


def tiny_loader(
    dataset: ShardedDataset,
    split: str,
    *,
    world: World | None = None,
    global_batch: int = 8,
    accumulate: int = 1,
    augment: bool = True,
    rows: np.ndarray | None = None,
    grades: dict[str, np.ndarray] | None = None,
) -> Loader:
    """Return a loader of a split: shuffled and augmented for train, in order for the others."""
    selection, world, training = tiny_selection(dataset), world or World(), split == "train"
    return Loader(
        Samples(dataset, selection.rows[split] if rows is None else rows, grades or selection.grades),
        share=Share(world.rank, world.size, global_batch, accumulate),
        augmentation=Augmentation() if training and augment else None,
        image_size=SIZE,
        backend="torch",
        device=torch.device("cpu"),
        seed=0,
        num_threads=1,
        shuffle=training,
    )


def batch_of(
    grades: dict[str, list[int]], *, soft: dict[str, Tensor] | None = None, weight: list[float] | None = None
) -> Batch:
    """Return a batch of random images with these grades."""
    count = len(next(iter(grades.values())))
    return Batch(
        images=torch.randn(count, 3, SIZE, SIZE),
        grades={task: torch.tensor(values) for task, values in grades.items()},
        soft_logits=soft or {},
        masks=None,
        has_mask=torch.zeros(count, dtype=torch.bool),
        weight=torch.tensor(weight or [1.0] * count),
        rows=torch.arange(count),
    )


def same_state(left: dict[str, Tensor], right: dict[str, Tensor]) -> bool:
    """Tell whether two state dicts are equal bit for bit (NaN equals NaN)."""
    return left.keys() == right.keys() and all(
        left[name].numpy().tobytes() == right[name].numpy().tobytes() for name in left
    )


def descendants(process: int) -> set[int]:
    """Return the processes below one, at any remove, that still hang on it."""
    children: dict[int, list[int]] = {}
    for entry in Path("/proc").glob("[0-9]*/stat"):
        with suppress(OSError):
            parent = int(entry.read_text().rpartition(")")[2].split()[1])
            children.setdefault(parent, []).append(int(entry.parent.name))
    found: set[int] = set()
    waiting = [process]
    while waiting:
        below = [child for child in children.get(waiting.pop(), []) if child not in found]
        found.update(below)
        waiting += below
    return found


def warm_processes() -> ForkServerContext:
    """Return a context whose processes are forked from one that has imported everything, which takes many seconds."""
    context = multiprocessing.get_context("forkserver")
    context.set_forkserver_preload(["tests.helpers", "retina_ray.orchestration.train_driver"])
    before = os.environ.get("PYTHONPATH")
    os.environ["PYTHONPATH"] = str(Path(__file__).resolve().parents[1])  # Python 3.11 does not pass sys.path on
    try:
        forkserver.ensure_running()
    finally:
        if before is None:
            del os.environ["PYTHONPATH"]
        else:
            os.environ["PYTHONPATH"] = before
    return context


class Ranks:
    """Processes that run a function as the ranks of a gloo group; started once, given many jobs."""

    def __init__(self, count: int) -> None:
        context = warm_processes()
        self._pipes: list[Connection] = []
        self._processes = []
        for _ in range(count):
            ours, theirs = context.Pipe()
            process = context.Process(target=_serve, args=(theirs,), daemon=True)
            process.start()
            theirs.close()
            self._pipes.append(ours)
            self._processes.append(process)

    def run(self, world: int, job: Callable[..., Any], *args: Any) -> list[Any]:
        """Return what ``job(World, *args)`` gives on each rank; an exception on a rank is its result.

        Raises:
            TimeoutError: the ranks hang; they cannot be used again.
        """
        with tempfile.TemporaryDirectory() as folder:
            for rank, pipe in enumerate(self._pipes[:world]):
                pipe.send((f"{folder}/store", rank, world, job, args))
            answers = []
            for rank, pipe in enumerate(self._pipes[:world]):
                if not pipe.poll(RANK_TIMEOUT_S):
                    self.close()
                    raise TimeoutError(f"rank {rank} of {world} gives no answer to {job.__name__}")
                answers.append(pickle.loads(pipe.recv()))
        return answers

    def close(self) -> None:
        """End the processes."""
        for process in self._processes:
            process.kill()
            process.join()


@contextmanager
def ranks_of(count: int) -> Iterator[Ranks]:
    """Start ranks for the length of a block."""
    ranks = Ranks(count)
    try:
        yield ranks
    finally:
        ranks.close()


def _serve(pipe: Connection) -> None:
    torch.set_num_threads(1)
    while True:
        try:
            store, rank, world, job, args = pipe.recv()
        except EOFError:
            return
        pipe.send(_answer(store, rank, world, job, args))


def _answer(store: str, rank: int, world: int, job: Callable[..., Any], args: tuple[Any, ...]) -> bytes:
    dist.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=world, timeout=timedelta(seconds=RANK_TIMEOUT_S)
    )
    try:
        return pickle.dumps(job(World.detect(torch.device("cpu")), *args))
    except Exception as error:
        error.add_note(traceback.format_exc())
        return pickle.dumps(error)
    finally:
        dist.destroy_process_group()
