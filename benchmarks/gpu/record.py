"""The one record of all parts: read, merged part by part, written as JSON and as tables.

A part's entry stands for itself: what was measured, with which commit and versions, on which device, when. Parts that
are measured in separate calls, even on different days, so meet in one record.
"""

import json
import os
import signal
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from benchmarks.gpu.part import Bench, Findings
from retina_ray.metrics.json_text import json_text
from retina_ray.provenance import environment

Entry = dict[str, Any]

DONE, FAILED, LEFT_OUT = "done", "failed", "left out"
WHOLE = "the part"
"""What is left out, or failed, where it is more than some of the figures."""

_PACKAGES = ("torch", "nvidia-dali-cuda130", "ray")
"""Whose versions the tables name."""


class _OutOfTime(BaseException):  # which no block that goes on after errors may catch
    """A part has taken as long as it may."""


def taken(measure: Callable[[Bench, Findings], None], bench: Bench, *, limit_s: float) -> Entry:
    """Measure a part, in the main thread, and return its entry, whatever happens to it.

    Args:
        measure: puts what it finds, as it finds it, where it is told.
        bench: where.
        limit_s: after which it is interrupted, and what it has found until then is kept.
    """
    begin = time.perf_counter()
    found = Findings()
    try:
        with found.guarded(WHOLE), _interrupted_after(limit_s):
            measure(bench, found)
    except _OutOfTime:
        found.failures[WHOLE] = f"not done within {limit_s:g} s"
    status, reason = _outcome(found)
    figures = {name: figure.described() for name, figure in found.figures.items()}
    return {
        **entry(status, reason, bench, seconds=time.perf_counter() - begin),
        "figures": figures,
        "facts": found.facts,
        "left_out": found.left_out,
        "failures": found.failures,
    }


@contextmanager
def _interrupted_after(limit_s: float) -> Iterator[None]:
    def interrupt(*_: object) -> None:
        raise _OutOfTime

    before = signal.signal(signal.SIGALRM, interrupt)
    signal.setitimer(signal.ITIMER_REAL, limit_s)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)


def _outcome(found: Findings) -> tuple[str, str]:
    """Return status and reason of a part."""
    if WHOLE in found.left_out:
        return LEFT_OUT, found.left_out[WHOLE]
    reasons = [f"{name}: {trace.strip().splitlines()[-1][:300]}" for name, trace in found.failures.items()]
    reasons += [f"{name} is beyond its limit" for name in found.wrong]
    return (FAILED, "; ".join(reasons)) if reasons else (DONE, "")


def entry(status: str, reason: str, bench: Bench, *, seconds: float) -> Entry:
    """Return what every entry says."""
    return {
        "status": status,
        "reason": reason,
        "dry_run": bench.dry,
        "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
        "seconds": seconds,
        "environment": {**environment(), "device": device_of(bench.device)},
    }


def device_of(device: torch.device) -> dict[str, Any]:
    """Return what the device is."""
    if device.type != "cuda":
        return {"name": device.type}
    properties = torch.cuda.get_device_properties(device)
    return {
        "name": properties.name,
        "memory_bytes": properties.total_memory,
        "multiprocessors": properties.multi_processor_count,
        "cuda": torch.version.cuda,
        "cudnn": torch.backends.cudnn.version(),
    }


def read(file: Path) -> dict[str, Entry]:
    """Return the entries of a record by part; none where there is no record."""
    return dict(json.loads(file.read_text(encoding="utf-8"))["parts"]) if file.exists() else {}


def merge(file: Path, name: str, new: Entry, *, order: Iterable[str]) -> None:
    """Put a part's entry into a record, in place of one that is there, and write its tables beside it.

    Args:
        file: the record, ending in ``.json``.
        name: of the part.
        new: its entry.
        order: of the parts.
    """
    parts = {**read(file), name: new}
    parts = {each: parts[each] for each in order if each in parts}
    file.parent.mkdir(parents=True, exist_ok=True)
    _replace(file, json_text({"parts": parts}) + "\n")
    _replace(file.with_suffix(".md"), "\n".join(_section(each, found) for each, found in parts.items()))


def _section(name: str, found: Mapping[str, Any]) -> str:
    where = found["environment"]
    head = f"{name}: {found['status']}" + (f" ({found['reason']})" if found["reason"] else "")
    versions = ", ".join(f"{package} {where['versions'][package]}" for package in _PACKAGES)
    lines = [head, "", f"{where['device']['name']}, {versions}, commit {where['commit']}, {found['at']}.", ""]
    if found.get("figures"):
        lines += ["| | median | lowest | highest | | target | roof | of roof |", "|---|---|---|---|---|---|---|---|"]
        lines += [_row(each, figure) for each, figure in found["figures"].items()]
        lines.append("")
    lines += [f"Left out: {what}, {why}." for what, why in found.get("left_out", {}).items()]
    return "\n".join(lines) + "\n"


def _row(name: str, figure: Mapping[str, Any]) -> str:
    signs = {"at_least": ">=", "at_most": "<="}
    bounds = [f"{sign} {figure[key]:.6g}" for key, sign in signs.items() if figure[key] is not None]
    verdict = {True: "met", False: "missed", None: ""}[figure["meets"]]
    roof = "" if figure["roof"] is None else f"{figure['roof']:.6g}"
    if figure["anchor"] is not None:
        roof += f" (anchor {figure['anchor']:.6g})"
    share = "" if figure["share_of_roof"] is None else f"{figure['share_of_roof']:.1%}"
    measured = [_number(figure[key]) for key in ("median", "lowest", "highest")]
    cells = [name, *measured, figure["unit"], f"{' '.join(bounds)} {verdict}".strip(), roof.strip(), share]
    return f"| {' | '.join(cells)} |"


def _number(value: float | None) -> str:
    return "not a number" if value is None else f"{value:.4g}"


def _replace(file: Path, text: str) -> None:
    arriving = file.with_name(f".{file.name}")
    arriving.write_text(text, encoding="utf-8")
    os.replace(arriving, file)
