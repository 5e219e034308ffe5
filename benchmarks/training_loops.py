"""One and the same training by several loops, each in processes of its own: ``python -m benchmarks.training_loops``.

Arguments: NAME and a FOLDER that holds ``config.json``. Network, its first weights, optimiser, loss and batches per
step are those of the product's stage in all of them; what differs is who loops and who loads. Every optimiser step
appends its time to a file of its process in FOLDER/steps, whoever made the step; at the end rank 0 writes the mean
training loss of each epoch to FOLDER/losses.json. All validate after each epoch and write one checkpoint, at the end.

``ours``: the product's stage, in one process or under torchrun; ``ray``: the same under Ray Train; ``plain``: a loop
as PyTorch's tutorial on DDP writes it; ``lightning``: a Trainer; ``lightning-fed``: a Trainer fed by our loader.
"""

import argparse
import json
import os
import secrets
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.nn.parallel import DistributedDataParallel
from torch.optim import Optimizer
from torch.optim.optimizer import register_optimizer_step_post_hook
from torch.utils.data import DataLoader, Dataset, DistributedSampler

from benchmarks.augmentation import Rival
from retina_ray.config import RunConfig, from_mapping
from retina_ray.data.augment import Augmentation
from retina_ray.data.loader import Loader, Samples
from retina_ray.data.order import Share
from retina_ray.methods import catalogue
from retina_ray.methods.base import Stage
from retina_ray.orchestration.preparation import open_dataset
from retina_ray.orchestration.ray_settings import DRIVER_ENVIRONMENT, PRIVATE_ENVIRONMENT, private_cluster
from retina_ray.orchestration.resources import local_cpus
from retina_ray.orchestration.scratch import scratch_folder
from retina_ray.orchestration.train_driver import train_driver
from retina_ray.training.engine import Engine, build_engine
from retina_ray.training.reporter import FolderReporter
from retina_ray.training.stage import StageJob, StageRun, select_rows
from retina_ray.training.world import World

TASK = "dr"
PREFETCH = 2
STEPS = "BENCHMARK_STEPS"
"""Names the folder of the files of times, for processes that others start."""

Pair = tuple[Tensor, Tensor]
"""Images (B, 3, H, W) and grades (B,)."""


def record_steps() -> None:
    """Have every optimiser of this process note the time after each of its steps, whoever calls it."""
    folder = Path(os.environ[STEPS])
    folder.mkdir(parents=True, exist_ok=True)
    file = (folder / f"{os.getpid()}.txt").open("w", buffering=1)
    register_optimizer_step_post_hook(lambda *_: file.write(f"{time.perf_counter()}\n") and None)


def stage_of(config: RunConfig) -> Stage:
    """Return the one stage that trains."""
    return catalogue.plan(config, {task.name: task for task in open_dataset(config).tasks}).stages[0]


def engine_of(config: RunConfig) -> Engine:
    """Return network and optimiser as the product builds them, for one process."""
    method = catalogue.build(config.method.name, stage_of(config).settings)
    return build_engine(method, optim=config.optim, train=config.train, seed=config.seed, world=World())


class Photographs(Dataset[tuple[Tensor, int]]):
    """The rows of a split with their grades, augmented by torchvision's transforms where they train.

    Args:
        config: of the run.
        split: name of it.
    """

    def __init__(self, config: RunConfig, split: str) -> None:
        self._images = Rival(Path(config.data.path), config.data.image_size, augmented=split == "train")
        selection = select_rows(config, open_dataset(config))
        self._rows = selection.graded(split, [TASK])
        self._grades = selection.grades[TASK]

    def __len__(self) -> int:
        """Return the number of images."""
        return len(self._rows)

    def __getitem__(self, index: int) -> tuple[Tensor, int]:
        """Return an image (3, H, W) and its grade."""
        row = int(self._rows[index])
        return self._images[row], int(self._grades[row])


class OurBatches:
    """The product's loader as others take one: iterated once per epoch.

    Args:
        config: of the run.
        world: this rank.
        split: name of it.
    """

    def __init__(self, config: RunConfig, world: World, split: str) -> None:
        dataset, training = open_dataset(config), split == "train"
        selection = select_rows(config, dataset)
        self._epoch = 0
        self._loader = Loader(
            Samples(dataset, selection.graded(split, [TASK]), selection.grades),
            share=Share(world.rank, world.size, config.train.global_batch_size),
            augmentation=Augmentation(**config.augment.model_dump()) if training else None,
            image_size=config.data.image_size,
            backend="torch",
            device=world.device,
            seed=config.seed,
            num_threads=torch.get_num_threads(),
            prefetch=PREFETCH,
            shuffle=training,
        )

    def __len__(self) -> int:
        """Return the steps of an epoch."""
        return self._loader.steps_per_epoch

    def __iter__(self) -> Iterator[Pair]:
        """Yield the next epoch's batches, without what pads the last."""
        self._epoch += 1
        for (batch,) in self._loader.epoch(self._epoch - 1):
            kept = batch.weight > 0
            if kept.any():  # the last block of a validation may be padding alone
                yield batch.images[kept], batch.grades[TASK][kept]


def torch_loader(config: RunConfig, split: str, workers: int, **options: Any) -> DataLoader[Any]:
    """Return torch's loader with processes that outlive an epoch."""
    return DataLoader(
        Photographs(config, split),
        batch_size=config.train.global_batch_size // max(1, config.runtime.workers),
        num_workers=workers,
        persistent_workers=workers > 0,
        **options,
    )


def ours(config: RunConfig, folder: Path, workers: int) -> list[float]:
    """Train by the product's stage; return the loss of each epoch."""
    losses: list[float] = []
    world = World.detect(torch.device("cpu"))
    job = StageJob(
        config.model_dump(mode="json"), stage_of(config), str(folder / "artifact"), {}, torch.get_num_threads()
    )
    StageRun(job, world=world, reporter=FolderReporter(folder / "checkpoints", listener=heard(losses))).execute()
    return losses


def ray(config: RunConfig, folder: Path, workers: int) -> list[float]:
    """Train by the product's driver under Ray Train; return the loss of each epoch."""
    losses: list[float] = []
    os.environ.update({**DRIVER_ENVIRONMENT, **PRIVATE_ENVIRONMENT})
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))
    watched = {"worker_process_setup_hook": record_steps, "env_vars": {STEPS: os.environ[STEPS]}}
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": "ERROR", "include_dashboard": False}
    with scratch_folder() as scratch, private_cluster(scratch, num_cpus=local_cpus(), runtime_env=watched, **options):
        train_driver(config, listener=heard(losses))
    return losses


def heard(losses: list[float]) -> Callable[[dict[str, Any]], None]:
    """Return a listener that keeps the training loss of each epoch."""
    return lambda record: losses.append(record[f"train_{TASK}"]) if record["kind"] == "epoch" else None


def plain(config: RunConfig, folder: Path, workers: int) -> list[float]:
    """Train by a loop of one's own; return the loss of each epoch."""
    engine, world = engine_of(config), World.detect(torch.device("cpu"))
    model: nn.Module = engine.network
    loader = torch_loader(config, "train", workers, shuffle=True)
    if world.size > 1:
        model = DistributedDataParallel(model, gradient_as_bucket_view=True)
        loader = torch_loader(config, "train", workers, sampler=DistributedSampler(loader.dataset))
    validation = torch_loader(config, "validation", workers)
    losses = []
    for epoch in range(config.train.epochs):
        if isinstance(loader.sampler, DistributedSampler):
            loader.sampler.set_epoch(epoch)
        model.train()
        total = torch.zeros(())
        for images, grades in loader:
            engine.optimizer.zero_grad()
            loss = cross_entropy(model(channels_last(images))[TASK], grades)
            loss.backward()
            engine.optimizer.step()
            total += loss.detach()
        losses.append(float(world.sum_(total)) / len(loader) / world.size)
        validated(model, validation)
    if world.is_main:
        torch.save(
            {"model": engine.network.state_dict(), "optimizer": engine.optimizer.state_dict()}, folder / "end.pt"
        )
    return losses


def validated(model: nn.Module, loader: DataLoader[Any]) -> float:
    """Return the mean loss over all images."""
    model.eval()
    sums = torch.zeros(2)
    with torch.inference_mode():
        for images, grades in loader:
            logits = model(channels_last(images))[TASK]
            sums += torch.stack([cross_entropy(logits, grades, reduction="sum"), torch.tensor(float(len(grades)))])
    return float(sums[0] / sums[1])


def channels_last(images: Tensor) -> Tensor:
    """Return images in the layout that the network has."""
    return images.contiguous(memory_format=torch.channels_last)


def lightning(config: RunConfig, folder: Path, workers: int, *, fed: bool = False) -> list[float]:
    """Train by Lightning's Trainer, with torch's loader or fed by ours; return the loss of each epoch."""
    import lightning.pytorch as pl
    from lightning.pytorch.strategies import DDPStrategy

    losses: list[float] = []

    class Grading(pl.LightningModule):
        """The product's network and loss as Lightning's guide writes a module."""

        def __init__(self) -> None:
            super().__init__()
            engine = engine_of(config)
            self.network, self._optimizer = engine.network, engine.optimizer

        def training_step(self, batch: Pair, batch_idx: int) -> Tensor:
            loss = cross_entropy(self.network(channels_last(batch[0]))[TASK], batch[1])
            self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(batch[1]), sync_dist=True)
            return loss

        def on_train_epoch_end(self) -> None:
            losses.append(float(self.trainer.callback_metrics["loss"]))

        def validation_step(self, batch: Pair, batch_idx: int) -> None:
            loss = cross_entropy(self.network(channels_last(batch[0]))[TASK], batch[1])
            self.log("validation_loss", loss, batch_size=len(batch[1]), sync_dist=True)

        def configure_optimizers(self) -> Optimizer:
            return self._optimizer

        def train_dataloader(self) -> Any:
            return self._loader("train", shuffle=True)

        def val_dataloader(self) -> Any:
            return self._loader("validation")

        def _loader(self, split: str, **options: Any) -> Any:
            rank = World.detect(torch.device("cpu"))
            return OurBatches(config, rank, split) if fed else torch_loader(config, split, workers, **options)

    several = config.runtime.workers > 1
    trainer = pl.Trainer(
        accelerator="cpu",
        devices=max(1, config.runtime.workers),
        strategy=DDPStrategy(gradient_as_bucket_view=True) if several else "auto",
        max_epochs=config.train.epochs,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        num_sanity_val_steps=0,
        default_root_dir=folder,
    )
    trainer.fit(Grading())
    trainer.save_checkpoint(folder / "lightning.ckpt")
    return losses


LOOPS: dict[str, Callable[[RunConfig, Path, int], list[float]]] = {
    "ours": ours,
    "ray": ray,
    "plain": plain,
    "lightning": lightning,
    "lightning-fed": lambda config, folder, workers: lightning(config, folder, workers, fed=True),
}


def main() -> None:
    """Train by one of them."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("name", choices=list(LOOPS))
    parser.add_argument("folder", type=Path)
    parser.add_argument("--workers", type=int, default=1, help="processes of torch's loader, of each rank")
    given = parser.parse_args()
    folder: Path = given.folder.resolve()
    os.environ[STEPS] = str(folder / "steps")
    config = from_mapping(json.loads((folder / "config.json").read_text(encoding="utf-8")))
    torch.manual_seed(config.seed)
    np.random.seed(config.seed)
    if given.name != "ray":
        record_steps()
    if "TORCHELASTIC_RUN_ID" in os.environ:
        dist.init_process_group("gloo")
    losses = LOOPS[given.name](config, folder, given.workers)
    if World.detect(torch.device("cpu")).is_main:
        (folder / "losses.json").write_text(json.dumps(losses), encoding="utf-8")
    if dist.is_initialized():
        dist.destroy_process_group()


if __name__ == "__main__":
    main()
