"""Where and how a run executes: the section ``runtime`` of a configuration."""

from typing import Annotated, Literal

from pydantic import Field, model_validator

from retina_ray.config_section import Section


class CheckpointConfig(Section):
    """When training state is saved, and how much of it is kept."""

    every_s: float | None = Field(default=300.0, gt=0.0)
    """Seconds between checkpoints; null: no checkpoints by time."""
    every_steps: int | None = Field(default=None, ge=1)
    """Optimiser steps between checkpoints; null: none by steps."""
    keep: int = Field(default=2, ge=2, le=10)
    """How many are kept; two at least, so that a damaged newest one costs little."""


class RuntimeConfig(Section):
    """Where and how a run executes.

    Of these, ``workers`` (rounding, and batch statistics with train.batch_norm = local), ``use_gpu`` (kernels,
    precision) and ``loader`` (single grey levels) have an effect on the weights.
    """

    storage: str = "runs"
    """Folder or s3:// prefix for runs and artifacts."""
    workers: Annotated[int, Field(ge=0)] | tuple[Annotated[int, Field(ge=1)], Annotated[int, Field(ge=1)]] = 1
    """Ray Train workers (ranks); 0 trains inside the calling process. [fewest, most]: as many as the cluster has room
    for, more or fewer while nodes come and go; the global batch stays what it is."""
    use_gpu: bool | Literal["auto"] = "auto"
    """Whether workers have GPUs; ``auto``: where there are enough."""
    gpus_per_worker: float = Field(default=1.0, gt=0.0, le=1.0)
    """GPUs per worker where they have any; less than 1 lets several small trainings share one."""
    cpus_per_worker: Annotated[int, Field(ge=1)] | Literal["auto"] = "auto"
    """CPUs per worker; ``auto`` shares the cluster's CPUs evenly, eight each at most."""
    autoscaling: bool = False
    """Rely on the cluster's autoscaler to start nodes for what is missing, and wait for them, instead of refusing to
    start; use_gpu and cpus_per_worker must be given."""
    address: str = "local"
    """Ray cluster: local (a private one), auto, or host:port."""
    loader: Literal["auto", "dali", "torch"] = "auto"
    """``auto`` is dali on GPUs and torch on CPUs, where its resampling is faster."""
    cache: str = "~/.cache/retina-ray"
    """Node-local folder for shards of remote data sets."""
    cache_gb: float = Field(default=200.0, gt=0)
    """Size of that folder in GB; data sets that nobody reads make room, the longest unused first. A larger data set is
    kept nevertheless, as long as the disk has room."""
    log_every: int = Field(default=10, ge=1)
    """Steps between progress records; also when time-based checkpoints and GPU-side failures are looked at."""
    max_failures: int = Field(default=3, ge=0)
    """Worker failures that are survived by restarting from the newest verified checkpoint."""
    stall_s: float = Field(default=300.0, ge=1.0)
    """A rank that gets nowhere for this many seconds writes its stacks and ends, as a failure."""
    checkpoint: CheckpointConfig = CheckpointConfig()

    @property
    def most_workers(self) -> int:
        """The number of workers, or the highest."""
        return self.workers if isinstance(self.workers, int) else self.workers[1]

    @property
    def fewest_workers(self) -> int:
        """The number of workers, or the lowest."""
        return self.workers if isinstance(self.workers, int) else self.workers[0]

    @model_validator(mode="after")
    def _fewest_come_first(self) -> "RuntimeConfig":
        if self.fewest_workers > self.most_workers:
            raise ValueError(f"workers must be [fewest, most], got {list(self.workers)}")  # type: ignore[arg-type]
        return self
