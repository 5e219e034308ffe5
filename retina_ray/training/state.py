"""The state of a training, and its checkpoint on disk.

A checkpoint is a folder: ``model.safetensors``, ``best.safetensors``, ``optimizer.pt``, ``progress.json`` and, written
last, ``MANIFEST.json`` with the SHA-256 of each. Both torch and safetensors load bit-flipped files without a word, so
nothing is read before its hash is checked. Random state is not saved: order, augmentation and dropout are functions of
the seed and the step.
"""

import json
import math
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from retina_ray.data.manifest import sha256_of
from retina_ray.errors import CheckpointError
from retina_ray.metrics.json_text import json_text, null_as_nan
from retina_ray.training.engine import Engine

MANIFEST = "MANIFEST.json"
FILES = {"model.safetensors", "best.safetensors", "optimizer.pt", "progress.json"}


@dataclass
class Progress:
    """How far a training is; everything is saved.

    Attributes:
        step: optimiser steps done; the one integer that is the position in the data.
        sums: loss terms summed over the steps of the epoch so far.
        best_criterion: lowest validation criterion so far.
        best_epoch: epochs done when it was reached, 0 before the first validation.
        history: one record per finished epoch.
        finished: the training has ended.
    """

    step: int = 0
    sums: dict[str, float] = field(default_factory=dict)
    best_criterion: float = float("inf")
    best_epoch: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)
    finished: bool = False


@dataclass
class TrainState:
    """A training: the engine, its progress and the weights of the best epoch (on the CPU)."""

    engine: Engine
    progress: Progress = field(default_factory=Progress)
    best_weights: dict[str, Tensor] = field(default_factory=dict)

    def keep_best(self) -> None:
        """Remember the present weights as the best."""
        self.best_weights = cpu_state(self.engine.network)


def cpu_state(network: torch.nn.Module) -> dict[str, Tensor]:
    """Return a contiguous copy of a network's state on the CPU."""
    # clone: on the CPU, .cpu() alone would return the live tensors
    return {name: tensor.detach().cpu().clone().contiguous() for name, tensor in network.state_dict().items()}


def save(state: TrainState, folder: Path) -> Path:
    """Write a checkpoint into an empty folder, the manifest last."""
    save_file(cpu_state(state.engine.network), folder / "model.safetensors")
    save_file(state.best_weights, folder / "best.safetensors")
    torch.save(state.engine.optimizer.state_dict(), folder / "optimizer.pt")
    (folder / "progress.json").write_text(json_text(asdict(state.progress)), encoding="utf-8")
    hashes = {path.name: sha256_of(path) for path in sorted(folder.iterdir())}
    (folder / MANIFEST).write_text(json.dumps(hashes, indent=1), encoding="utf-8")
    return folder


def verify(folder: Path) -> None:
    """Check a checkpoint against its manifest.

    Raises:
        CheckpointError: a file is missing or differs, or there is no manifest.
    """
    fix = "use the checkpoint before it"
    try:
        hashes = json.loads((folder / MANIFEST).read_text(encoding="utf-8"))
    except (OSError, ValueError):
        raise CheckpointError("the checkpoint has no readable manifest", str(folder), fix) from None
    if not isinstance(hashes, dict) or set(hashes) != FILES:
        raise CheckpointError("the checkpoint's manifest does not name its files", str(folder), fix)
    for name, expected in hashes.items():
        path = folder / name
        if not path.is_file() or sha256_of(path) != expected:
            raise CheckpointError("the checkpoint is damaged", str(path), fix)


def load(state: TrainState, folder: Path) -> None:
    """Restore a verified checkpoint into a state of the same shape.

    Raises:
        CheckpointError: the folder does not match its manifest.
    """
    verify(folder)
    engine = state.engine
    engine.network.load_state_dict(load_file(folder / "model.safetensors"))
    # weights_only: nothing that is loaded may execute code
    saved = torch.load(folder / "optimizer.pt", map_location=engine.world.device, weights_only=True)
    engine.optimizer.load_state_dict(saved)
    state.best_weights = load_file(folder / "best.safetensors")
    state.progress = _read_progress(folder / "progress.json")


def _read_progress(path: Path) -> Progress:
    fields = json.loads(path.read_text(encoding="utf-8"))
    best = fields.pop("best_criterion")
    # null before the first validation, when it is infinite.
    return Progress(**null_as_nan(fields), best_criterion=math.inf if best is None else best)
