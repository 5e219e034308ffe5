"""`retina-ray demo` on the GPU under Ray: the whole way, in processes of its own.

Two Train workers share the GPU by fraction, so they talk over gloo; DALI decodes and resamples on it; the trials of the
search get it in turn; and the endpoint's networks run on it. A dry run composes the same command and asks the product
what it would make of it on such a machine, but starts nothing.
"""

import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import yaml

from benchmarks.gpu.part import Bench, Figure, Findings, require
from retina_ray.cli.options import resolve
from retina_ray.config import RunConfig

ROOT = Path(__file__).resolve().parents[2]
WORKERS = 2
SETTINGS = (
    f"runtime.workers={WORKERS}",
    "runtime.use_gpu=true",
    f"runtime.gpus_per_worker={1 / WORKERS}",
    "runtime.loader=dali",
)
ENDPOINT = {"grading": {"num_gpus": 1, "precision": "bfloat16"}}
"""The models of the endpoint's configuration."""
IMAGES, TRIALS, LIMIT_S = 300, 2, 540.0


def measure(bench: Bench, findings: Findings) -> None:
    """Run the demo and look at what it left."""
    require("ray", "nvidia.dali")
    folder = Path(tempfile.mkdtemp(dir=bench.work))  # a demo goes on where it finds one
    out, endpoint = folder / "demo", folder / "endpoint.yaml"
    endpoint.write_text(yaml.safe_dump(endpoint_config()), encoding="utf-8")
    findings.facts |= {"command": command(out, endpoint), **placement(configured(), cpus=16)}
    if bench.dry:
        findings.left_out["the demo itself"] = "a dry run"
        findings.figures["workers that would share the GPU"] = _workers(findings.facts["workers"])
        return
    told = _run(findings.facts["command"])
    stages = trained_stages(out / "runs")
    shared = [stage["workers"] for stage in stages.values() if stage["device"].startswith("cuda")]
    findings.facts |= {"stages": stages, "prediction": told["prediction"]}
    findings.figures["workers that shared the GPU"] = _workers(min(shared) if len(shared) == len(stages) else 0)
    findings.figures["the whole demo"] = Figure([told["seconds"]], "s", at_most=LIMIT_S)
    findings.figures["networks of the endpoint, one photograph"] = Figure(
        [told["prediction"]["timing"]["network_ms"]], "ms"
    )
    for name, stage in stages.items():
        findings.figures[f"{name}, training"] = Figure([stage["timing"]["images_per_second"]], "images/s")


def command(out: Path, endpoint: Path) -> list[str]:
    """Return the command line that is run."""
    demo = [sys.executable, "-m", "retina_ray", "demo", "--json", "--out", str(out)]
    demo += ["--images-per-task", str(IMAGES), "--trials", str(TRIALS), "--serve-config", str(endpoint)]
    return demo + [word for setting in SETTINGS for word in ("--set", setting)]


def configured() -> RunConfig:
    """Return the demo's configuration with these settings.

    Raises:
        ConfigError: one of them does not exist any more.
    """
    return resolve("sall_debug", None, list(SETTINGS), name="demo")


def endpoint_config() -> dict[str, Any]:
    """Return the product's own configuration of an endpoint on this machine, with its networks on the GPU."""
    local = yaml.safe_load((ROOT / "serve_apps" / "local.yaml").read_text(encoding="utf-8"))
    local["applications"][0]["args"]["models"] = ENDPOINT
    return dict(local)


def placement(config: RunConfig, *, cpus: int) -> dict[str, Any]:
    """Return how the product would place the workers on a machine with one GPU, and how they would talk."""
    from retina_ray.orchestration.resources import share_out
    from retina_ray.orchestration.stages import torch_config

    share = share_out(config.runtime, [{"CPU": cpus, "GPU": 1}])
    backend = torch_config(config.runtime, share).backend
    return {"workers": share.workers, "GPUs each": share.gpus, "CPUs each": share.cpus, "backend": backend}


def trained_stages(runs: Path) -> dict[str, dict[str, Any]]:
    """Return the facts of the stages that were trained, by name and the start of their address."""
    found = {}
    for file in sorted((runs / "artifacts").glob("train-*/artifact.json")):
        described = json.loads(file.read_text(encoding="utf-8"))
        found[f"{described['stage']} {file.parent.name[-4:]}"] = described["facts"]
    return found


def _workers(number: int) -> Figure:
    return Figure([float(number)], "workers", at_least=WORKERS, must=True)


def _run(line: list[str]) -> dict[str, Any]:
    """Run the demo where the repository's packages are found by every process below it; return what it prints."""
    path = os.pathsep.join([str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])])
    done = subprocess.run(
        line, env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, timeout=LIMIT_S, check=False
    )
    if done.returncode:
        raise RuntimeError(f"the demo ended with {done.returncode}: {done.stderr[-4000:]}")
    return dict(json.loads(done.stdout))
