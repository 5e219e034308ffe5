"""How benchmarks compare: every contestant in turn, several rounds in one process, medians and spread, one record.

Comparisons with other packages also keep a raw log: a line of JSON for each measurement, as it was made.
"""

import json
import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from retina_ray.metrics.json_text import json_text
from retina_ray.provenance import environment, package_version

RESULTS = Path(__file__).parent / "results"

NOT_INSTALLED = "not installed"  # as `package_version` says it

Log = Callable[[Mapping[str, Any]], None]


def in_turn(
    contestants: Mapping[str, Callable[[], float]], rounds: int, *, log: Log = lambda line: None
) -> dict[str, list[float]]:
    """Call each contestant once per round, after a round that does not count; return what they return.

    Args:
        contestants: by name.
        rounds: that count.
        log: receives each measurement; round 0 is the one that does not count.
    """
    values: dict[str, list[float]] = {name: [] for name in contestants}
    for number in range(rounds + 1):
        for name, contestant in contestants.items():
            value = contestant()
            log({"round": number, "contestant": name, "value": value})
            if number:
                values[name].append(value)
    return values


def raw_log(name: str, *packages: str) -> Log:
    """Begin ``results/raw/NAME.log`` anew with environment and versions of rivals, and return what adds lines."""
    (RESULTS / "raw").mkdir(parents=True, exist_ok=True)
    file = RESULTS / "raw" / f"{name}.log"
    file.write_text(json.dumps({"environment": environment(), "rivals": versions(*packages)}) + "\n", encoding="utf-8")

    def add(line: Mapping[str, Any]) -> None:
        text = json.dumps({"at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()), **line})
        print(text, flush=True)
        with file.open("a", encoding="utf-8") as out:
            out.write(text + "\n")

    return add


def require(*packages: str) -> None:
    """End the benchmark, saying what to install, unless the rivals are there; they are no dependencies of ours."""
    if missing := [name for name in packages if package_version(name) == NOT_INSTALLED]:
        raise SystemExit(f"error: {', '.join(missing)} not installed; run: pip install {' '.join(missing)}")


def versions(*packages: str) -> dict[str, str]:
    """Return the version of each package."""
    return {name: package_version(name) for name in packages}


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
