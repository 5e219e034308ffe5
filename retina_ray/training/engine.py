"""Everything one optimiser step works with: network, optimiser, ranks, precision."""

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _BatchNorm
from torch.optim import Optimizer

from retina_ray.config import OptimConfig, TrainConfig
from retina_ray.errors import ConfigError
from retina_ray.methods.base import Method
from retina_ray.training.guard import FiniteGuard
from retina_ray.training.optim import build_optimizer
from retina_ray.training.recompute import recompute_activations
from retina_ray.training.world import World


@dataclass
class Engine:
    """A network in training.

    Attributes:
        network: the bare network; its state dict is what is saved.
        model: the network as called: wrapped for several ranks.
        method: turns batches into losses.
        optimizer: fused, over the network's parameters.
        guard: skips updates that are not finite.
        world: this rank.
        seed: of dropout.
        clip_norm: bound of the gradient's norm, or none.
        bf16: whether the forward pass runs under bf16 autocast.
    """

    network: nn.Module
    model: nn.Module
    method: Method
    optimizer: Optimizer
    guard: FiniteGuard
    world: World
    seed: int
    clip_norm: float | None
    bf16: bool

    def autocast(self) -> AbstractContextManager[object]:
        """Return the context of the forward pass."""
        return torch.autocast(self.world.device.type, dtype=torch.bfloat16) if self.bf16 else nullcontext()


def build_engine(
    method: Method,
    *,
    optim: OptimConfig,
    train: TrainConfig,
    seed: int,
    world: World,
    weights: Sequence[Mapping[str, Tensor]] = (),
) -> Engine:
    """Return a freshly initialised engine; the same on every rank for the same seed.

    Args:
        method: of the stage.
        optim: the optimiser and its rate.
        train: precision, batch statistics, compilation, recomputation.
        seed: of the initial weights.
        world: this rank.
        weights: state dicts that earlier stages left; what the network has under the same names is replaced.

    Raises:
        ConfigError: synchronised batch statistics are asked for without a GPU.
    """
    choose_kernels(deterministic=train.deterministic)
    torch.manual_seed(seed)
    network = method.build_model()
    for earlier in weights:
        own = network.state_dict()
        network.load_state_dict({name: earlier.get(name, tensor) for name, tensor in own.items()})
    network = network.to(world.device)
    if train.channels_last:
        network = network.to(memory_format=torch.channels_last)
    if train.batch_norm_momentum is not None:
        for module in network.modules():
            if isinstance(module, _BatchNorm):
                module.momentum = train.batch_norm_momentum
    if train.batch_norm == "sync":
        if world.device.type != "cuda":
            raise ConfigError("synchronised batch statistics need GPUs", "train.batch_norm = sync", "set it to local")
        network = nn.SyncBatchNorm.convert_sync_batchnorm(network)  # type: ignore[no-untyped-call]  # no stubs
    if train.compile:
        for part in method.differentiated_once(network):
            part.compile()  # in place: names in the state dict stay
    if train.recompute:
        for part in method.recomputed(network):
            recompute_activations(part)
    return Engine(
        network=network,
        model=world.wrap(network),
        method=method,
        optimizer=build_optimizer(method.parameter_groups(network), optim),
        guard=FiniteGuard(world.device),
        world=world,
        seed=seed,
        clip_norm=train.clip_norm,
        bf16=uses_bf16(train, world.device),
    )


def choose_kernels(*, deterministic: bool) -> None:
    """Choose between kernels that always give the same result and the fastest ones, in the whole process."""
    torch.use_deterministic_algorithms(deterministic)
    # On by default with deterministic kernels: a debugging aid that writes every buffer once more.
    torch.utils.deterministic.fill_uninitialized_memory = False  # type: ignore[attr-defined]  # a module's property
    torch.backends.cudnn.benchmark = not deterministic


def uses_bf16(train: TrainConfig, device: torch.device) -> bool:
    """Return whether forward passes run in bf16: when asked for, or by default on GPUs that have it."""
    if train.precision == "auto":
        return device.type == "cuda" and torch.cuda.is_bf16_supported(including_emulation=False)
    return train.precision == "bf16"
