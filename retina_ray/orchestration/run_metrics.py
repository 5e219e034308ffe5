"""What a training measures of itself, through the exporter of Ray's nodes, for Prometheus to fetch."""

from collections.abc import Mapping
from typing import Any

from ray.util.metrics import Gauge

METRICS = {
    "retina_ray_images_per_second": "Training images per second over all ranks, waiting for data included; as below.",
    "retina_ray_step_seconds": "Seconds of an optimiser step, waiting for data included; mean since the last record.",
    "retina_ray_own_step_seconds": "The part of a step in which a rank waits for no other: its data, its forward pass.",
    "retina_ray_data_wait_share": "Share of the training time that a rank waited for data, since the last record.",
    "retina_ray_checkpoint_share": "Share of all time that went into checkpoints.",
    "retina_ray_train_loss": "Loss over the global batch, by term.",
    "retina_ray_validation_criterion": "Validation criterion of the last epoch; lower is better.",
    "retina_ray_step": "Optimiser steps done.",
    "retina_ray_epoch": "Epochs done, parts included.",
    "retina_ray_stalled_seconds": "Seconds since anything moved.",
}
"""Gauges, without the ``ray_`` that the exporter puts before them."""

TAGS = ("run", "trial", "stage", "rank")
_LOSS = "train_"
_OF_A_STEP = ("compute_s", "data_wait_s")
_PHASES = ("restore", "first_batch", "data_wait", "compute", "validation", "checkpoint", "report")
"""Of `training.clock`, without those that are parts of others."""


class RunMetrics:
    """The gauges of one rank in one stage.

    Args:
        tags: value by name of `TAGS`.
    """

    def __init__(self, tags: Mapping[str, str]) -> None:
        by_term = "retina_ray_train_loss"
        self._gauges = {
            name: Gauge(name, text, tag_keys=(*TAGS, "term") if name == by_term else TAGS)
            for name, text in METRICS.items()
        }
        for gauge in self._gauges.values():
            gauge.set_default_tags(dict(tags))
        self._before: Mapping[str, Any] = {}

    def take(self, record: Mapping[str, Any]) -> None:
        """Set the gauges from a progress record of kind ``step`` or ``epoch``; ``restored`` says where steps begin."""
        if record["kind"] == "restored":
            self._before = {"step": record["step"]}
        if record["kind"] not in ("step", "epoch"):
            return
        for name in ("step", "epoch", "validation_criterion"):
            if name in record:
                self._set(name, float(record[name]))
        for name, value in record.items():
            if name.startswith(_LOSS):
                self._set("train_loss", float(value), term=name.removeprefix(_LOSS))
        spent = sum(record.get(f"{phase}_s", 0.0) for phase in _PHASES)
        self._set("checkpoint_share", record.get("checkpoint_s", 0.0) / spent if spent else 0.0)
        steps = record["step"] - self._before.get("step", 0)
        if steps > 0:
            self._set("step_seconds", self._since(record, *_OF_A_STEP) / steps)
            self._set("own_step_seconds", self._since(record, "data_wait_s", "forward_s") / steps)
            if working := self._since(record, *_OF_A_STEP):
                self._set("images_per_second", (_images(record) - _images(self._before)) / working)
                self._set("data_wait_share", self._since(record, "data_wait_s") / working)
            self._before = dict(record)

    def stalled(self, seconds: float) -> None:
        """Set how long nothing has moved."""
        self._set("stalled_seconds", seconds)

    def _since(self, record: Mapping[str, Any], *phases: str) -> float:
        """Return the seconds of some phases since the last record."""
        return float(sum(record.get(phase, 0.0) - self._before.get(phase, 0.0) for phase in phases))

    def _set(self, name: str, value: float, **tags: str) -> None:
        self._gauges[f"retina_ray_{name}"].set(value, tags=tags)


def _images(record: Mapping[str, Any]) -> float:
    """Return how many images a training had seen at a record, which has the mean rate since its start."""
    return float(record.get("images_per_second", 0.0) * sum(record.get(phase, 0.0) for phase in _OF_A_STEP))
