"""The stages of a DeepMT-DR run, and the part of the configuration that each depends on."""

from collections.abc import Mapping
from typing import Any

from retina_ray.config_method import DeepMTConfig, DeepMTStages, EvidenceConfig, GradingConfig
from retina_ray.data.schema import Task, require_tasks
from retina_ray.methods.base import Plan, Stage, with_test
from retina_ray.methods.deepmt.graph import StageName

MODEL = "deepmt"

_NO_MAP = EvidenceConfig(map="none")


def plan(config: DeepMTConfig, tasks: Mapping[str, Task]) -> Plan:
    """Return the stages of a DeepMT-DR run.

    A network without super-resolution and segmentation has nothing to prepare and trains in the joint stage alone.

    Args:
        config: the method's section of the configuration.
        tasks: the data set's tasks by name.

    Raises:
        ConfigError: the data set lacks the task.
    """
    require_tasks(config.tasks, tasks)
    grades = {name: tasks[name].num_grades for name in config.tasks}
    alone = config.super_resolution.mode == "none" and config.segmentation.mode == "none"
    earlier: tuple[StageName, ...] = () if alone else ("restoration", "grading")
    stages = [_stage(name, config, grades, needs=earlier[:i]) for i, name in enumerate((*earlier, "joint"))]
    return Plan(stages=with_test(stages, compared=("joint",)), baselines=(), finals=("joint",))


def _stage(name: StageName, config: DeepMTConfig, grades: Mapping[str, int], *, needs: tuple[str, ...]) -> Stage:
    rates = learning_rates(name, config)
    return Stage(
        name,
        "train",
        {"stage": name, "grades": dict(grades), "method": relevant(name, config).model_dump(mode="json")},
        needs,
        model=MODEL if name == "joint" else f"{MODEL}_{name}",
        overrides={
            "train.epochs": getattr(config.stages, name).epochs,
            "optim.lr": max(rates.values()),
        },
    )


def learning_rates(name: StageName, config: DeepMTConfig) -> dict[str, float]:
    """Return the learning rate of each part that a stage trains: nets, and ``evidence``."""
    present = {
        "super_resolution": config.super_resolution.mode != "none" and name != "grading",
        "segmentation": config.segmentation.mode != "none" and name != "grading",
        "grading": name != "restoration",
        "evidence": name != "restoration",
    }
    fixed = {
        part
        for part in ("super_resolution", "segmentation")
        if name == "joint" and getattr(config, part).mode == "independent"
    }
    stage = getattr(config.stages, name)
    return {part: getattr(stage, f"lr_{part}") for part, used in present.items() if used and part not in fixed}


def rate_changes(name: StageName, config: DeepMTConfig) -> dict[str, tuple[float, int]]:
    """Return what the rates of a stage's parts are multiplied by, and after how many epochs, where they change."""
    first, second = config.stages.restoration, config.stages.grading
    if name == "restoration" and first.lr_change_epoch is not None:
        return {
            "super_resolution": (first.lr_change_super_resolution, first.lr_change_epoch),
            "segmentation": (first.lr_change_segmentation, first.lr_change_epoch),
        }
    if name == "grading" and second.lr_change_epoch is not None:
        return {
            "grading": (second.lr_change_grading, second.lr_change_epoch),
            "evidence": (second.lr_change_evidence, second.lr_change_epoch),
        }
    return {}


def relevant(name: StageName, config: DeepMTConfig) -> DeepMTConfig:
    """Return the configuration with everything a stage's result does not depend on at its default.

    So a search over the joint stage's weights trains the first two stages once.
    """
    stages = DeepMTStages(**{name: getattr(config.stages, name)})
    values: dict[str, Any] = {"stages": stages}
    if name == "restoration":
        values |= {"grading": GradingConfig(), "evidence": _NO_MAP}
    if name == "grading" and not config.stages.grading.map_fit:
        values |= {"evidence": _NO_MAP}
    if name != "joint":
        # Fixed or not is a question of the joint stage.
        values |= {
            part: section.model_copy(update={"mode": "joint"})
            for part in ("super_resolution", "segmentation")
            if (section := getattr(config, part)).mode == "independent"
        }
    return config.model_copy(update=values)
