"""Results are JSON that strict parsers read too."""

import json
from pathlib import Path

from retina_ray.data.store import Store
from retina_ray.metrics.json_text import json_text
from retina_ray.metrics.summary import TaskSummary, as_record
from retina_ray.orchestration.run_folder import METRICS, RunFolder


def refuse(word: str) -> float:
    raise ValueError(f"{word} is not JSON")


def test_what_json_cannot_say_is_null() -> None:
    text = json_text({"a": [float("nan"), 1.5], "b": {"c": (float("inf"), -float("inf"))}, 3: "NaN"})
    assert json.loads(text, parse_constant=refuse) == {"a": [None, 1.5], "b": {"c": [None, None]}, "3": "NaN"}


def test_a_runs_metrics_are_strict_json(tmp_path: Path) -> None:
    undefined = float("nan")
    summary = TaskSummary("sall", "dr", 2, {"auroc": undefined, "accuracy": 0.5}, {"auroc": (undefined, undefined)})
    RunFolder(Store(str(tmp_path))).write_metrics([summary])
    (written,) = json.loads((tmp_path / METRICS).read_text(), parse_constant=refuse)
    assert written == {**as_record(summary), "auroc": None, "intervals": {"auroc": [None, None]}}
