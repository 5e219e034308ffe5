"""SALL's temperature and data ratios alone, for a search of a few trials such as the demo's; `sall` has them all.

The ranges and their reasons, the metric and the first points are those of ``sall``.
"""

from typing import Any

import optuna

METRIC = "accuracy"
MODE = "max"


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Return a configuration's values by dotted path."""
    ratios = [f"method.ratio.{task}" for task in trial.study.user_attrs["config"]["method"]["tasks"]]
    return {
        "method.temperature": trial.suggest_float("method.temperature", 1.0, 20.0, log=True),
        **{path: trial.suggest_float(path, 0.25, 1.0) for path in ratios},
    }


def points(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the paper's setting."""
    return [{"method.temperature": 3.0, **{f"method.ratio.{task}": 1.0 for task in config["method"]["tasks"]}}]
