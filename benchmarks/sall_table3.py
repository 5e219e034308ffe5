"""SALL's Table III on synthetic data: each of its nine rows over several seeds, single-task networks as the baseline.

Run with ``python benchmarks/sall_table3.py DATASET WORK``; it resumes where it stopped. Rows that are the same network
share one artifact, and say so. Writes ``benchmarks/results/sall-table3.json`` and ``.md``.
"""

import argparse
import json
import statistics
from pathlib import Path
from typing import Any

from retina_ray.config import RunConfig, override
from retina_ray.orchestration.train_driver import train_driver
from retina_ray.provenance import environment
from retina_ray.recipes import load_recipe

RESULTS = Path(__file__).parent / "results"

ROWS = (
    (1, False, False),
    (1, True, False),
    (1, False, True),
    (1, True, True),
    (2, True, True),
    (3, True, True),
    (3, False, False),
    (3, True, False),
    (3, False, True),
)
"""T, SA-label, Multi-task, in the order of the paper."""

METRICS = ("accuracy", "confidence", "error", "ece", "kappa_quadratic")

SETTINGS: dict[str, Any] = {
    "data.image_size": 128,
    "train.global_batch_size": 16,  # twice the updates of 32 for the same work
    "train.patience": None,
    "evaluate.bootstrap": 0,
    "runtime.workers": 0,
    "runtime.checkpoint.every_s": 120.0,
    "tracking.enabled": False,
}


def configure(base: RunConfig, row: tuple[int, bool, bool], seed: int) -> RunConfig:
    """Return the run of one row and seed; all rows share everything but the three switches."""
    temperature, synergic, multi_task = row
    switches = {
        "name": f"T{temperature}-{'sa' if synergic else 'nosa'}-{'mt' if multi_task else 'nomt'}-seed{seed}",
        "seed": seed,
        "method.temperature": float(temperature),
        "method.synergic_labels": synergic,
        "method.multi_task": multi_task,
    }
    return override(base, {**SETTINGS, **switches})


def measure(config: RunConfig, log: Path) -> dict[str, Any]:
    """Train one row and return its figures per task, with the artifacts that its networks are."""
    with log.open("a", buffering=1, encoding="utf-8") as file:
        result = train_driver(
            config, resume=True, listener=lambda record: print(json.dumps({"run": config.name, **record}), file=file)
        )
    return {
        "tasks": {
            each.task: {metric: each.metrics[metric] for metric in METRICS}
            for each in result.summaries
            if each.model == result.model
        },
        "artifacts": {name: Path(artifact.store.uri).name for name, artifact in result.artifacts.items()},
        "training_s": {name: round(artifact.facts["wall_s"]) for name, artifact in result.artifacts.items()},
        "test_images": {each.task: each.n for each in result.summaries},
    }


def shared_networks(results: dict[str, Any], seed: int) -> list[str]:
    """Return one line for every artifact that serves in several rows."""
    users: dict[str, list[str]] = {}
    for row in ROWS:
        for name, key in results[f"{row}/{seed}"]["artifacts"].items():
            users.setdefault(key, []).append(f"{name} of row {ROWS.index(row) + 1}")
    return [" = ".join(names) for names in users.values() if len(names) > 1]


def render(results: dict[str, Any], tasks: list[str], seeds: list[int]) -> str:
    """Return the table as Markdown: mean and standard deviation over the seeds, in percent."""
    head = ["row", "T", "SA-label", "Multi-task"] + [
        f"{task} {short}" for short in ("acc", "con", "err", "ECE") for task in tasks
    ]
    lines = ["| " + " | ".join(head) + " |", "|" + "---|" * len(head)]
    for row in ROWS:
        cells = [str(ROWS.index(row) + 1), str(row[0]), "yes" if row[1] else "no", "yes" if row[2] else "no"]
        for metric in METRICS[:4]:
            for task in tasks:
                values = [100 * results[f"{row}/{seed}"]["tasks"][task][metric] for seed in seeds]
                spread = f" ± {statistics.stdev(values):.2f}" if len(values) > 1 else ""
                cells.append(f"{statistics.mean(values):.2f}{spread}")
        lines.append("| " + " | ".join(cells) + " |")
    notes = [f"* {line}" for line in shared_networks(results, seeds[0])]
    return "\n".join([*lines, "", "One and the same network, trained once per seed:", "", *notes]) + "\n"


def main() -> None:
    """Run every row for every seed."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dataset")
    parser.add_argument("work", type=Path)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=8)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    arguments = parser.parse_args()
    arguments.work.mkdir(parents=True, exist_ok=True)
    base = override(
        override(
            load_recipe("sall_debug"),
            {
                "data.path": arguments.dataset,
                "runtime.storage": str(arguments.work / "runs"),
                "train.epochs": arguments.epochs,
            },
        ),
        arguments.set,
    )
    seeds = list(range(arguments.seeds))
    results: dict[str, Any] = {}
    for seed in seeds:
        for row in ROWS:
            results[f"{row}/{seed}"] = outcome = measure(configure(base, row, seed), arguments.work / "log.jsonl")
            scores = {task: round(figures["accuracy"], 4) for task, figures in outcome["tasks"].items()}
            print(seed, row, scores, flush=True)
    tasks = list(base.method.tasks)
    table = render(results, tasks, seeds)
    RESULTS.mkdir(exist_ok=True)
    record = {
        "settings": configure(base, ROWS[0], 0).model_dump(mode="json", exclude={"name", "runtime", "tracking"}),
        "seeds": seeds,
        "environment": environment(),
        "results": results,
    }
    (RESULTS / "sall-table3.json").write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    (RESULTS / "sall-table3.md").write_text(table, encoding="utf-8")
    print(table)


if __name__ == "__main__":
    main()
