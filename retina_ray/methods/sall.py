"""SALL: synergic adversarial label learning (Ju et al.), as stages, networks and losses.

Stage 1 trains one single-task teacher per task; stage 2 runs each teacher over the images that have no grade for its
task and stores the logits; stage 3 trains the student with hard own labels and soft cross labels. Logits are stored
before the softmax, so a search over temperatures, ratios and loss weights repeats stage 3 only.

Paper map (equation -> function -> tests in tests/papers/test_sall_equations.py)
    Eqs. 1, 4, 5   losses.sall.task_cross_entropy   test_eq_1_*, test_eq_4_*, test_eq_5_*, test_eqs_4_and_5_*
    Eq. 2          losses.sall.synergic_labels      test_eq_2_*
    Eq. 3          models.sall.MultiTaskGrader      test_eq_3_*
    Eq. 6          losses.sall.total_loss           test_eq_6_*
    Eqs. 7, 8      autograd and the optimiser       test_eq_7_*, test_eq_8_*
    Eq. 9          losses.sall.predict              test_eq_9_*
    Eq. 10         losses.sall.temperature_softmax  test_eq_10_*

Deviation register (what the paper prints -> what happens here; why; test)
    Algorithm 1 requires a lambda that no equation uses -> a weight per task in Eq. 6, 1 by default. test_eq_6_*
    Eq. 2 is a plain softmax, section III-D adds a temperature -> the temperature is used, in the cross labels, in the
        student's loss and in prediction (the authors' code divides the network's logits as well). test_eq_10_*
    Teachers' temperature is not stated -> teachers train by Eq. 1, at 1, so one teacher serves every temperature; the
        single-task rows of Table III at T = 3 are networks of their own. test_teachers_do_not_depend_on_temperature
    Distillation usually scales the soft loss by T**2 -> no factor; neither the paper nor the code has one. test_eq_4_*
    "Adam, lr 1e-5" presumes ImageNet weights -> recipes that start from scratch state their own rate.
        test_every_recipe_from_scratch_states_its_own_rate
    Sampling: the code draws with replacement over the pooled list -> every image once per epoch, so that a run resumes
        exactly. The paper states neither. test_order.py
    A fixed 50/25/25 split and three-fold cross-validation are both claimed -> the data set's splits, or data.folds.
        test_splits.py
"""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor, nn

from retina_ray.config_method import SallConfig
from retina_ray.data.batch import Batch
from retina_ray.data.schema import NO_GRADE, Task, require_tasks
from retina_ray.data.selection import Selection, take_ratio
from retina_ray.losses.sall import predict, task_count, task_cross_entropy, temperature_softmax, total_loss
from retina_ray.methods.base import Evaluation, ParameterGroup, Plan, Stage, with_test
from retina_ray.metrics.known_mean import known_mean
from retina_ray.models.backbones import build_backbone, check_image_size, weights_file
from retina_ray.models.blocks import blocks
from retina_ray.models.sall import MultiTaskGrader

LABELS = "cross-labels"
SINGLE_TASK = "single_task"


def plan(config: SallConfig, tasks: Mapping[str, Task]) -> Plan:
    """Return the stages of a SALL run.

    Args:
        config: the method's section of the configuration.
        tasks: the data set's tasks by name; those of ``config.tasks`` are used.

    Raises:
        ConfigError: the data set lacks one of them.
    """
    require_tasks(config.tasks, tasks)
    grades = {name: tasks[name].num_grades for name in config.tasks}
    teachers = tuple(
        Stage(f"teacher-{name}", "train", _settings(config, {name: grades[name]}, teacher=True), model=SINGLE_TASK)
        for name in config.tasks
    )
    labels = Stage(LABELS, "label", {"tasks": list(config.tasks)}, needs=tuple(stage.name for stage in teachers))
    needs = (LABELS,) if config.synergic_labels else ()
    rate = {} if config.student.lr is None else {"optim.lr": config.student.lr}
    heads = [grades] if config.multi_task else [{name: grades[name]} for name in config.tasks]
    students = tuple(
        Stage(_student_name(own), "train", _settings(config, own, teacher=False), needs, model_name(config), rate)
        for own in heads
    )
    uses_teachers = config.synergic_labels or config.multi_task
    before = (*(teachers if uses_teachers else ()), *((labels,) if config.synergic_labels else ()))
    baselines = tuple(stage.name for stage in teachers) if uses_teachers else ()
    finals = tuple(stage.name for stage in students)
    stages = with_test((*before, *students), compared=(*baselines, *finals))
    return Plan(stages=stages, baselines=baselines, finals=finals)


def model_name(config: SallConfig) -> str:
    """Return what the final networks' predictions are filed under, by the switches of Table III."""
    names = {
        (False, False): SINGLE_TASK,
        (True, False): "synergic_labels",
        (False, True): "multi_task",
        (True, True): "sall",
    }
    return names[config.synergic_labels, config.multi_task]


@dataclass(frozen=True)
class SallGrader:
    """A teacher or a student: the method of one training stage.

    Attributes:
        grades: number of grades K per head.
        tasks: all tasks of the run; those without a head lend their images, with soft labels.
        synergic_labels: whether images without a grade for a head's task take part through their soft label.
        temperature: T of Eq. 10.
        ratio: fraction of each task's training images used.
        loss_weight: weight of a head's loss in Eq. 6.
        backbone: torchvision classifier.
        weights: its initial weights.
        dropout: before the heads.
    """

    grades: dict[str, int]
    tasks: tuple[str, ...]
    synergic_labels: bool
    temperature: float
    ratio: dict[str, float]
    loss_weight: dict[str, float]
    backbone: str
    weights: str
    dropout: float

    reads_masks = False
    compares_pixels = False

    def build_model(self, *, initial_weights: bool = True) -> MultiTaskGrader:
        """Return the network, initialised from the current random state or from the configured weights."""
        weights = self.weights if initial_weights else "none"
        backbone, num_features = build_backbone(self.backbone, weights=weights)
        return MultiTaskGrader(backbone, num_features, grades=self.grades, dropout=self.dropout)

    def weight_files(self) -> list[Path]:
        """Return the file of the backbone's initial weights, if there is one; see `backbones.weights_file`."""
        file = weights_file(self.backbone, self.weights)
        return [] if file is None else [file]

    def check_image_size(self, pixels: int) -> None:
        """Refuse a size that the backbone does not take; see `backbones.check_image_size`."""
        check_image_size(self.backbone, pixels)

    def parameter_groups(self, network: nn.Module) -> list[ParameterGroup]:
        """Return all of them in one group."""
        return [ParameterGroup(list(network.parameters()))]

    def differentiated_once(self, network: nn.Module) -> list[nn.Module]:
        """Return the network."""
        return [network]

    def recomputed(self, network: nn.Module) -> list[nn.Module]:
        """Return the blocks of the backbone."""
        assert isinstance(network, MultiTaskGrader)
        return blocks(network.backbone)

    def training_rows(self, selection: Selection) -> np.ndarray:
        """Return the rows (n,) with a label for a head: a grade, or with synergic labels any image of the run."""
        lenders = self.tasks if self.synergic_labels else tuple(self.grades)
        return take_ratio(selection, selection.graded("train", lenders), self.ratio, tasks=lenders)

    def validation_rows(self, selection: Selection) -> np.ndarray:
        """Return the validation rows (n,) with a grade for a head."""
        return selection.graded("validation", tuple(self.grades))

    def counts(self, batch: Batch) -> dict[str, Tensor]:
        """Return N of Eqs. 4 and 5: the labelled images of each head."""
        return {task: task_count(batch.grades[task], batch.soft_logits.get(task), batch.weight) for task in self.grades}

    def losses(self, model: nn.Module, batch: Batch, counts: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the cross entropy of each head (Eqs. 1, 4, 5)."""
        logits = model(batch.images)
        return {
            task: task_cross_entropy(
                logits[task], batch.grades[task], batch.soft_logits.get(task), batch.weight, self.temperature
            )
            / counts[task]
            for task in self.grades
        }

    def total(self, terms: Mapping[str, Tensor]) -> Tensor:
        """Return Eq. 6."""
        return total_loss(terms, self.loss_weight)

    def evaluate(self, model: nn.Module, batch: Batch, *, final: bool) -> Evaluation:
        """Measure the negative log-likelihood of the true grade and whether it is predicted, NaN without a grade."""
        values: dict[str, Tensor] = {}
        all_probabilities = self.probabilities(model, self.inputs(batch.images))
        predictions = predict(all_probabilities)
        for task, probabilities in all_probabilities.items():
            truth = batch.grades[task]
            graded = truth != NO_GRADE
            likelihood = probabilities.gather(1, truth.clamp(min=0).unsqueeze(1)).squeeze(1)
            correct = (predictions[task] == truth).float()
            values[f"loss_{task}"] = (-likelihood.clamp(min=1e-12).log()).where(graded, math.nan)
            values[f"accuracy_{task}"] = correct.where(graded, math.nan)
        return Evaluation(all_probabilities, values)

    def summarise(self, measures: Mapping[str, np.ndarray]) -> dict[str, float]:
        """Return the measures' means over graded images, NaN where none is."""
        return {name: known_mean(values) for name, values in measures.items()}

    def criterion(self, summary: Mapping[str, float]) -> float:
        """Return Eq. 6 over the validation images' own grades."""
        return sum(self.loss_weight.get(task, 1.0) * summary[f"loss_{task}"] for task in self.grades)

    def input_side(self, pixels: int) -> int:
        """Return the same side."""
        return pixels

    def inputs(self, images: Tensor) -> Tensor:
        """Return the images as they are."""
        return images

    def probabilities(self, model: nn.Module, inputs: Tensor) -> dict[str, Tensor]:
        """Return the probabilities (B, K) per head (Eq. 10); their argmax is Eq. 9."""
        return {task: temperature_softmax(logits, self.temperature) for task, logits in model(inputs).items()}


def build(settings: Mapping[str, Any]) -> SallGrader:
    """Return the method of a training stage from the settings that `plan` wrote."""
    return SallGrader(**{**settings, "tasks": tuple(settings["tasks"])})


def _settings(config: SallConfig, grades: dict[str, int], *, teacher: bool) -> dict[str, Any]:
    """Return a `SallGrader`'s arguments with no more than its result depends on, so that equal networks are one."""
    synergic = config.synergic_labels and not teacher
    lenders = config.tasks if synergic else tuple(grades)
    return {
        "grades": grades,
        "tasks": list(lenders),
        "synergic_labels": synergic,
        "temperature": 1.0 if teacher else config.temperature,
        "ratio": {} if teacher else {task: config.ratio[task] for task in lenders if config.ratio.get(task, 1.0) < 1.0},
        # a single head's weight would only scale its learning rate
        "loss_weight": {task: config.loss_weight.get(task, 1.0) for task in grades} if len(grades) > 1 else {},
        "backbone": config.backbone,
        "weights": config.weights,
        "dropout": config.dropout if teacher or config.student.dropout is None else config.student.dropout,
    }


def _student_name(grades: Mapping[str, int]) -> str:
    return f"student-{'-'.join(grades)}"
