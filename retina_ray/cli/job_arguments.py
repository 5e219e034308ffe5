"""A command line that is to run on a cluster: read here as it would be there, and made whole.

What is wrong with it shows before anything is sent. Files that it names and only this machine has go along; paths
must mean the same on the cluster.
"""

import os
import secrets
import shlex
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from enum import Enum
from pathlib import Path
from typing import TYPE_CHECKING, Any

import typer

from retina_ray.cli.options import resolve
from retina_ray.config import RunConfig, override, to_yaml, value_at
from retina_ray.config_method import WEIGHT_PATHS
from retina_ray.errors import ConfigError

if TYPE_CHECKING:
    from retina_ray.orchestration.job_check import Needs

CONFIG, POINTS, SPLIT = "config.yaml", "points.yaml", "split.csv"
"""Names of files in the job's working folder."""

Parameters = dict[str, Any]


@dataclass(frozen=True)
class Prepared:
    """A command for the cluster.

    Attributes:
        parameters: of the verb there, by the names of its options.
        needs: what must exist there.
        files: content by name, for the working folder.
        gpus: that the command's own process needs.
        name: of what it makes, for a name of the job.
        arguments: of ``retina-ray`` there.
    """

    parameters: Parameters
    needs: "Needs"
    files: dict[str, bytes] = field(default_factory=dict)
    gpus: float = 0.0
    name: str = ""
    arguments: tuple[str, ...] = ()

    @property
    def command(self) -> str:
        """What the cluster's shell runs."""
        return shlex.join(["python", "-m", "retina_ray", *self.arguments])


def prepare(arguments: Sequence[str], *, workers: int | None, gpus: int | None) -> Prepared:
    """Read a command line, and return it as it is to run on the cluster.

    Args:
        arguments: of ``retina-ray``, beginning with the verb.
        workers: Ray Train workers of a run or trial; None leaves it to the configuration.
        gpus: GPUs of a run or trial, one per worker, or of an evaluation; None leaves it to the configuration.

    Raises:
        ConfigError: the verb is not for jobs, or something in the line is wrong or means nothing on a cluster.
    """
    verb = next((verb for verb in _VERBS if tuple(arguments[: len(verb)]) == verb), None)
    if verb is None:
        known = ", ".join(" ".join(each) for each in _VERBS)
        raise ConfigError("no command for a job", " ".join(arguments[:2]) or "nothing", f"give one of {known}")
    command = _command(verb)
    with command.make_context(" ".join(verb), list(arguments[len(verb) :])) as context:
        prepared = _VERBS[verb](dict(context.params), _Asked(workers, gpus))
        return replace(prepared, arguments=(*verb, *_line(command, context, prepared.parameters)))


@dataclass(frozen=True)
class _Asked:
    workers: int | None
    gpus: int | None

    def applied(self, config: RunConfig) -> RunConfig:
        """Return the configuration with the cluster's address and the workers that are asked for."""
        changes: dict[str, Any] = {"runtime.address": "auto"}
        if self.workers is not None:
            changes["runtime.workers"] = self.workers
        if self.gpus is not None:
            workers = self.workers or self.gpus
            changes |= {"runtime.workers": workers, "runtime.use_gpu": True}
            changes["runtime.gpus_per_worker"] = self.gpus / workers
        return override(config, changes)

    def refuse_workers(self, verb: str) -> None:
        """Raise ConfigError where workers were asked for."""
        if self.workers is not None:
            raise ConfigError(f"{verb} has no workers", f"--num-workers {self.workers}", "leave it out")


def _train(given: Parameters, asked: _Asked) -> Prepared:
    config = resolve(
        given["recipe"],
        given["config_file"],
        given["assignments"],
        name=given["name"],
        data__path=given["data"],
        data__hide_grades=given["hide_grades"],
        runtime__storage=given["storage"],
    )
    config = asked.applied(config)
    return Prepared(_with_file(given, config), _needs(config), {CONFIG: to_yaml(config).encode()}, name=config.name)


def _tune(given: Parameters, asked: _Asked) -> Prepared:
    from retina_ray.cli.tune import base_config

    chosen = ("space", "recipe", "config_file", "assignments", "data", "name", "storage")
    config = asked.applied(base_config(**{name: given[name] for name in chosen}))
    changed = {**_with_file(given, config), "name": config.name, "address": None}
    files = {CONFIG: to_yaml(config).encode(), **_space_files(given["space"])}
    if given["points"] is not None:
        changed["points"], files[POINTS] = POINTS, given["points"].read_bytes()
    return Prepared(changed, _needs(config), files, name=config.name)


def _evaluate(given: Parameters, asked: _Asked) -> Prepared:
    from retina_ray.orchestration.job_check import Needs

    asked.refuse_workers("evaluate")
    runs = tuple(_on_cluster(run, "a run or bundle") for run in given["runs"])
    data = () if given["data"] is None else (_on_cluster(given["data"], "--data"),)
    changed = {**given, "runs": list(runs), "data": data[0] if data else None}
    return Prepared(changed, Needs(datasets=data, folders=runs), gpus=float(asked.gpus or 0), name="evaluate")


def _ingest(given: Parameters, asked: _Asked) -> Prepared:
    from retina_ray.orchestration.job_check import Needs

    asked.refuse_workers("data ingest")
    if asked.gpus is not None:
        raise ConfigError("data ingest uses no GPU", f"--num-gpus {asked.gpus}", "leave it out")
    source, out = _on_cluster(given["source"], "the source"), _on_cluster(given["out"], "the data set")
    changed = {**given, "source": source, "out": out}
    if given["workers"] is None:
        changed["address"] = given["address"] or "auto"
    files = {}
    if Path(given["split"]).is_file():
        files[SPLIT] = Path(given["split"]).read_bytes()
        changed["split"] = SPLIT
    return Prepared(changed, Needs(folders=(source,), storage=(out,)), files, name="ingest")


_VERBS: Mapping[tuple[str, ...], Callable[[Parameters, _Asked], Prepared]] = {
    ("train",): _train,
    ("tune",): _tune,
    ("evaluate",): _evaluate,
    ("data", "ingest"): _ingest,
}


def _with_file(given: Parameters, config: RunConfig) -> Parameters:
    """Return the parameters with one file in place of all that the configuration was made of."""
    made_of = ("assignments", "data", "name", "storage", "hide_grades")
    return {**given, **{name: None for name in made_of if name in given}, "config_file": CONFIG}


def _needs(config: RunConfig) -> "Needs":
    from retina_ray.orchestration.job_check import Needs

    if not config.data.path:
        raise ConfigError("no data set given", "data.path", "add --data with an address that the cluster can read")
    storage = _on_cluster(config.runtime.storage, "runtime.storage (--storage)")
    weights = (value_at(config, path) for path in WEIGHT_PATHS[config.method.name])
    files = tuple(_on_cluster(each, "a weight file") for each in weights if each not in ("none", "imagenet"))
    return Needs(
        datasets=(_on_cluster(config.data.path, "data.path (--data)"),),
        folders=files,
        storage=(storage,),
        runtime=config.runtime.model_dump(mode="json"),
        registry=config.tracking.enabled and config.tracking.uri is None and "://" in storage,
    )


def _on_cluster(address: str, what: str) -> str:
    """Return an address that means the same on every machine.

    Raises:
        ConfigError: it is a path relative to this one's present folder.
    """
    if "://" in address or Path(address).is_absolute():
        return address
    fix = "give s3://... or an absolute path that all its nodes share"
    raise ConfigError(f"the cluster cannot know what {what} is relative to", address, fix)


def _space_files(space: str) -> dict[str, bytes]:
    """Return the files of a search space that lies in the present folder, by their name there."""
    module, colon, _ = space.partition(":")
    top = Path(module.split(".")[0])
    if not colon:
        return {}
    files = sorted(top.rglob("*.py")) if top.is_dir() else [top.with_suffix(".py")]
    return {str(file): file.read_bytes() for file in files if file.is_file()}


def _command(verb: Sequence[str]) -> Any:
    """Return the parser of a verb."""
    from retina_ray.cli.main import app  # which imports this package's verbs, this one among them

    command: Any = typer.main.get_command(app)
    for word in verb:
        command = command.commands[word]
    return command


def _line(command: Any, context: Any, parameters: Parameters) -> list[str]:
    """Return the arguments that give a parser these parameters; what is at its default is left out."""
    options: list[str] = []
    arguments: list[str] = []
    for each in command.params:
        value = parameters.get(each.name)
        if value is None or value == each.get_default(context):
            continue
        values = [_text(item) for item in (value if isinstance(value, list | tuple) else [value])]
        if each.param_type_name == "argument":
            arguments += values
        elif getattr(each, "is_flag", False):
            options.append(each.opts[0] if value else each.secondary_opts[0])
        else:
            options += [part for item in values for part in (each.opts[0], item)]
    return [*options, *(["--", *arguments] if any(each.startswith("-") for each in arguments) else arguments)]


def _text(value: object) -> str:
    return str(value.value) if isinstance(value, Enum) else str(value)


def environment(given: Sequence[str]) -> dict[str, str]:
    """Return variables for the job: ``NAME=VALUE``, or ``NAME`` for this process's own.

    Raises:
        ConfigError: it is not set here.
    """
    found = {}
    for each in given:
        name, equals, value = each.partition("=")
        if not equals and name not in os.environ:
            raise ConfigError("the variable is not set here", name, "set it, or give NAME=VALUE")
        found[name] = value if equals else os.environ[name]
    return found


def job_id(name: str) -> str:
    """Return a name for a job: what it makes, and a few letters that no other has."""
    return f"{name}-{secrets.token_hex(3)}"


def as_written(arguments: Sequence[str]) -> str:
    """Return a command as its user wrote it."""
    return shlex.join([Path(sys.argv[0]).name, *arguments])
