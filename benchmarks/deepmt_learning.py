"""Whether DeepMT-DR learns all three tasks: recipe ``deepmt_debug`` on drawn images, against what needs no learning.

Run with ``python -m benchmarks.deepmt_learning WORK``; some 40 minutes on two cores, and it resumes where it
stopped. Writes ``benchmarks/results/deepmt-learning.json`` and ``.md``. Fails where restoration is not above bicubic
enlargement, a lesion's average precision not above its share of the pixels, or the lower end of kappa's interval not
above 0, which is a guess.
"""

import argparse
import json
import math
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from benchmarks.in_turn import write
from retina_ray.cli.main import run
from retina_ray.config import RunConfig, override
from retina_ray.data.manifest import MANIFEST
from retina_ray.data.schema import LESIONS
from retina_ray.data.shards import ShardedDataset
from retina_ray.methods.base import TEST
from retina_ray.metrics.summary import TaskSummary
from retina_ray.orchestration.train_driver import RunResult, train_driver
from retina_ray.recipes import load_recipe

FINAL = "joint"


@dataclass(frozen=True)
class Comparison:
    """A figure of the final networks on the test split, and what it must exceed.

    Attributes:
        name: what is measured, with its unit.
        ours: its value; nan where it could not be measured, which exceeds nothing.
        baseline: what needs no learning.
    """

    name: str
    ours: float
    baseline: float

    @property
    def above(self) -> bool:
        """Whether ours is the greater."""
        return self.ours > self.baseline


def draw_images(folder: Path, config: RunConfig, images: int) -> None:
    """Draw the data set by the product's own command, unless it is there."""
    if (folder / MANIFEST).is_file():
        return
    size = str(config.data.image_size)
    if code := run(["data", "synth", str(folder), "--tasks", "dr", "--size", size, "--images-per-task", str(images)]):
        raise SystemExit(code)


def train(config: RunConfig, log: Path) -> RunResult:
    """Train the recipe, keeping its progress in a file."""
    with log.open("a", buffering=1, encoding="utf-8") as file:
        return train_driver(config, resume=True, listener=lambda record: print(json.dumps(record), file=file))


def compare(figures: dict[str, float], summary: TaskSummary) -> list[Comparison]:
    """Return each figure beside what needs no learning.

    Args:
        figures: of the final stage on the test split; see `methods.deepmt.measures.summarise`.
        summary: of its grades.
    """
    lowest, _ = summary.intervals.get("kappa", (math.nan, math.nan))
    return [
        Comparison("PSNR (dB)", figures["psnr"], figures["psnr_bicubic"]),
        Comparison("SSIM", figures["ssim"], figures["ssim_bicubic"]),
        *(Comparison(f"AP, {lesion}", figures[f"ap_{lesion}"], figures[f"chance_{lesion}"]) for lesion in LESIONS),
        Comparison("kappa, lower end of its interval", lowest, 0.0),
    ]


def render(comparisons: list[Comparison], summary: TaskSummary) -> str:
    """Return the comparisons as a Markdown table, and kappa with its interval below it."""
    lines = ["| | ours | without learning | above |", "|---|---|---|---|"]
    for each in comparisons:
        lines.append(f"| {each.name} | {each.ours:.4f} | {each.baseline:.4f} | {'yes' if each.above else 'NO'} |")
    low, high = summary.intervals.get("kappa", (math.nan, math.nan))
    return "\n".join([*lines, "", f"Kappa {summary.metrics['kappa']:.3f} [{low:.3f}, {high:.3f}].", ""])


def render_times(result: RunResult) -> str:
    """Return how long each stage took, as a Markdown table."""
    lines = ["| stage | s |", "|---|---|"]
    lines += [f"| {name} | {artifact.facts['wall_s']:.0f} |" for name, artifact in result.artifacts.items()]
    return "\n".join([*lines, ""])


def main() -> None:
    """Draw, train, compare, write the record."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("work", type=Path)
    parser.add_argument("--images", type=int, default=400)
    parser.add_argument("--set", action="append", default=[], metavar="PATH=VALUE")
    arguments = parser.parse_args()
    data = arguments.work / "data"
    places: dict[str, Any] = {
        "data.path": str(data),
        "runtime.storage": str(arguments.work / "runs"),
        "tracking.enabled": False,
    }
    config = override(override(load_recipe("deepmt_debug"), places), arguments.set)
    draw_images(data, config, arguments.images)
    result = train(config, arguments.work / "log.jsonl")
    [summary] = [each for each in result.summaries if each.model == result.model]
    figures = result.artifacts[TEST].facts["figures"]
    comparisons = compare(figures[FINAL], summary)
    record = {
        "settings": config.model_dump(
            mode="json", exclude={"name": True, "data": {"path"}, "runtime": True, "tracking": True}
        ),
        "workers": result.artifacts[FINAL].facts["workers"],
        "images": ShardedDataset.open(str(data)).manifest.counts,
        "comparisons": [{**vars(each), "above": each.above} for each in comparisons],
        "grading": {"n": summary.n, "metrics": summary.metrics, "intervals": summary.intervals},
        "figures": figures,
        "wall_s": {name: artifact.facts["wall_s"] for name, artifact in result.artifacts.items()},
        "timing": {name: artifact.facts["timing"] for name, artifact in result.artifacts.items() if name != TEST},
    }
    tables = {
        f"Recipe deepmt_debug on {arguments.images} drawn images, {summary.n} of them to test with": render(
            comparisons, summary
        ),
        "Time of each stage, since its last start or resume": render_times(result),
    }
    write("deepmt-learning", record, tables)
    if missed := [each.name for each in comparisons if not each.above]:
        raise SystemExit(f"not above what needs no learning: {', '.join(missed)}; see {arguments.work}/log.jsonl")


if __name__ == "__main__":
    main()
