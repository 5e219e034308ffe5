"""DeepMT-DR: the weights of its loss, the thresholds of its maps, and the rates of its joint stage.

The paper's search for these is in a supplement that is not published; the authors' code has one setting, which is
tried first. Weights and thresholds of the joint stage leave the first two stages alone, so a search trains those once;
for the scales' gammas, the pixel loss and total variation they are trained anew, since those act there as well. The
metric is the quadratic kappa on validation images.
"""

from typing import Any

import optuna

METRIC = "kappa_quadratic"
MODE = "max"

_LOGARITHMIC = {
    # A hundredfold about the authors' 1: Eq. 6 is a mean over pixels near 0.01, the others are near 1.
    "method.loss.pixel": (0.1, 100.0),
    # Total variation only smooths; from a tenth of the authors' 1e-6 until it rivals Eq. 6.
    "method.loss.total_variation": (1e-7, 1e-3),
    # Tenfold to either side of the authors' 1 and 10: the two terms of Fig. 10c, of which neither should vanish.
    "method.stages.joint.segmentation_aware": (0.1, 10.0),
    "method.stages.joint.classification_aware": (1.0, 100.0),
}
"""Paths varied on a logarithmic scale."""

_LINEAR = {
    # Thresholds of shares and of maps in [0, 1]; at the ends nothing or everything is selected.
    "method.evidence.theta_seg": (0.1, 0.9),
    "method.evidence.phi_vis": (0.1, 0.9),
}
"""Paths varied on a linear scale."""

_RATES = tuple(f"method.stages.joint.lr_{net}" for net in ("super_resolution", "segmentation", "grading"))


def suggest(trial: optuna.Trial) -> dict[str, Any]:
    """Return a configuration's values by dotted path."""
    config = trial.study.user_attrs["config"]
    values = {path: trial.suggest_float(path, low, high, log=True) for path, (low, high) in _LOGARITHMIC.items()}
    values |= {path: trial.suggest_float(path, low, high) for path, (low, high) in _LINEAR.items()}
    # A factor of five about the recipe's rates: fine-tuning, which a larger one would undo.
    values |= {
        path: trial.suggest_float(path, rate / 5, rate * 5, log=True)
        for path, rate in ((path, _value(config, path)) for path in _RATES)
    }
    # Eq. 1: the finest scale's weight is 1, since only proportions matter; a coarser one matters less than that.
    *coarser, _ = _value(config, "method.segmentation.gamma")
    gamma = [trial.suggest_float(f"gamma_{scale}", 0.0, 1.0) for scale in range(1, len(coarser) + 1)]
    return {**values, "method.segmentation.gamma": [*gamma, 1.0]}


def points(config: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the recipe's own setting."""
    paths = (*_LOGARITHMIC, *_LINEAR, *_RATES)
    *coarser, _ = _value(config, "method.segmentation.gamma")
    gammas = {f"gamma_{scale}": weight for scale, weight in enumerate(coarser, start=1)}
    return [{**{path: _value(config, path) for path in paths}, **gammas}]


def _value(config: dict[str, Any], path: str) -> Any:
    for part in path.split("."):
        config = config[part]
    return config
