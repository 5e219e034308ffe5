"""What the training loop needs to know of a paper, and how a paper is cut into stages.

A `Method` turns a batch into named losses and probabilities; the loop never learns which paper it runs. A `Plan`
lists the stages that lead to the final networks; each becomes an artifact addressed by what it depends on.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, Protocol

import numpy as np
from torch import Tensor, nn

from retina_ray.data.batch import Batch
from retina_ray.data.selection import Selection


@dataclass(frozen=True)
class Stage:
    """A step on the way to the final networks.

    Attributes:
        name: unique in its plan, such as ``teacher-dr``.
        kind: ``train`` fits a network; ``label`` runs trained networks over images and stores their logits.
        settings: JSON-serialisable; with the stages it needs, everything of the method that its result depends on.
        needs: names of the stages whose artifacts it reads.
        model: what its predictions are filed under, such as ``single_task`` or ``sall``.
    """

    name: str
    kind: Literal["train", "label"]
    settings: dict[str, Any]
    needs: tuple[str, ...] = ()
    model: str = ""


@dataclass(frozen=True)
class Plan:
    """The stages of a run in an order in which each follows what it needs.

    Attributes:
        stages: all of them.
        baselines: names of the single-task stages that the final networks are compared with.
        finals: names of the stages whose networks are the result; several when each task has its own.
    """

    stages: tuple[Stage, ...]
    baselines: tuple[str, ...]
    finals: tuple[str, ...]


class Method(Protocol):
    """The networks and losses of one training stage."""

    def weight_files(self) -> list[Path]:
        """Return the files that `build_model` reads its initial weights from.

        Raises:
            ConfigError: one of them cannot be had.
        """

    def check_image_size(self, pixels: int) -> None:
        """Check that the network takes square images of that side.

        Raises:
            ConfigError: it does not.
        """

    def build_model(self, *, initial_weights: bool = True) -> nn.Module:
        """Return the network, initialised from the current random state.

        Args:
            initial_weights: load the configured pretrained weights; false where a state dict is loaded next.
        """

    def training_rows(self, selection: Selection) -> np.ndarray:
        """Return the data set rows (n,) that this stage trains on."""

    def validation_rows(self, selection: Selection) -> np.ndarray:
        """Return the data set rows (n,) that its epochs are judged by."""

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return the number of labelled images behind each loss term, scalars; needs no forward pass."""

    def losses(self, model: nn.Module, batch: Batch, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return each loss term of a micro-batch, summed over its images and divided by its count.

        Args:
            model: the network, perhaps wrapped for several ranks.
            batch: a micro-batch.
            counts: the terms' counts over the whole global batch, so that micro-batches and ranks add up.
        """

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return the weighted sum that is minimised."""

    def measures(self, model: nn.Module, batch: Batch) -> dict[str, Tensor]:
        """Return what validation averages, (B,) per image by name, NaN where a measure does not apply to an image."""

    def criterion(self, means: Mapping[str, float]) -> float:
        """Return what the best epoch is chosen by, from the measures' means; lower is better."""

    def probabilities(self, model: nn.Module, images: Tensor) -> dict[str, Tensor]:
        """Return the predicted probabilities (B, K) per task."""
