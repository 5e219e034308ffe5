"""Everything that is measured on a GPU, part by part, into one record.

Run with ``python -m benchmarks.gpu.run_all`` in the repository's root, on a machine with a GPU; docs/gpu.md says how
the packages get there. Nothing is downloaded. ``--only`` names parts, so that each of several short calls measures
some; all meet in ``benchmarks/results/gpu.json`` and ``.md``. Each part has a process of its own: one that fails, hangs
or takes the GPU's context with it is recorded as failed, and the others run. Exit status: 0 if none failed, else 1.

``--dry-run`` shows on a CPU, at tiny sizes, that the parts run; it writes where ``--output`` says, never that record.
"""

import argparse
import importlib
import os
import signal
import subprocess
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path

import torch

from benchmarks.gpu import record
from benchmarks.gpu.part import Bench
from benchmarks.in_turn import RESULTS

PARTS = (
    "roofline",
    "numerics",
    "decode",
    "loading",
    "sall_compute",
    "sall_step",
    "deepmt_step",
    "serving",
    "demo",
)
"""Modules beside this one, each with a function ``measure``, in the order in which they run."""

RECORD = RESULTS / "gpu.json"
LIMIT_S, GRACE_S = 540.0, 30.0
"""How long a part may take, and how much later its process is ended: often a command is bounded by ten minutes."""

os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # as the product's workers have it; read when CUDA starts


def main(arguments: Sequence[str] | None = None) -> int:
    """Measure the parts and return the exit status."""
    options = _parsed(arguments)
    options.work.mkdir(parents=True, exist_ok=True)
    bench = Bench(torch.device("cpu" if options.dry_run else "cuda"), options.dry_run, options.work)
    failed = []
    for name in options.only:
        print(f"{name}: begun", flush=True)
        if options.in_process:
            measure = importlib.import_module(f"benchmarks.gpu.{name}").measure
            record.merge(options.output, name, record.taken(measure, bench, limit_s=options.limit), order=PARTS)
        else:
            _in_a_process(name, options, bench)
        found = record.read(options.output)[name]
        print(f"{name}: {found['status']} {found['reason']} ({found['seconds']:.0f} s)", flush=True)
        if found["status"] == record.FAILED:
            failed.append(name)
    print(options.output.with_suffix(".md").read_text(encoding="utf-8"))
    return 1 if failed else 0


def _in_a_process(name: str, options: argparse.Namespace, bench: Bench) -> None:
    """Measure a part in a process of its own, which writes its entry; write one for it where it does not."""
    line = [sys.executable, "-m", "benchmarks.gpu.run_all", "--in-process", "--only", name]
    line += ["--output", str(options.output), "--work", str(options.work), "--limit", str(options.limit)]
    line += ["--dry-run"] if options.dry_run else []
    begin = time.perf_counter()
    before = record.read(options.output).get(name)
    process = subprocess.Popen(line, stdout=subprocess.DEVNULL, start_new_session=True)
    try:
        status = process.wait(options.limit + GRACE_S)
        reason = f"its process ended with {status}"
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)  # and all that it started
        process.wait()
        reason = f"not done within {options.limit:g} s"
    if record.read(options.output).get(name) == before:
        took = time.perf_counter() - begin
        record.merge(options.output, name, record.entry(record.FAILED, reason, bench, seconds=took), order=PARTS)


def _parsed(arguments: Sequence[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", type=_names, default=PARTS, metavar="PART,...", help=f"of {', '.join(PARTS)}")
    parser.add_argument("--output", type=Path, help=f"the record; by default {RECORD.name} among the results")
    parser.add_argument("--work", type=Path, help="folder for drawn data, kept for later calls; by default a new one")
    parser.add_argument("--limit", type=float, default=LIMIT_S, help="seconds that a part may take")
    parser.add_argument("--dry-run", action="store_true", help="tiny sizes on the CPU")
    parser.add_argument("--in-process", action="store_true", help="measure in this process")
    options = parser.parse_args(arguments)
    if options.dry_run and (options.output is None or options.output.resolve() == RECORD.resolve()):
        parser.error("a dry run measures nothing: give --output FILE for its record")
    if not options.dry_run and not torch.cuda.is_available():
        parser.error("there is no GPU here: give --dry-run")
    options.output = RECORD if options.output is None else options.output.with_suffix(".json")
    options.work = (options.work or Path(tempfile.mkdtemp(prefix="retina-gpu-"))).resolve()
    return options


def _names(text: str) -> tuple[str, ...]:
    names = tuple(text.split(","))
    if unknown := [name for name in names if name not in PARTS]:
        raise argparse.ArgumentTypeError(f"no such part: {', '.join(unknown)}; there are {', '.join(PARTS)}")
    return names


if __name__ == "__main__":
    sys.exit(main())
