"""Results are JSON that strict parsers read too."""

import json
import math
from pathlib import Path

from retina_ray.data.store import Store
from retina_ray.methods.base import Stage
from retina_ray.metrics.json_text import json_text, null_as_nan
from retina_ray.metrics.summary import TaskSummary, as_record
from retina_ray.orchestration.run_folder import HISTORY, METRICS, RUN, RunFolder
from retina_ray.training import artifact


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


def test_null_is_read_as_nan() -> None:
    read = null_as_nan(json.loads(json_text({"a": [math.nan, 1.5], "b": {"c": math.inf}, "d": "text", "e": False})))
    assert math.isnan(read["a"][0])
    assert math.isnan(read["b"]["c"])
    assert (read["a"][1], read["d"], read["e"]) == (1.5, "text", False)


def test_a_runs_facts_and_history_are_strict_json(tmp_path: Path) -> None:
    folder = RunFolder(Store(str(tmp_path)))
    folder.update(stages={"test": {"figures": {"joint": {"psnr": math.inf, "ap_SE": math.nan}}}})
    written = json.loads((tmp_path / RUN).read_text(), parse_constant=refuse)
    assert written["stages"]["test"]["figures"]["joint"] == {"psnr": None, "ap_SE": None}
    folder.write_history({"joint": [{"epoch": 1, "validation_ap_SE": math.nan}, {"epoch": 2}]})
    lines = (tmp_path / HISTORY).read_text().splitlines()
    assert [json.loads(line, parse_constant=refuse) for line in lines] == [
        {"stage": "joint", "epoch": 1, "validation_ap_SE": None},
        {"stage": "joint", "epoch": 2},
    ]


def test_an_artifact_is_strict_json_and_keeps_what_is_undefined(tmp_path: Path) -> None:
    store = Store(str(tmp_path))
    stage = Stage("joint", "train", {"class_weights": None})
    history = json_text([{"epoch": 1, "validation_ap_SE": math.nan}]).encode()
    facts = {"figures": {"ap_MA": 0.5, "ap_SE": math.nan}}
    artifact.write_artifact(store, stage=stage, facts=facts, files={artifact.HISTORY: history})
    json.loads((tmp_path / artifact.ARTIFACT).read_text(), parse_constant=refuse)
    found = artifact.read_artifact(store)
    assert found is not None
    assert found.settings == {"class_weights": None}
    assert found.facts["figures"]["ap_MA"] == 0.5
    assert math.isnan(found.facts["figures"]["ap_SE"])
    assert math.isnan(found.history()[0]["validation_ap_SE"])
