"""How benchmarks compare: every contestant in turn, several rounds in one process, medians and spread, one record."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retina_ray.metrics.json_text import json_text
from retina_ray.provenance import environment

RESULTS = Path(__file__).parent / "results"


def in_turn(contestants: Mapping[str, Callable[[], float]], rounds: int) -> dict[str, list[float]]:
    """Call each contestant once per round, after a round that does not count; return what they return."""
    for contestant in contestants.values():
        contestant()
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for _ in range(rounds):
        for name, contestant in contestants.items():
            values[name].append(contestant())
    return values


def table(values: Mapping[str, Sequence[float]], *, ours: str, unit: str) -> str:
    """Return a Markdown table: median, lowest and highest of each, and ours divided by it (median of the rounds)."""
    lines = [f"| | median {unit} | lowest | highest | {ours} / this |", "|---|---|---|---|---|"]
    for name, found in values.items():
        ratio = statistics.median(one / other for one, other in zip(values[ours], found, strict=True))
        lines.append(f"| {name} | {statistics.median(found):.1f} | {min(found):.1f} | {max(found):.1f} | {ratio:.2f} |")
    return "\n".join(lines) + "\n"


def write(name: str, record: Mapping[str, Any], tables: Mapping[str, str]) -> None:
    """Write ``results/NAME.json`` and ``results/NAME.md``, and show the latter."""
    RESULTS.mkdir(exist_ok=True)
    whole = {**record, "environment": environment()}
    (RESULTS / f"{name}.json").write_text(json_text(whole) + "\n", encoding="utf-8")
    text = "\n".join(f"{title}\n\n{content}" for title, content in tables.items())
    (RESULTS / f"{name}.md").write_text(text, encoding="utf-8")
    print(text)
