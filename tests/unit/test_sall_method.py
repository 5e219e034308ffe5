"""SALL as stages: what each run plans, what its artifacts are addressed by, what a batch counts and costs."""

import math
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

from retina_ray.config import RunConfig, dotted_paths, override
from retina_ray.config_method import SallConfig
from retina_ray.data.schema import NO_GRADE
from retina_ray.data.selection import select
from retina_ray.methods import catalogue
from retina_ray.methods.base import Plan
from retina_ray.methods.sall import SallGrader, build, model_name
from retina_ray.training.artifact import stage_keys
from tests.helpers import AMD, DR, SCLEROSIS, batch_of, write_dataset

TASKS = {task.name: task for task in (DR, AMD, SCLEROSIS)}
TEACHERS = ("teacher-dr", "teacher-amd")


def a_config(*assignments: str) -> RunConfig:
    base = override(RunConfig(name="base"), ["train.global_batch_size=24", "data.folds=5", "runtime.workers=2"])
    return override(base, assignments)


def plan_of(config: RunConfig) -> Plan:
    return catalogue.plan(config, TASKS)


def keys_of(*assignments: str, fingerprint: str = "print") -> dict[str, str]:
    config = a_config(*assignments)
    return stage_keys(plan_of(config), config, fingerprint, initial_weights={}, use_gpu=False)


@pytest.mark.parametrize(
    ("synergic", "multi", "stages", "baselines", "finals", "model"),
    [
        (False, False, ("student-dr", "student-amd"), (), ("student-dr", "student-amd"), "single_task"),
        (
            True,
            False,
            (*TEACHERS, "cross-labels", "student-dr", "student-amd"),
            TEACHERS,
            ("student-dr", "student-amd"),
            "synergic_labels",
        ),
        (False, True, (*TEACHERS, "student-dr-amd"), TEACHERS, ("student-dr-amd",), "multi_task"),
        (True, True, (*TEACHERS, "cross-labels", "student-dr-amd"), TEACHERS, ("student-dr-amd",), "sall"),
    ],
)
def test_the_switches_of_table_iii_are_four_plans(
    synergic: bool, multi: bool, stages: tuple[str, ...], baselines: Any, finals: Any, model: str
) -> None:
    config = a_config(f"method.synergic_labels={str(synergic).lower()}", f"method.multi_task={str(multi).lower()}")
    plan = plan_of(config)
    assert tuple(stage.name for stage in plan.stages) == (*stages, "test")
    assert tuple(stage.name for stage in plan.without_test().stages) == stages
    assert (plan.baselines, plan.finals) == (baselines, finals)
    assert model_name(config.method) == model
    seen: set[str] = set()
    for stage in plan.stages:
        assert set(stage.needs) <= seen, "each stage follows what it needs"
        seen.add(stage.name)
        if stage.kind == "label":
            assert stage.needs == TEACHERS
        elif stage.kind == "test":
            assert stage.needs == (*baselines, *finals)
            assert set(stage.settings["models"]) == {*baselines, *finals}
        else:
            assert stage.needs == (("cross-labels",) if synergic and stage.name in finals else ())
            assert stage.model == (model if stage.name in finals else "single_task")
            build(stage.settings)


def test_three_tasks_have_three_teachers_and_one_student() -> None:
    config = a_config("method.tasks=[dr, amd, arteriosclerosis]")
    plan = plan_of(config)
    trained = plan.without_test().stages
    assert [stage.name for stage in trained] == [
        "teacher-dr",
        "teacher-amd",
        "teacher-arteriosclerosis",
        "cross-labels",
        "student-dr-amd-arteriosclerosis",
    ]
    assert trained[-1].settings["grades"] == {"dr": 3, "amd": 2, "arteriosclerosis": 2}
    two = keys_of()
    three = keys_of("method.tasks=[dr, amd, arteriosclerosis]")
    assert [two[name] for name in TEACHERS] == [three[name] for name in TEACHERS]


def changed(*assignments: str, base: tuple[str, ...] = ()) -> set[str]:
    """Return the stages that train or label otherwise; the test is another one whenever they are."""
    before, after = keys_of(*base), keys_of(*base, *assignments)
    assert before.keys() == after.keys()
    differing = {name for name in before if before[name] != after[name]}
    assert ("test" in differing) == bool(differing)
    return differing - {"test"}


@pytest.mark.parametrize(
    "assignment",
    [
        "method.temperature=7",
        "method.ratio.dr=0.5",
        "method.ratio={dr: 0.5, amd: 0.25}",
        "method.loss_weight.amd=2",
        "method.student.lr=0.01",
        "method.student.dropout=0.1",
    ],
)
def test_what_a_search_varies_changes_the_student_alone(assignment: str) -> None:
    assert changed(assignment) == {"student-dr-amd"}


def test_teachers_do_not_depend_on_temperature() -> None:
    for switches in ((), ("method.multi_task=false",), ("method.synergic_labels=false",)):
        assert not changed("method.temperature=9", base=switches) & {*TEACHERS, "cross-labels"}
    for stage in plan_of(a_config("method.temperature=9")).stages[:2]:
        assert stage.settings["temperature"] == 1.0
        assert stage.settings["ratio"] == {}
        assert stage.settings["synergic_labels"] is False
        assert build(stage.settings).temperature == 1.0


@pytest.mark.parametrize(
    "assignments",
    [
        ("method.ratio={dr: 1.0, amd: 1.0}",),
        ("method.loss_weight={dr: 1.0, amd: 1.0}",),
        ("method.ratio={dr: 1.0}", "method.loss_weight={amd: 1.0}"),
    ],
)
def test_saying_the_default_is_no_other_run(assignments: tuple[str, ...]) -> None:
    assert changed(*assignments) == set()


def test_a_plain_single_task_run_is_its_teachers() -> None:
    plain = ("method.synergic_labels=false", "method.multi_task=false")
    teachers, students = keys_of(), keys_of(*plain, "method.temperature=1")
    for task in ("dr", "amd"):
        assert students[f"student-{task}"] == teachers[f"teacher-{task}"]
    at_three = keys_of(*plain)
    for task in ("dr", "amd"):
        assert at_three[f"student-{task}"] != teachers[f"teacher-{task}"]


@pytest.mark.parametrize(
    "assignment",
    [
        "seed=1",
        "data.image_size=64",
        "data.hide_grades=half",
        "data.folds=4",
        "data.fold=1",
        "data.images_per_class=9",
        "augment.skew=0.1",
        "optim.lr=0.5",
        "optim.schedule=cosine",
        "train.epochs=3",
        "train.global_batch_size=48",
        "train.accumulate=2",
        "train.precision=bf16",
        "runtime.workers=1",
        "runtime.loader=dali",
        "method.backbone=resnet18",
        "method.weights=none",
        "method.dropout=0.1",
    ],
)
def test_what_shapes_every_network_changes_every_key(assignment: str) -> None:
    assert changed(assignment) == set(keys_of()) - {"test"}


def test_another_data_set_changes_every_key_and_another_path_none() -> None:
    before, after = keys_of(), keys_of(fingerprint="other")
    assert all(before[name] != after[name] for name in before)
    assert changed("data.path=elsewhere") == set()


OTHER_VALUES = {
    "runtime.storage": "elsewhere",
    "runtime.use_gpu": True,
    "runtime.gpus_per_worker": 0.5,
    "runtime.cpus_per_worker": 3,
    "runtime.autoscaling": True,
    "runtime.address": "auto",
    "runtime.cache": "/tmp/cache",
    "runtime.cache_gb": 1.0,
    "runtime.log_every": 1,
    "runtime.max_failures": 9,
    "runtime.stall_s": 60.0,
    "runtime.checkpoint.every_s": 1.0,
    "runtime.checkpoint.every_steps": 5,
    "runtime.checkpoint.keep": 7,
    "evaluate.bootstrap": 3,
    "evaluate.level": 0.9,
    "evaluate.bins": 5,
    "evaluate.coverage": 0.8,
    "tracking.enabled": False,
    "tracking.uri": "sqlite:///x",
    "tracking.experiment": "other",
    "tracking.model_name": "other",
    "name": "other",
}


def test_where_and_how_a_run_executes_changes_no_key() -> None:
    neutral = {
        path for path in dotted_paths(RunConfig(name="x")) if path.startswith(("runtime.", "evaluate.", "track"))
    }
    assert neutral - {"runtime.workers", "runtime.loader"} == OTHER_VALUES.keys() - {"name"}
    config = a_config()
    keys = keys_of()
    for path, value in OTHER_VALUES.items():
        other = override(config, {path: value})
        assert other != config
        assert stage_keys(plan_of(other), other, "print", initial_weights={}, use_gpu=False) == keys, path


def test_what_a_stage_starts_from_and_runs_on_changes_its_key() -> None:
    config = a_config()
    started = stage_keys(plan_of(config), config, "print", initial_weights={"teacher-dr": ["cafe"]}, use_gpu=False)
    changed = {name for name, key in keys_of().items() if started[name] != key}
    assert changed == {"teacher-dr", "cross-labels", "student-dr-amd", "test"}
    on_gpu = stage_keys(plan_of(config), config, "print", initial_weights={}, use_gpu=True)
    assert {on_gpu[name] == key for name, key in keys_of().items()} == {False}


def test_training_in_process_is_training_with_one_worker() -> None:
    assert keys_of("runtime.workers=0") == keys_of("runtime.workers=1")


def a_grader(**changes: Any) -> SallGrader:
    values: dict[str, Any] = {
        "grades": {"dr": 3, "amd": 2},
        "tasks": ("dr", "amd"),
        "synergic_labels": True,
        "temperature": 2.5,
        "ratio": {},
        "loss_weight": {"dr": 1.0, "amd": 0.25},
        "backbone": "unused",
        "weights": "none",
        "dropout": 0.0,
    }
    return SallGrader(**{**values, **changes})


class Fixed(nn.Module):
    """Answers with the logits it was made with."""

    def __init__(self, logits: dict[str, torch.Tensor]) -> None:
        super().__init__()
        self.logits = logits

    def forward(self, images: torch.Tensor) -> dict[str, torch.Tensor]:
        return self.logits


def test_counts_and_losses_are_those_of_a_loop_over_images() -> None:
    grader, temperature = a_grader(), 2.5
    grades = {"dr": [0, -1, 2, 1, -1, 2], "amd": [-1, 1, 0, -1, -1, 1]}
    nan = [math.nan] * 3
    soft = {
        "dr": torch.tensor([nan, [1.0, 2.0, 0.5], nan, nan, nan, [9.0, 9.0, 9.0]]),
        "amd": torch.tensor([[0.3, -1.0], [math.nan] * 2, [math.nan] * 2, [4.0, 1.0], [0.0, 2.0], [math.nan] * 2]),
    }
    weight = [1.0, 1.0, 1.0, 0.0, 1.0, 1.0]
    batch = batch_of(grades, soft=soft, weight=weight)
    logits = {"dr": torch.randn(6, 3), "amd": torch.randn(6, 2)}
    counts = grader.counts(batch)
    losses = grader.losses(Fixed(logits), batch, counts)
    for task, values in logits.items():
        total, number = 0.0, 0
        for row in range(6):
            if weight[row] == 0:
                continue
            log_probabilities = torch.log_softmax(values[row] / temperature, dim=0)
            if grades[task][row] >= 0:
                total, number = total - float(log_probabilities[grades[task][row]]), number + 1
            elif not soft[task][row].isnan().any():
                label = torch.softmax(soft[task][row] / temperature, dim=0)
                total, number = total - float((label * log_probabilities).sum()), number + 1
        assert float(counts[task]) == number
        assert float(losses[task]) == pytest.approx(total / number, rel=1e-5)
    assert float(grader.total(losses)) == pytest.approx(float(losses["dr"] + 0.25 * losses["amd"]), rel=1e-6)


def test_without_soft_labels_only_grades_count() -> None:
    batch = batch_of({"dr": [0, -1, 2], "amd": [-1, -1, -1]})
    grader = a_grader(synergic_labels=False)
    counts = grader.counts(batch)
    assert {task: float(count) for task, count in counts.items()} == {"dr": 2.0, "amd": 0.0}
    losses = grader.losses(
        Fixed({"dr": torch.randn(3, 3), "amd": torch.randn(3, 2)}),
        batch,
        {"dr": counts["dr"], "amd": counts["amd"].clamp(min=1.0)},
    )
    assert float(losses["amd"]) == 0.0


def test_measures_are_nan_where_there_is_no_grade() -> None:
    logits = {"dr": torch.randn(4, 3), "amd": torch.tensor([[9.0, 0.0], [0.0, 9.0], [0.0, 0.0], [0.0, 9.0]])}
    batch = batch_of({"dr": [-1, -1, -1, 1], "amd": [0, 0, -1, 1]})
    grader = a_grader()
    measures = grader.evaluate(Fixed(logits), batch, final=False).measures
    assert list(measures) == ["loss_dr", "accuracy_dr", "loss_amd", "accuracy_amd"]
    assert [bool(value.isnan()) for value in measures["loss_dr"]] == [True, True, True, False]
    assert measures["accuracy_amd"][[0, 1, 3]].tolist() == [1.0, 0.0, 1.0]
    assert math.isnan(measures["accuracy_amd"][2])
    expected = -torch.log_softmax(logits["amd"][1] / 2.5, dim=0)[0]
    assert float(measures["loss_amd"][1]) == pytest.approx(float(expected), rel=1e-5)
    assert grader.criterion({"loss_dr": 2.0, "loss_amd": 4.0}) == 3.0


def test_a_certain_error_is_a_finite_measure() -> None:
    evaluation = a_grader(grades={"dr": 3}).evaluate(
        Fixed({"dr": torch.tensor([[1e4, 0.0, 0.0]])}), batch_of({"dr": [1], "amd": [-1]}), final=True
    )
    assert float(evaluation.measures["loss_dr"]) == pytest.approx(-math.log(1e-12), rel=1e-5)


def test_a_student_trains_on_every_graded_image_and_a_teacher_on_its_own(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path)
    selection = select(dataset, tasks=("dr", "amd"))
    train = selection.rows["train"]
    for stage in plan_of(a_config()).stages:
        if stage.kind == "train":
            rows = build(stage.settings).training_rows(selection)
            heads = stage.settings["grades"]
            lenders = ["dr", "amd"] if stage.name.startswith("student") else list(heads)
            expected = [row for row in train if any(dataset.grades[task][row] != NO_GRADE for task in lenders)]
            np.testing.assert_array_equal(rows, expected)
    sizes = []
    for share in (0.25, 0.5, 1.0):
        student = build(plan_of(a_config(f"method.ratio={{dr: {share}}}")).without_test().stages[-1].settings)
        rows = student.training_rows(selection)
        amd = np.flatnonzero(dataset.grades["amd"][train] != NO_GRADE)
        assert set(train[amd]) <= set(rows)
        sizes.append(len(rows))
    assert all(one < other for one, other in pairwise(sizes))


def test_a_share_acts_on_single_task_students_of_images_with_two_grades(tmp_path: Path) -> None:
    dataset = write_dataset(tmp_path, rows=(40, 4, 4), both=True)
    selection = select(dataset, tasks=("dr", "amd"))
    config = a_config("method.multi_task=false", "method.synergic_labels=false", "method.ratio.dr=0.25")
    students = {stage.name: build(stage.settings) for stage in plan_of(config).without_test().stages}
    assert len(students["student-dr"].training_rows(selection)) == pytest.approx(10, abs=1)
    assert len(students["student-amd"].training_rows(selection)) == 40


def test_the_network_has_a_head_per_task() -> None:
    config = SallConfig(backbone="shufflenet_v2_x0_5", weights="none", dropout=0.25)
    method = build(
        catalogue.plan(a_config(), TASKS).without_test().stages[-1].settings
        | {"backbone": config.backbone, "weights": "none", "dropout": 0.25}
    )
    network = method.build_model().eval()
    logits = network(torch.randn(2, 3, 32, 32))
    assert {task: tuple(values.shape) for task, values in logits.items()} == {"dr": (2, 3), "amd": (2, 2)}
    probabilities = method.probabilities(network, torch.randn(2, 3, 32, 32))
    for values in probabilities.values():
        torch.testing.assert_close(values.sum(dim=1), torch.ones(2))
