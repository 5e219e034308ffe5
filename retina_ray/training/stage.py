"""Execute one stage of a plan on this rank: train a network, or label or test images with trained ones.

The same code runs under Ray Train, under torchrun and inside one process; only the world and the reporter differ.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import partial
from typing import Any, Literal

import numpy as np
import pyarrow as pa
import torch
from safetensors.torch import load as load_tensors
from safetensors.torch import save as save_tensors
from torch import Tensor

from retina_ray.config import RunConfig, TrainConfig, from_mapping, override
from retina_ray.data.augment import Augmentation
from retina_ray.data.batch import Batch
from retina_ray.data.loader import Loader, Samples
from retina_ray.data.node_cache import NodeCache
from retina_ray.data.order import Share, micro_batches
from retina_ray.data.schema import NO_GRADE
from retina_ray.data.selection import Selection, select
from retina_ray.data.shards import ShardedDataset
from retina_ray.data.store import Store
from retina_ray.errors import CheckpointError, StoppedError
from retina_ray.methods import catalogue
from retina_ray.methods.base import Method, Stage
from retina_ray.metrics.json_text import json_text
from retina_ray.metrics.table import make_table, merge_shards
from retina_ray.training.artifact import (
    HISTORY,
    LOGITS,
    PREDICTIONS,
    WEIGHTS,
    Artifact,
    pack_arrays,
    pack_table,
    read_artifact,
    write_artifact,
)
from retina_ray.training.ballot import Ballot
from retina_ray.training.clock import Clock
from retina_ray.training.engine import build_engine, choose_kernels, uses_bf16
from retina_ray.training.evaluate import Evaluated, evaluate, run_over, validate
from retina_ray.training.loop import Loop
from retina_ray.training.policy import Schedule
from retina_ray.training.reporter import Reporter
from retina_ray.training.state import TrainState
from retina_ray.training.world import World


@dataclass(frozen=True)
class StageJob:
    """A stage ready to run, as JSON-like values that any process can receive.

    Attributes:
        config: the run's resolved configuration.
        stage: what to do.
        output: folder or prefix of its artifact.
        inputs: that of each artifact it needs, by stage name.
        threads: CPU threads of this rank.
    """

    config: dict[str, Any]
    stage: Stage
    output: str
    inputs: Mapping[str, str]
    threads: int


class StageRun:
    """One rank's part in a stage.

    Args:
        job: what to do.
        world: this rank.
        reporter: takes progress and checkpoints.
    """

    def __init__(self, job: StageJob, *, world: World, reporter: Reporter) -> None:
        torch.set_num_threads(job.threads)
        self._job = job
        self._world = world
        self._reporter = reporter
        self._config: RunConfig = override(from_mapping(job.config), job.stage.overrides)
        choose_kernels(deterministic=self._config.train.deterministic)
        self._dataset = ShardedDataset.open(self._config.data.path, cache=NodeCache.of(self._config.runtime))
        self._selection = select_rows(self._config, self._dataset)
        self._damaged: set[str] = set()

    def execute(self) -> None:
        """Run the stage; rank 0 writes its artifact."""
        {"train": self._train, "label": self._label, "test": self._test}[self._job.stage.kind]()
        self._world.barrier()

    def _train(self) -> None:
        config, selection = self._config, self._selection
        method = catalogue.build(config.method.name, self._job.stage.settings)
        clock = Clock()
        engine = build_engine(
            method,
            optim=config.optim,
            train=config.train,
            seed=config.seed,
            world=self._world,
            weights=self._earlier_weights(),
        )
        state = TrainState(engine)
        rows = method.training_rows(selection)
        training = self._loader(method, rows, training=True, soft_logits=self._soft_logits())
        validation = self._loader(method, method.validation_rows(selection), training=False)
        schedule = Schedule(
            epochs=config.train.epochs,
            patience=config.train.patience,
            optim=config.optim,
            checkpoint=config.runtime.checkpoint,
            log_every=config.runtime.log_every,
        )
        start = time.perf_counter()
        loop = Loop(
            state,
            loader=training,
            validate=lambda: validate(engine, validation, between=loop.heed),
            schedule=schedule,
            reporter=self._reporter,
            clock=clock,
        )
        loop.run()
        self._close(training, validation)
        facts = {
            "images": len(rows),
            "best_epoch": state.progress.best_epoch,
            "steps": state.progress.step,
            "timing": clock.summary(),
            "device": str(self._world.device),
        }
        self._write(
            facts,
            lambda: {WEIGHTS: save_tensors(state.best_weights), HISTORY: json_text(state.progress.history).encode()},
            start=start,
        )

    def _label(self) -> None:
        """Store each teacher's logits for the training images that have no grade for its task, NaN elsewhere."""
        start = time.perf_counter()
        heed = self._leave_when_told()
        logits: dict[str, np.ndarray] = {}
        images: dict[str, int] = {}
        training = self._selection.graded("train", list(self._selection.grades))
        for _, teacher, method, network in self._trained_networks():
            for task, num_grades in teacher.settings["grades"].items():
                rows = training[self._selection.grades[task][training] == NO_GRADE]
                logits[task] = np.full((len(self._dataset), num_grades), np.nan, dtype=np.float32)
                images[task] = len(rows)
                self._reporter.progress({"kind": "label", "task": task, "images": len(rows)})
                if len(rows):
                    loader = self._loader(method, rows, training=False)
                    compute = partial(self._logits, network)
                    rows, values = run_over(loader, compute, world=self._world, between=heed)
                    self._close(loader)
                    logits[task][rows] = values[task]
        self._write({"images": images}, lambda: {LOGITS: pack_arrays(logits)}, start=start)

    def _test(self) -> None:
        """Store each network's predictions for all validation and test images, and its figures on the latter."""
        start = time.perf_counter()
        heed = self._leave_when_told()
        tables: list[pa.Table] = []
        figures: dict[str, dict[str, float]] = {}
        # What a method draws here depends on the configuration, not on what this process did before.
        torch.manual_seed(self._config.seed)
        for need, _, method, network in self._trained_networks():
            for split in ("validation", "test"):
                loader = self._loader(method, self._selection.rows[split], training=False)
                found = evaluate(
                    method,
                    network,
                    loader,
                    world=self._world,
                    autocast=self._autocast,
                    final=True,
                    between=heed,
                )
                self._close(loader)
                if need in self._job.stage.settings["models"]:
                    tables += self._tables(need, split, found)
            figures[need] = method.summarise(found.measures)
        self._write({"figures": figures}, lambda: {PREDICTIONS: pack_table(merge_shards(tables))}, start=start)

    def _tables(self, network: str, split: str, found: Evaluated) -> list[pa.Table]:
        """Return the prediction table of each task."""
        dataset, rows = self._dataset, found.rows
        return [
            make_table(
                probabilities,
                truth=found.truth[task],
                image_ids=dataset.image_ids[rows],
                group_ids=dataset.group_ids[rows],
                sources=dataset.sources[rows],
                splits=np.full(len(rows), split),
                model=self._job.stage.settings["models"][network],
                task=task,
            )
            for task, probabilities in found.probabilities.items()
        ]

    def _leave_when_told(self) -> Callable[[], None]:
        """Return what all ranks call between batches: it leaves if any was told to, with nothing worth keeping."""
        ballot = Ballot(self._world)

        def heed() -> None:
            (leaving,) = ballot.cast(self._reporter.leaving())
            if leaving:
                raise StoppedError(None)

        return heed

    def _logits(self, network: torch.nn.Module, batch: Batch) -> dict[str, Tensor]:
        with self._autocast():
            return dict(network(batch.images))

    def _autocast(self) -> AbstractContextManager[object]:
        bf16 = uses_bf16(self._config.train, self._world.device)
        return torch.autocast(self._world.device.type, dtype=torch.bfloat16, enabled=bf16)

    def _trained_networks(self) -> Iterator[tuple[str, Artifact, Method, torch.nn.Module]]:
        """Yield each network that this stage needs, ready to predict: stage, artifact, method, network."""
        for need in self._job.stage.needs:
            artifact = _finished(self._job.inputs[need])
            method = catalogue.build(self._config.method.name, artifact.settings)
            network = method.build_model(initial_weights=False)
            network.load_state_dict(load_tensors(artifact.read(WEIGHTS)))
            if self._config.train.channels_last:
                network = network.to(memory_format=torch.channels_last)
            yield need, artifact, method, network.to(self._world.device).eval()

    def _soft_logits(self) -> dict[str, np.ndarray]:
        """Return the cross logits (N, K) by task, from the stages this one needs."""
        return {
            task: values
            for need in self._job.stage.needs
            if LOGITS in (artifact := _finished(self._job.inputs[need])).files
            for task, values in artifact.arrays(LOGITS).items()
        }

    def _earlier_weights(self) -> list[dict[str, Tensor]]:
        """Return the state dicts of the stages that this one needs."""
        artifacts = [_finished(self._job.inputs[need]) for need in self._job.stage.needs]
        return [load_tensors(artifact.read(WEIGHTS)) for artifact in artifacts if WEIGHTS in artifact.files]

    def _loader(
        self,
        method: Method,
        rows: np.ndarray,
        *,
        training: bool,
        soft_logits: dict[str, np.ndarray] | None = None,
    ) -> Loader:
        config, device = self._config, self._world.device
        return Loader(
            Samples(self._dataset, rows, self._selection.grades, soft_logits or {}, self._selection.has_mask),
            share=Share(
                rank=self._world.rank,
                world=self._world.size,
                global_batch=config.train.global_batch_size,
                accumulate=self._micro_batches() if training else 1,
            ),
            augmentation=Augmentation(**config.augment.model_dump()) if training else None,
            image_size=config.data.image_size,
            backend=loader_backend(config.runtime.loader, device),
            device=device,
            seed=config.seed,
            num_threads=self._job.threads,
            with_masks=method.reads_masks,
            dtype=image_dtype(method, config.train, device),
            shuffle=training,
        )

    def _micro_batches(self) -> int:
        train, world = self._config.train, self._world.size
        most = max(world, self._config.runtime.most_workers)
        return micro_batches(train.accumulate, world=world, most=most, global_batch=train.global_batch_size)

    def _close(self, *loaders: Loader) -> None:
        for loader in loaders:
            self._damaged.update(str(name) for name in loader.damaged)
            loader.close()

    def _all_damaged(self) -> list[str]:
        """Return the images that no rank could read, which took no part."""
        return sorted(set().union(*self._world.gather(self._damaged)))

    def _write(self, facts: Mapping[str, Any], files: Callable[[], Mapping[str, bytes]], *, start: float) -> None:
        """Let rank 0 write the artifact, with the facts of every kind of stage; called by all ranks."""
        damaged = self._all_damaged()
        if self._world.is_main:
            shared = {"wall_s": time.perf_counter() - start, "damaged": damaged, "workers": self._world.size}
            write_artifact(Store(self._job.output), stage=self._job.stage, facts={**facts, **shared}, files=files())


def select_rows(config: RunConfig, dataset: ShardedDataset) -> Selection:
    """Return the rows and grades that a configuration selects from its data set."""
    return select(
        dataset,
        tasks=config.method.tasks,
        hide_grades=config.data.hide_grades,
        folds=config.data.folds,
        fold=config.data.fold,
        keep_test=config.data.keep_test,
        hold_out=config.data.hold_out,
        images_per_class=config.data.images_per_class,
        masks=config.data.masks,
        seed=config.seed,
    )


def image_dtype(method: Method, train: TrainConfig, device: torch.device) -> torch.dtype:
    """Return the type of a batch's images: bfloat16 where a GPU's first layer would make that of them anyway.

    Never where a method compares pixels: bfloat16 is coarser than 8 bits near white, half a grey level off.
    """
    rounded = device.type == "cuda" and uses_bf16(train, device) and not method.compares_pixels
    return torch.bfloat16 if rounded else torch.float32


def loader_backend(name: Literal["auto", "dali", "torch"], device: torch.device) -> Literal["dali", "torch"]:
    """Resolve ``auto``: DALI decodes and resamples on GPUs; on CPUs the torch loader's resampling is faster."""
    if name == "auto":
        return "dali" if device.type == "cuda" else "torch"
    return name


def _finished(uri: str) -> Artifact:
    artifact = read_artifact(Store(uri))
    if artifact is None:
        raise CheckpointError("a stage that this one needs is not finished", uri, "run the whole plan again")
    return artifact
