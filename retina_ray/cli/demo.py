"""``retina-ray demo``: the whole way, from drawn images to a graded photograph, in minutes on two cores."""

import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Annotated

import typer

from retina_ray.cli.console import console, counting, error_console, print_json, result_table, stage_display
from retina_ray.cli.options import AsJson, Assignments, resolve
from retina_ray.cli.search_display import parameters
from retina_ray.cli.train import describe
from retina_ray.cli.tune import search_and_publish
from retina_ray.client import Client
from retina_ray.config import override
from retina_ray.errors import ResourceError

STORED_SIZE = 96
"""Larger than the network's input, so that the demo resamples as a real run does."""
EPOCHS = 8
"""Enough to see the networks learn; the recipe's last ones gain little."""


def demo(
    out: Annotated[Path, typer.Option("--out", help="Folder for the data set and the run.")] = Path("demo"),
    images_per_task: Annotated[int, typer.Option("--images-per-task", min=20, help="Images drawn per task.")] = 600,
    trials: Annotated[int, typer.Option("--trials", min=2, help="Trials of the search.")] = 3,
    assignments: Assignments = None,
    keep_serving: Annotated[
        bool, typer.Option("--keep-serving", help="Leave the champion served until Ctrl-C.")
    ] = False,
    serve_config: Annotated[
        Path | None,
        typer.Option("--serve-config", help="Configuration of the endpoint; without one, serve_apps/local.yaml."),
    ] = None,
    as_json: AsJson = False,
) -> None:
    """Draw two diseases, train SALL on two Ray workers, search for a better one, serve the champion and ask it.

    Some seven minutes on two cores: the search is over temperature and data ratio, and begins with the trained setting.

    A demo that was interrupted goes on where it was.
    """
    start = time.perf_counter()
    data = out / "data"
    settings = {"data__path": str(data), "runtime__storage": str(out / "runs"), "train__epochs": EPOCHS}
    config = resolve("sall_debug", None, assignments, name="demo", **settings)
    from retina_ray.data.synthetic import write_synthetic
    from retina_ray.model_versions import resolve_model
    from retina_ray.orchestration.publish import train_and_publish
    from retina_ray.orchestration.ray_settings import connected
    from retina_ray.orchestration.run_report import report_run
    from retina_ray.orchestration.search_folder import SearchFolder
    from retina_ray.orchestration.search_report import report_search
    from retina_ray.orchestration.tune_driver import SearchOptions

    if not (data / "dataset.json").exists():
        with counting("drawing") as progress:
            write_synthetic(
                str(data),
                tasks=config.method.tasks,
                images_per_task=images_per_task,
                image_size=STORED_SIZE,
                seed=config.seed,
                encoding="jpeg",
                num_workers=2,
                progress=progress,
            )
    error_console().print(f"data set in {data}", markup=False)
    with connected(config.runtime, for_search=True):  # once for all of it
        with stage_display() as display:
            published = train_and_publish(config, resume=True, listener=display)
        search, winner = search_and_publish(
            override(config, {"name": "demo-search"}), SearchOptions("sall_brief", trials), resume=True
        )
    report = report_run(published.result.folder)
    search_report = report_search(SearchFolder.open(search))
    photograph = out / "photograph.jpg"
    truth = _draw_photograph(photograph, task=config.method.tasks[0], seed=config.seed + 1)
    champion = str(resolve_model(f"models:/{config.tracking.model_name}@champion", config=config))
    error_console().print("serving the champion")
    with _served(champion, serve_config) as url:
        with Client(url, retry_for_s=30.0) as client:
            answer = client.grade(photograph)
        seconds = time.perf_counter() - start
        if as_json:
            found = {"search": search, "search_report": search_report, "winner": describe(winner.published)}
            told = {"report": report, "served": url, "prediction": answer.model_dump(), "seconds": seconds}
            print_json({**describe(published), **found, **told})
        else:
            say = console()
            say.print(result_table(published.result.summaries, title="test split: single-task networks against SALL"))
            say.print(result_table(winner.published.result.summaries, title="test split: the winner of the search"))
            task, grade = config.method.tasks[0], answer.tasks[config.method.tasks[0]]
            graded = f"{task} {grade.grade} ({grade.grade_name}), {grade.confidence:.0%}; drawn as {truth}"
            for line in (
                f"graded    {photograph}: {graded}",
                f"report    {report}",
                f"searched  {search_report}",
                f"winner    trial {winner.trial.number}: {parameters(winner.trial)}",
                f"bundle    {winner.published.bundle_uri}",
                f"champion  {champion}",
                f"served    {url}, a page too" + ("" if keep_serving else "; ended now, --keep-serving leaves it up"),
                f"next      retina-ray serve up --model {champion}",
                f"took      {seconds:.0f} s",
            ):
                say.print(line, markup=False, soft_wrap=True)
        if keep_serving:
            error_console().print("serving until Ctrl-C")
            with suppress(KeyboardInterrupt):
                signal.pause()


def _draw_photograph(path: Path, *, task: str, seed: int) -> int:
    """Draw a photograph that the data set does not hold; return its grade."""
    from PIL import Image

    from retina_ray.data.schema import KNOWN_TASKS
    from retina_ray.data.synthetic import draw

    grade = KNOWN_TASKS[task].num_grades - 1
    sample = draw(size=512, task=task, grade=grade, seed=seed, index=0)
    Image.fromarray(sample.image).save(path, quality=95)
    return sample.grades[task]


@contextmanager
def _served(bundle: str, config: Path | None) -> Iterator[str]:
    """Serve a bundle by `retina-ray serve up`, in a process of its own, for the length of a block; yield its address.

    Args:
        bundle: its folder.
        config: of the endpoint, or that of `serve up` without one.

    Raises:
        ResourceError: it does not start.
    """
    from serve_apps.local import free_port

    command = [sys.executable, "-c", "from retina_ray.cli.main import main; main()", "serve", "up", "--no-announce"]
    command += [] if config is None else [str(config)]
    command += ["--model", bundle, "--port", str(free_port())]
    process = subprocess.Popen(command, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        url = process.stdout.readline().strip()
        if not url:
            raise ResourceError("the champion is not served", bundle, "try `retina-ray serve up --model` with it")
        yield url
    finally:
        process.stdout.close()
        process.terminate()
        process.wait()
