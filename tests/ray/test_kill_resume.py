"""A training that is killed at any moment and started again ends with the same bytes as one that was not.

Each life of a training is a process of its own that is ended by SIGKILL; what it leaves on disk is all that the next
one knows. A moment that lasts is checked while the process is stopped, so that what the test says it hit is what it
hit; a moment too short to be seen from outside is met by an audit hook with which the process kills itself.
"""

import json
import os
import random
import signal
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

from retina_ray.config import RunConfig, from_mapping
from tests.helpers import ONE_STAGE, tiny_config, warm_processes
from tests.killing import MARK, family, ray_folders_of, remove, send

LIFE_TIMEOUT_S = 900
RESULTS = ("weights.safetensors", "logits.safetensors", "predictions.parquet", "history.json")


Event = tuple[str, int, str]
"""An audit event, which of its arguments names a file, and how that name ends or what it contains."""

OPEN_FOR_WRITING = "open for writing"

EVENTS: dict[str, Event] = {
    "inside a checkpoint write": (OPEN_FOR_WRITING, 0, "/MANIFEST.json"),
    "between write and report": ("shutil.move", 0, "/retina-ray-checkpoint-"),
    "inside an artifact write": ("os.rename", 1, "/artifact.json"),
}


def die_at(event: Event, *, count: int) -> None:
    """Let this process kill itself just before the event of that number."""
    name, position, part = event
    left = count

    def hook(happening: str, arguments: tuple[Any, ...]) -> None:
        nonlocal left
        if happening == "open" and "w" in str(arguments[1]):
            happening = OPEN_FOR_WRITING
        if happening == name and part in str(arguments[position]):
            left -= 1
            if not left:
                os.kill(os.getpid(), signal.SIGKILL)

    sys.addaudithook(hook)


def live(config: dict[str, Any], records: str, scratch: str, mark: str, event: Event | None) -> None:
    """Train or go on training until the end, or until an event has come twice; runs in a process of its own."""
    if event:
        die_at(event, count=2)
    os.setsid()
    if config["runtime"]["workers"] == 0:
        os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})  # one thread: such small layers gain nothing by two
    torch.set_num_threads(1)
    tempfile.tempdir = scratch
    os.environ.update({MARK: mark, "TMPDIR": scratch, "OMP_NUM_THREADS": "1"})
    os.environ.pop("RAY_AUTH_MODE", None)  # the product's own choice
    from retina_ray.orchestration.train_driver import train_driver

    with Path(records).open("a", buffering=1) as file:
        train_driver(from_mapping(config), resume=True, listener=lambda record: print(json.dumps(record), file=file))


@dataclass
class Site:
    """Where a training lives: its storage, scratch folder and the records of its present life."""

    root: Path
    config: RunConfig

    @property
    def scratch(self) -> Path:
        return self.root / "tmp"

    @property
    def artifacts(self) -> Path:
        return self.root / "runs" / "artifacts"

    @property
    def records_file(self) -> Path:
        return self.root / "records.jsonl"

    def records(self) -> list[dict[str, Any]]:
        with suppress(FileNotFoundError):
            # The last line may be half written.
            return [json.loads(line) for line in self.records_file.read_text().split("\n")[:-1]]
        return []

    def results(self) -> dict[str, bytes]:
        """Return the bytes of every result of every stage."""
        return {
            f"{folder.name}/{name}": (folder / name).read_bytes()
            for folder in self.artifacts.iterdir()
            for name in RESULTS
            if (folder / name).exists()
        }


Moment = Callable[[Site], bool]


def after_records(count: int) -> Moment:
    return lambda site: sum(record["kind"] in ("step", "epoch", "label") for record in site.records()) >= count


def inside_a_checkpoint_write(site: Site) -> bool:
    return any(not (folder / "MANIFEST.json").exists() for folder in site.scratch.glob("retina-ray-checkpoint-*"))


def between_report_and_commit(site: Site) -> bool:
    """Tell whether a whole checkpoint lies in the storage that Ray Train's snapshot does not name."""
    for folder in site.artifacts.glob("*/checkpoint_*/MANIFEST.json"):
        snapshot = folder.parent.parent / "checkpoint_manager_snapshot.json"
        if not snapshot.exists() or folder.parent.name not in snapshot.read_text():
            return True
    return False


def run_life(site: Site, moment: Moment | None, *, delay_s: float = 0.0, event: Event | None = None) -> bool:
    """Run one life, up to the moment or the event or to its end; tell whether it was killed."""
    mark = f"{site.root}-{time.monotonic_ns()}"
    site.scratch.mkdir(parents=True, exist_ok=True)
    site.records_file.unlink(missing_ok=True)
    for left in site.scratch.glob("retina-ray-checkpoint-*"):  # of an earlier life; no moment of this one
        remove(str(left))
    arguments = (site.config.model_dump(mode="json"), str(site.records_file), str(site.scratch), mark, event)
    process = warm_processes().Process(target=live, args=arguments)
    process.start()
    assert process.pid is not None
    deadline = time.monotonic() + LIFE_TIMEOUT_S
    ray_folders: set[str] = set()
    killed = False
    members: set[int] = set()
    looked = 0.0
    try:
        while process.is_alive() and time.monotonic() < deadline:
            if moment is None or not site.records() or not moment(site):
                if moment and time.monotonic() - looked > 0.5:  # ahead of the moment, which may last some ms
                    members, looked = {process.pid, *family(mark)}, time.monotonic()
                process.join(0.001 if moment else 0.2)
                continue
            process.join(delay_s)
            send(members, signal.SIGSTOP)
            if delay_s or moment(site):
                killed = True
                break
            send(members, signal.SIGCONT)
    finally:
        finished = process.exitcode is not None
        ray_folders |= {folder for member in family(mark) for folder in ray_folders_of(member)}
        while members := {*family(mark), *(() if finished else (process.pid,))}:
            send(members, signal.SIGKILL)
            process.join(0.05)
            finished = process.exitcode is not None
        for folder in ray_folders:
            remove(folder)
    assert time.monotonic() < deadline, "the life neither ended nor reached the moment"
    killed = killed or (event is not None and process.exitcode == -signal.SIGKILL)
    assert killed or process.exitcode == 0, f"the life ended by itself with {process.exitcode}"
    return killed


def where(site: Site) -> str:
    """Return in words how far the life was."""
    records = site.records()
    last = records[-1] if records else {"kind": "nothing"}
    return " ".join(str(last[key]) for key in ("stage", "kind", "step") if key in last)


def kill_again_and_again(site: Site, moments: list[tuple[str, Moment, float]]) -> list[str]:
    """Kill a training at each moment in turn, then let it end; return what was hit."""
    log = []
    for name, moment, delay_s in moments:
        start = time.monotonic()
        hit = run_life(site, moment, delay_s=delay_s)
        end = f"killed at {where(site)}" if hit else "ended before it"
        log.append(f"{name:26} {end} after {time.monotonic() - start:.1f} s")
        print(log[-1], flush=True)
        if not hit:
            break
    run_life(site, None)
    return log


def a_site(root: Path, data: Path, **changes: Any) -> Site:
    values = {"train__epochs": 3, "runtime__checkpoint__every_steps": 2, "runtime__log_every": 1, **changes}
    return Site(root, tiny_config(data, root / "runs", **values))


@pytest.fixture(scope="module")
def uninterrupted(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, bytes]]:
    site = a_site(tmp_path_factory.mktemp("whole"), data)
    assert not run_life(site, None)
    return site.results()


def assert_same(found: dict[str, bytes], expected: dict[str, bytes]) -> None:
    assert found.keys() == expected.keys()
    assert sum(name.endswith("weights.safetensors") for name in found) == 3
    assert [name for name in found if found[name] != expected[name]] == []


@pytest.mark.timeout(400)
def test_killed_at_ten_random_moments(uninterrupted: dict[str, bytes], data: Path, tmp_path: Path) -> None:
    draw = random.Random(20)
    moments = [
        (f"random {number}", after_records(draw.randint(1, 6)), draw.uniform(0.001, 0.05)) for number in range(10)
    ]
    site = a_site(tmp_path, data)
    log = kill_again_and_again(site, moments)
    assert sum("killed" in line for line in log) == 10
    assert_same(site.results(), uninterrupted)


@pytest.mark.timeout(400)
@pytest.mark.parametrize("moment", EVENTS)
def test_killed_at_the_worst_moments(uninterrupted: dict[str, bytes], data: Path, tmp_path: Path, moment: str) -> None:
    site = a_site(tmp_path, data)
    assert run_life(site, None, event=EVENTS[moment])
    left = {
        "inside a checkpoint write": inside_a_checkpoint_write(site),
        "between write and report": any(site.scratch.glob("retina-ray-checkpoint-*/MANIFEST.json")),
        "inside an artifact write": any(
            not (file.parent / "artifact.json").exists() for file in site.artifacts.glob("*/*.safetensors")
        ),
    }
    assert left[moment], "it lies there as it was killed"
    run_life(site, None)
    assert_same(site.results(), uninterrupted)


ON_RAY = {"runtime__workers": 2, "runtime__cpus_per_worker": 1, "runtime__checkpoint__every_steps": 3}


@pytest.mark.long
@pytest.mark.timeout(600)
def test_killed_on_ray_between_report_and_commit(ray_cluster: None, data: Path, tmp_path: Path) -> None:
    """One kill of a driver and all its cluster; `test_killed_on_ray_at_ten_moments` has the others."""
    from retina_ray.orchestration.train_driver import train_driver

    whole, killed = (a_site(tmp_path / name, data, **ON_RAY, **ONE_STAGE) for name in ("whole", "killed"))
    train_driver(whole.config)
    assert run_life(killed, between_report_and_commit)
    strays = {folder.parent for folder in killed.artifacts.glob("*/checkpoint_*/MANIFEST.json")}
    train_driver(killed.config, resume=True)
    assert killed.results() == whole.results()
    assert len(killed.results()) == 3
    assert strays
    (snapshot,) = killed.artifacts.glob("train-*/checkpoint_manager_snapshot.json")
    named = snapshot.read_text()
    left = [folder.name for folder in snapshot.parent.glob("checkpoint_*") if folder.is_dir()]
    assert [name for name in left if name not in named] == [], "what the kill stranded is collected"


@pytest.mark.long
@pytest.mark.timeout(3600)
def test_killed_on_ray_at_ten_moments(data: Path, tmp_path: Path) -> None:
    draw = random.Random(6)
    moments: list[tuple[str, Moment, float]] = [
        (f"random {number}", after_records(draw.randint(1, 6)), draw.uniform(0.01, 1.0)) for number in range(8)
    ]
    moments[1:1] = [("inside a checkpoint write", inside_a_checkpoint_write, 0.0)]
    moments[4:4] = [("between report and commit", between_report_and_commit, 0.0)]
    # So long that a quick machine does not finish before the tenth kill.
    longer = {**ON_RAY, "train__epochs": 14, "runtime__checkpoint__every_steps": 2}
    whole, killed = (a_site(tmp_path / name, data, **longer) for name in ("whole", "killed"))
    assert not run_life(whole, None)
    log = kill_again_and_again(killed, moments)
    assert sum("killed" in line for line in log) == 10
    assert_same(killed.results(), whole.results())
