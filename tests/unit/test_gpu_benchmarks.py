"""The GPU benchmark, run dry on the CPU; its record, its roofs, and what is carried to a machine without a network."""

import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import typer
from torch import nn

from benchmarks.gpu import demo, record, run_all
from benchmarks.gpu.carry import missing, names_in
from benchmarks.gpu.part import Bench, Figure, Findings, LeftOut
from benchmarks.gpu.roofline import operations
from benchmarks.gpu.sall_step import by_epoch
from retina_ray.cli.main import app
from serve_apps.control import Serving

SPEEDS = {"images/s", "photographs/s"}


@pytest.fixture(scope="module")
def parts(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """The record of a dry run of everything."""
    folder = tmp_path_factory.mktemp("gpu")
    output = folder / "gpu.json"
    arguments = ["--dry-run", "--in-process", "--output", str(output), "--work", str(folder / "work")]
    status = run_all.main(arguments)
    parts: dict[str, Any] = json.loads(output.read_text())["parts"]
    assert status == 0, {name: (part["reason"], part["failures"]) for name, part in parts.items()}
    assert list(parts) == list(run_all.PARTS)
    text = output.with_suffix(".md").read_text()
    assert all(f"| {name} |" in text for part in parts.values() for name in part["figures"])
    return parts


@pytest.mark.parametrize("name", run_all.PARTS)
def test_a_part_measures_something_beside_what_it_is_held_against(parts: dict[str, Any], name: str) -> None:
    part = parts[name]
    assert part["status"] == "done"
    assert part["dry_run"]
    assert part["environment"]["device"]["name"] == "cpu"
    figures = part["figures"].values()
    assert all(figure["lowest"] <= figure["median"] <= figure["highest"] for figure in figures)
    assert any(figure[scale] is not None for figure in figures for scale in ("meets", "roof", "anchor"))


@pytest.mark.parametrize("name", ["decode", "loading", "sall_compute", "sall_step", "deepmt_step", "serving"])
def test_speeds_have_a_roof_and_a_target(parts: dict[str, Any], name: str) -> None:
    speeds = [figure for figure in parts[name]["figures"].values() if figure["unit"] in SPEEDS]
    roofed = [figure for figure in speeds if figure["roof"]]
    assert roofed
    assert all(figure["share_of_roof"] == pytest.approx(figure["median"] / figure["roof"]) for figure in roofed)
    if name != "decode":  # whose target is for files of training's size, which a dry run does not have
        assert any(figure["at_least"] for figure in speeds)


def test_the_targets_are_those_that_were_set(parts: dict[str, Any]) -> None:
    step = parts["sall_step"]["figures"]
    assert step["raw shards, eager"]["at_least"] == 4300
    assert step["raw shards, eager, waiting for data"]["at_most"] == 2
    assert parts["sall_step"]["facts"]["goal"] == 5000
    joint = parts["deepmt_step"]["figures"]
    assert {figure["at_least"] for name, figure in joint.items() if "batch" in name} == {35}


def test_operations_of_a_convolution_are_those_counted_by_hand() -> None:
    layer = nn.Conv2d(3, 8, 3, padding=1)
    images = torch.randn(2, 3, 16, 16)
    forward = 2 * 2 * 8 * 16 * 16 * 3 * 3 * 3  # FLOP of a multiplication, images, outputs, weights of each
    assert operations(lambda: layer(images)) == forward
    assert operations(lambda: layer(images).sum().backward()) == 2 * forward  # of pixels there is no gradient


BENCH = Bench(torch.device("cpu"), dry=True, work=Path("none"))


def taken(measure: Callable[[Bench, Findings], None]) -> dict[str, Any]:
    return record.taken(measure, BENCH, limit_s=60)


def test_a_failing_part_keeps_what_it_had() -> None:
    def measure(_: Bench, findings: Findings) -> None:
        findings.figures["before"] = Figure([1.0], "s")
        raise ValueError("no such thing")

    found = taken(measure)
    assert found["status"] == "failed"
    assert "no such thing" in found["reason"]
    assert "Traceback" in found["failures"][record.WHOLE]
    assert found["figures"]["before"]["median"] == 1.0


def test_a_failing_figure_leaves_the_others() -> None:
    def measure(_: Bench, findings: Findings) -> None:
        with findings.guarded("one"):
            raise ValueError("no such thing")
        with findings.guarded("large"):
            raise torch.OutOfMemoryError("CUDA out of memory")
        findings.figures["other"] = Figure([1.0], "s")

    found = taken(measure)
    assert found["status"] == "failed"
    assert list(found["failures"]) == ["one"]
    assert found["left_out"] == {"large": "CUDA out of memory"}
    assert "other" in found["figures"]


def test_a_part_that_cannot_run_is_left_out() -> None:
    def measure(_: Bench, findings: Findings) -> None:
        raise LeftOut("no ray")

    found = taken(measure)
    assert (found["status"], found["reason"]) == ("left out", "no ray")


@pytest.mark.parametrize(("value", "status"), [(0.5, "done"), (1.5, "failed"), (float("nan"), "failed")])
def test_wrong_numbers_fail_a_part(value: float, status: str) -> None:
    def measure(_: Bench, findings: Findings) -> None:
        findings.figures["slow"] = Figure([1.0], "images/s", at_least=9.0)
        findings.figures["wrong"] = Figure([value], "of 1", at_most=1.0, must=True)

    assert taken(measure)["status"] == status


def test_separate_calls_meet_in_one_record(tmp_path: Path) -> None:
    def entry(value: float) -> dict[str, Any]:
        return taken(lambda _, findings: findings.figures.update({"speed": Figure([value, 3.0, 1.0], "images/s")}))

    file = tmp_path / "results" / "gpu.json"
    for name, value in (("decode", 1.0), ("roofline", 2.0), ("decode", 3.0)):
        record.merge(file, name, entry(value), order=run_all.PARTS)
    found = record.read(file)
    assert list(found) == ["roofline", "decode"]
    assert (found["roofline"]["figures"]["speed"]["median"], found["decode"]["figures"]["speed"]["median"]) == (2, 3)
    assert [file.name for file in sorted(file.parent.iterdir())] == ["gpu.json", "gpu.md"]


def test_a_part_that_takes_too_long_keeps_what_it_had() -> None:
    def measure(_: Bench, findings: Findings) -> None:
        findings.figures["before"] = Figure([1.0], "s")
        with findings.guarded("endless"):
            time.sleep(60)

    found = record.taken(measure, BENCH, limit_s=0.05)
    assert (found["status"], list(found["failures"])) == ("failed", [record.WHOLE])
    assert "before" in found["figures"]


def test_a_part_that_cannot_be_interrupted_is_ended(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(run_all, "GRACE_S", 0.0)
    output = tmp_path / "gpu.json"
    arguments = ["--dry-run", "--only", "roofline", "--output", str(output), "--work", str(tmp_path / "work")]
    assert run_all.main([*arguments, "--limit", "0.1"]) == 1
    found = record.read(output)["roofline"]
    assert found["status"] == "failed"
    assert "not done within" in found["reason"]


@pytest.mark.parametrize(
    "arguments",
    [["--dry-run"], ["--dry-run", "--output", str(run_all.RECORD)], ["--dry-run", "--output", "x", "--only", "decoed"]],
)
def test_what_would_say_nothing_is_refused(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        run_all.main(arguments)
    assert stopped.value.code == 2
    assert "--output" in capsys.readouterr().err


def test_an_epoch_is_what_the_clock_counted_since_the_one_before() -> None:
    ends = [(10.0, 0.0, 100.0), (12.0, 0.5, 300.0), (14.0, 0.5, 500.0)]  # computing, waiting, images
    records = [
        {"compute_s": busy, "data_wait_s": wait, "images_per_second": images / (busy + wait)}
        for busy, wait, images in ends
    ]
    first, second = by_epoch(records)
    assert first == pytest.approx({"images_per_second": 80.0, "data_wait_share": 0.2})
    assert second == pytest.approx({"images_per_second": 100.0, "data_wait_share": 0.0})


def test_the_demo_takes_its_command_line(tmp_path: Path) -> None:
    command = typer.main.get_command(app).commands["demo"]  # type: ignore[attr-defined]  # a group
    _, _, verb, *arguments = demo.command(tmp_path / "out", tmp_path / "endpoint.yaml")
    assert verb == "retina_ray"
    parsed = command.make_context("demo", arguments[1:]).params
    assert parsed["assignments"] == list(demo.SETTINGS)
    assert parsed["serve_config"] == tmp_path / "endpoint.yaml"


def test_the_demo_shares_the_gpu_over_gloo_and_serves_on_it() -> None:
    assert demo.placement(demo.configured(), cpus=16) == {
        "workers": 2,
        "GPUs each": 0.5,
        "CPUs each": 8,
        "backend": "gloo",
    }
    assert Serving(demo.endpoint_config()).arguments.models["grading"].num_gpus == 1


def test_what_is_carried_is_what_is_missing_there() -> None:
    everything = missing(["retina-ray"], set())
    assert {"ray", "nvidia-dali-cuda130", "torch", "nvidia-cudnn-cu13", "pydantic-core"} <= everything.keys()
    assert "pytest" not in everything
    there = names_in("torch==2.11.0+cu130\ntorchvision==0.26.0\ntyping_extensions @ file:///somewhere\n# a note\n")
    carried = missing(["retina-ray"], there)
    assert carried.keys() < everything.keys()
    assert not carried.keys() & {"torch", "torchvision", "nvidia-cudnn-cu13", "typing-extensions", "retina-ray"}
    assert missing(["nvidia-dali-cuda130"], there).keys() < carried.keys()
