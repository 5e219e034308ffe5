"""What the training loop needs to know of a paper, and how a paper is cut into stages.

A `Method` turns a batch into named losses and probabilities; the loop never learns which paper it runs. A `Plan`
lists the stages that lead to the final networks; each becomes an artifact addressed by what it depends on.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
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
        kind: ``train`` fits a network; ``label`` runs trained networks over images and stores their logits; ``test``
            runs them over the validation and test images and stores their predictions.
        settings: JSON-serialisable; with the stages it needs, everything of the method that its result depends on.
        needs: names of the stages whose artifacts it reads.
        model: what its predictions are filed under, such as ``single_task`` or ``sall``.
        overrides: values by dotted path that replace the run's in this stage, such as ``train.epochs``.
    """

    name: str
    kind: Literal["train", "label", "test"]
    settings: dict[str, Any]
    needs: tuple[str, ...] = ()
    model: str = ""
    overrides: dict[str, Any] = field(default_factory=dict)


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

    def without_test(self) -> "Plan":
        """Return the stages that never look at a test image, which are those of a search's trial."""
        return replace(self, stages=tuple(stage for stage in self.stages if stage.kind != "test"))


TEST = "test"
"""Name of the stage of that kind."""


def with_test(stages: Sequence[Stage], *, compared: Sequence[str]) -> tuple[Stage, ...]:
    """Return the stages, and after them the one that tests every network they train.

    Args:
        stages: which train and label.
        compared: names of those whose predictions are kept: baselines and finals.
    """
    trained = tuple(stage.name for stage in stages if stage.kind == "train")
    models = {stage.name: stage.model for stage in stages if stage.name in compared}
    return (*stages, Stage(TEST, "test", {"models": models}, needs=trained))


@dataclass(frozen=True)
class ParameterGroup:
    """Parameters that learn at one rate.

    Attributes:
        parameters: of the network.
        factor: their rate on optim.lr.
        change: what the rate is multiplied by in later epochs.
        change_epoch: epochs at the rate before; None: it never changes.
    """

    parameters: list[nn.Parameter]
    factor: float = 1.0
    change: float = 1.0
    change_epoch: int | None = None


@dataclass(frozen=True)
class Evaluation:
    """What a method makes of a batch whose truth is known.

    Attributes:
        probabilities: predicted probabilities (B, K) per task; none in a stage that grades nothing.
        measures: (B, ...) per image by name, NaN where one does not apply to an image.
    """

    probabilities: dict[str, Tensor]
    measures: dict[str, Tensor]


class Method(Protocol):
    """The networks and losses of one training stage.

    Networks that an earlier stage trained, and this one names in ``Stage.needs``, replace the weights of the same
    names after `build_model`.
    """

    @property
    def reads_masks(self) -> bool:
        """Whether its batches need the lesion masks."""

    @property
    def compares_pixels(self) -> bool:
        """Whether its losses or measures compare pixels with the batch's images, which then must not be rounded."""

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

    def parameter_groups(self, network: nn.Module) -> list[ParameterGroup]:
        """Return the parameters to train, in groups of one rate each."""

    def differentiated_once(self, network: nn.Module) -> list[nn.Module]:
        """Return the parts of the network, or itself, that a training step differentiates only once.

        These can be compiled.
        """

    def recomputed(self, network: nn.Module) -> list[nn.Module]:
        """Return the parts of those whose activations can be computed again, one part after the other.

        While the backward pass is in a part, the activations of the whole part are in memory, so they are small. None
        lies within another or overwrites its input.
        """

    def training_rows(self, selection: Selection) -> np.ndarray:
        """Return the data set rows (n,) that this stage trains on.

        Raises:
            DataError: the data set lacks what the stage learns from.
        """

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

    def evaluate(self, model: nn.Module, batch: Batch, *, final: bool) -> Evaluation:
        """Return predictions and measures of a batch.

        Args:
            model: the bare network, in evaluation mode.
            batch: of validation or test images.
            final: whether this is the test after training, which may measure what is too slow for every epoch.
        """

    def summarise(self, measures: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return the figures of a whole pass from its images' measures (n, ...)."""

    def criterion(self, summary: Mapping[str, float]) -> float:
        """Return what the best epoch is chosen by, from the summary of the validation images; lower is better."""

    def input_side(self, pixels: int) -> int:
        """Return the side of what the network takes, for images of data.image_size = ``pixels``."""

    def inputs(self, images: Tensor) -> Tensor:
        """Return what the network takes, from images (B, 3, H, W) of data.image_size, normalised both."""

    def probabilities(self, model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
        """Return the predicted probabilities (B, K) per task of what `inputs` returned."""
