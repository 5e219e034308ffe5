"""SALL: temperature, data ratio and loss weight per task, and how the student learns.

All of it concerns the student alone, so a search trains the teachers once. The metric is the accuracy that Tables III
to VI compare, averaged over the tasks, on validation images.
"""

from typing import Any

import optuna

METRIC = "accuracy"
MODE = "max"


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Return a configuration's values by dotted path."""
    config = trial.study.user_attrs["config"]
    first, *others = tasks = config["method"]["tasks"]
    rate = config["optim"]["lr"]
    return {
        # Tables III and IV go from 1 to 50; the best are 8 and 9, and beyond 20 the labels are all but flat.
        "method.temperature": trial.suggest_float("method.temperature", 1.0, 20.0, log=True),
        # Table VI goes down to a quarter of a task's images, and below that the task is hardly there.
        **{path: trial.suggest_float(path, 0.25, 1.0) for path in (f"method.ratio.{task}" for task in tasks)},
        # The proportion of the weights is what matters, so that the first task's is 1; four to one is lopsided enough.
        f"method.loss_weight.{first}": 1.0,
        **{
            path: trial.suggest_float(path, 0.25, 4.0, log=True)
            for path in (f"method.loss_weight.{task}" for task in others)
        },
        # A factor of five about the recipe's rate: beyond, Adam diverges or the epochs do not suffice.
        "method.student.lr": trial.suggest_float("method.student.lr", rate / 5, rate * 5, log=True),
        # From none to a little above the 0.5 of the authors' code.
        "method.student.dropout": trial.suggest_float("method.student.dropout", 0.0, 0.6),
    }


def points(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the paper's setting, then the temperature that Table IV finds best for DR, then none.

    All images, equal weights (section IV), and the recipe's own rate and dropout.
    """
    method = config["method"]
    paper = {
        "method.temperature": 3.0,
        **{f"method.ratio.{task}": 1.0 for task in method["tasks"]},
        **{f"method.loss_weight.{task}": 1.0 for task in method["tasks"][1:]},
        "method.student.lr": config["optim"]["lr"],
        "method.student.dropout": method["dropout"],
    }
    return [paper, {**paper, "method.temperature": 8.0}, {**paper, "method.temperature": 1.0}]
