"""``retina-ray jobs``: run commands on a cluster, and look after those that run there."""

import time
from collections.abc import Sequence
from contextlib import suppress
from datetime import datetime, timedelta
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
import yaml
from rich.table import Table

import retina_ray
from retina_ray.cli.console import console, error_console, print_json
from retina_ray.cli.job_arguments import Prepared, as_written, environment, job_id, prepare
from retina_ray.cli.options import AsJson
from retina_ray.errors import ResourceError
from retina_ray.provenance import COMMIT_VARIABLE, commit, package_version

if TYPE_CHECKING:
    from retina_ray.orchestration.jobs import JobRequest, Jobs, JobState

app = typer.Typer(help="Run commands on a cluster, and look after them.", no_args_is_help=True)

Address = Annotated[
    str | None, typer.Option("--address", help="The cluster's dashboard; by default http://127.0.0.1:8265.")
]
Id = Annotated[str, typer.Argument(help="Name of the job.")]

_EXIT = {"SUCCEEDED": 0, "STOPPED": 143}
"""A job that was stopped ends as a process that SIGTERM ended."""


@app.command("submit", context_settings={"allow_interspersed_args": False})
def submit(
    line: Annotated[list[str], typer.Argument(metavar="-- COMMAND...", help="train, tune, evaluate or data ingest.")],
    address: Address = None,
    name: Annotated[str | None, typer.Option("--name", help="Name of the job; by default that of the run.")] = None,
    num_workers: Annotated[
        int | None, typer.Option("--num-workers", min=1, help="Workers of the run, or of each trial.")
    ] = None,
    num_gpus: Annotated[
        int | None, typer.Option("--num-gpus", min=1, help="GPUs of the run, or of each trial: one per worker.")
    ] = None,
    variables: Annotated[
        list[str] | None,
        typer.Option("--env", metavar="NAME[=VALUE]", help="Variable for the job, by default with its value here."),
    ] = None,
    image_code: Annotated[
        bool, typer.Option("--image-code", help="Use the cluster's own version of retina-ray, not this one.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check/--no-check", help="Look first whether the cluster has data, storage and room.")
    ] = True,
    follow: Annotated[bool, typer.Option("--follow/--no-wait", help="Show its log until it ends.")] = True,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Print what would be sent, and send nothing.")] = False,
) -> None:
    """Run a command on the cluster; ends as the command ends there.

    What follows `--` is read here first, with all files that it names. Ctrl-C leaves the job to itself.
    """
    from retina_ray.orchestration.dashboard import authenticate

    authenticate()  # first of all: what comes next imports Ray
    prepared = prepare(line, workers=num_workers, gpus=num_gpus)
    request = _request(prepared, line, name=name, variables=variables or [], image_code=image_code)
    if dry_run:
        console().print(_described(request), markup=False, soft_wrap=True, end="")
        return
    jobs = _jobs(address)
    say = error_console()
    if check:
        _check(jobs, request, prepared)
    jobs.submit(request)
    say.print(f"submitted {request.id}", markup=False)
    if not follow:
        console().print(request.id, markup=False)
        return
    _follow(jobs, request.id)


@app.command("list")
def list_(address: Address = None, as_json: AsJson = False) -> None:
    """Print the cluster's jobs, the newest first."""
    found = _jobs(address).list()
    if as_json:
        print_json([_record(state) for state in found])
        return
    table = Table()
    for heading in ("job", "status", "started", "took", "command"):
        table.add_column(heading, overflow="fold")
    for state in found:
        table.add_row(state.id, _ended_as(state), *_times(state), state.command)
    console().print(table)


@app.command("status")
def status(job: Id, address: Address = None, as_json: AsJson = False) -> None:
    """Print what has become of a job."""
    state = _known(_jobs(address).state, job)
    if as_json:
        print_json(_record(state))
        return
    started, took = _times(state)
    lines = {
        "job": state.id,
        "status": _ended_as(state),
        "message": state.message,
        "command": state.command,
        "started": started,
        "took": took,
        "code": state.metadata.get("commit", ""),
    }
    for key, value in lines.items():
        if value:
            console().print(f"{key:<8} {value}", markup=False, soft_wrap=True)


@app.command("logs")
def logs(
    job: Id,
    follow: Annotated[bool, typer.Option("--follow", "-f", help="Go on until it ends, and end as it does.")] = False,
    address: Address = None,
) -> None:
    """Print what a job has written."""
    jobs = _jobs(address)
    if follow:
        _follow(jobs, job)
    else:
        print(_known(jobs.log, job), end="")


@app.command("stop")
def stop(job: Id, address: Address = None) -> None:
    """Tell a job to stop, and wait until it has; a training writes a checkpoint first."""
    state = _known(_jobs(address).stop, job)
    console().print(f"{job} {_ended_as(state)}", markup=False)


def _request(
    prepared: Prepared, line: Sequence[str], *, name: str | None, variables: Sequence[str], image_code: bool
) -> "JobRequest":
    from retina_ray.orchestration.jobs import JobRequest

    code = commit()
    shipped = {} if image_code or code is None else {COMMIT_VARIABLE: code}
    root = Path(retina_ray.__file__).parents[1]
    packages = () if image_code else tuple(root / package for package in ("retina_ray", "tune_spaces", "serve_apps"))
    version = "the image's" if image_code else f"{package_version('retina-ray')} {code or ''}".strip()
    return JobRequest(
        id=name or job_id(prepared.name),
        command=prepared.command,
        files=prepared.files,
        packages=packages,
        environment={**shipped, **environment(variables)},
        metadata={"command": as_written(line), "commit": version},
        gpus=prepared.gpus,
    )


def _check(jobs: "Jobs", request: "JobRequest", prepared: Prepared) -> None:
    """Raise ResourceError with all that the cluster lacks for a job."""
    from dataclasses import replace

    from retina_ray.orchestration.job_check import FILE, findings

    error_console().print("looking at data, storage and room as the cluster sees them", markup=False)
    command = f"python -m retina_ray.orchestration.job_check {FILE}"
    trial = replace(
        request, id=job_id(f"{request.id}-check"), command=command, files={FILE: prepared.needs.to_json()}, gpus=0.0
    )
    written: list[str] = []
    try:
        jobs.submit(trial)
        state = jobs.follow(trial.id, written.append)
    except KeyboardInterrupt:
        _withdraw(jobs, trial.id)
        raise
    found = findings("".join(written))
    if found is None:
        fix = f"see `retina-ray jobs logs {trial.id}`, or submit with --no-check"
        raise ResourceError("the cluster could not be looked at", state.message or state.status, fix)
    jobs.forget(trial.id)
    if found:
        fix = "mend that, or submit with --no-check"
        raise ResourceError(f"the cluster lacks what the job needs ({len(found)})", "; ".join(found), fix)


def _withdraw(jobs: "Jobs", check: str) -> None:
    """Leave nothing of a check on the cluster that nobody waits for."""
    error_console().print(f"stopping the check {check}", markup=False)
    with suppress(ResourceError, KeyError):  # it ends by itself, or has not begun
        jobs.stop(check)
        jobs.forget(check)


def _follow(jobs: "Jobs", job: str) -> None:
    """Show a job's log until it ends, and exit as it did."""
    say = error_console()
    try:
        state = _known(lambda each: jobs.follow(each, _write), job)
    except KeyboardInterrupt:
        say.print(f"the job goes on: retina-ray jobs logs -f {job}, or to end it: jobs stop {job}", markup=False)
        raise
    if state.status != "SUCCEEDED":
        say.print(f"{job} {_ended_as(state)} {state.message}".rstrip(), markup=False, soft_wrap=True)
    raise typer.Exit(_exit_code(state))


def _exit_code(state: "JobState") -> int:
    """Return the job's own code, as a shell would: 128 and the signal where one ended it."""
    if state.status in _EXIT:
        return _EXIT[state.status]
    code = state.exit_code or 1
    return code if code > 0 else 128 - code


def _write(text: str) -> None:
    print(text, end="", flush=True)


def _described(request: "JobRequest") -> str:
    """Return what would be sent, without the values of variables, which may be secret."""
    described = {
        "job": request.id,
        "command": request.command,
        "code": [str(package) for package in request.packages] or "the image's",
        "commit": request.metadata["commit"],
        "variables": sorted(request.environment),
        "gpus of its own": request.gpus,
        "files": {name: content.decode(errors="replace") for name, content in request.files.items()},
    }
    return yaml.dump(described, Dumper=_Dumper, sort_keys=False, allow_unicode=True, width=120)


class _Dumper(yaml.SafeDumper):
    """Writes texts of several lines as such."""


_Dumper.add_representer(
    str,
    lambda dumper, text: dumper.represent_scalar("tag:yaml.org,2002:str", text, style="|" if "\n" in text else None),
)


def _jobs(address: str | None) -> "Jobs":
    from retina_ray.orchestration.dashboard import DEFAULT_ADDRESS, authenticate, given_address

    authenticate()
    from retina_ray.orchestration.jobs import Jobs

    return Jobs(given_address(address) or DEFAULT_ADDRESS)


def _known(ask: Any, job: str) -> Any:
    """Return what is asked of a job.

    Raises:
        ResourceError: there is none of that name.
    """
    try:
        return ask(job)
    except KeyError:
        raise ResourceError("no such job", job, "`retina-ray jobs list` names them") from None


def _ended_as(state: "JobState") -> str:
    return state.status.lower() + (f" ({state.exit_code})" if state.exit_code else "")


def _times(state: "JobState") -> tuple[str, str]:
    """Return when a job began, and how long it took or has taken so far."""
    if state.started is None:
        return "", ""
    began = datetime.fromtimestamp(state.started).astimezone().strftime("%Y-%m-%d %H:%M:%S")
    return began, str(timedelta(seconds=round((state.ended or time.time()) - state.started)))


def _record(state: "JobState") -> dict[str, Any]:
    return {
        "id": state.id,
        "status": state.status,
        "message": state.message,
        "command": state.command,
        "started": state.started,
        "ended": state.ended,
        "exit_code": state.exit_code,
        "commit": state.metadata.get("commit"),
    }
