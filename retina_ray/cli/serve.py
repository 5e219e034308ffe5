"""``retina-ray serve``: deploy models, look at what is deployed, replace, try and end it."""

import os
import signal
import threading
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.table import Table

from retina_ray.cli import serve_audit, serve_compare, serve_keys
from retina_ray.cli.console import console, error_console, print_json
from retina_ray.cli.options import AsJson
from retina_ray.errors import ConfigError

if TYPE_CHECKING:
    from serve_apps.control import Cluster, Serving

app = typer.Typer(help="Serve models over HTTP, and look after what is served.", no_args_is_help=True)
app.add_typer(serve_keys.app, name="keys")
app.add_typer(serve_audit.app, name="audit")
app.command("compare")(serve_compare.compare)

Address = Annotated[
    str | None,
    typer.Option("--address", help="The cluster's dashboard, http://HOST:8265. Without it, what `serve up` serves."),
]
Name = Annotated[str, typer.Argument(help="What the model is served as.")]


@app.command("up")
def up(
    file: Annotated[Path | None, typer.Argument(help="Configuration; without one, serve_apps/local.yaml.")] = None,
    model: Annotated[
        list[str] | None,
        typer.Option(
            "--model", help="NAME=ADDRESS, or ADDRESS for the only model: a bundle's folder or models:/NAME@ALIAS."
        ),
    ] = None,
    host: Annotated[str | None, typer.Option("--host", help="Address to listen on.")] = None,
    port: Annotated[int | None, typer.Option("--port", min=1, max=65535, help="Port to listen on.")] = None,
    keys: Annotated[Path | None, typer.Option("--keys", help="File of API keys; needed beyond this machine.")] = None,
    audit: Annotated[Path | None, typer.Option("--audit", help="Folder of the audit log.")] = None,
    storage: Annotated[str | None, typer.Option("--storage", help="Where the registry of models:/ lies.")] = None,
    behind_firewall: Annotated[
        bool, typer.Option("--behind-firewall", help="All other ports of this machine are closed from outside.")
    ] = False,
    announce: Annotated[
        bool, typer.Option("--announce/--no-announce", help="Let status, promote and the like find it by themselves.")
    ] = True,
) -> None:
    """Serve on this machine until Ctrl-C, on a Ray cluster of its own."""
    from serve_apps.local import check_host, take_token

    take_token()
    from serve_apps.control import Serving
    from serve_apps.up import served_here

    serving = Serving.read(file or default_file())
    serving = serving.with_arguments(
        keys=_absolute(keys), audit=_absolute(audit), storage=None if storage is None else _absolute_storage(storage)
    )
    serving = serving.with_address(host, port)
    for given in model or []:
        serving = with_model(serving, given)
    check_host(serving.host, keys=serving.arguments.keys is not None, behind_firewall=behind_firewall)
    serving = serving.pinned()
    say = error_console()
    say.print("starting Ray and the models", markup=False)
    with served_here(serving, announce=announce) as url:
        stopped = until_told()  # now, since Ray sets handlers of its own
        for name, settings in serving.models.items():
            say.print(f"serving {name}: {settings.bundle}", markup=False, soft_wrap=True)
        console().print(url, markup=False)
        stopped.wait()
        say.print("stopping", markup=False)


@app.command("deploy")
def deploy(
    file: Annotated[Path, typer.Argument(help="Configuration, such as serve_apps/cluster.yaml.")],
    address: Address = None,
    seconds: Annotated[float, typer.Option("--wait", min=0, help="Seconds to wait until it runs.")] = 600.0,
) -> None:
    """Serve on a cluster; what runs there already is changed in place as far as that is possible."""
    from serve_apps.control import Serving
    from serve_apps.local import check_host

    serving = Serving.read(file)
    # A cluster's ports are closed by its network policy and security group, which cluster/ has.
    check_host(serving.host, keys=serving.arguments.keys is not None, behind_firewall=True)
    serving = serving.pinned()
    cluster = _cluster(address)
    cluster.apply(serving)
    cluster.wait(serving.app, seconds=seconds)
    _show(cluster)


@app.command("status")
def status(address: Address = None, as_json: AsJson = False) -> None:
    """Print what is deployed, and whether it is as declared."""
    cluster = _cluster(address)
    if as_json:
        print_json(_summary(cluster))
    else:
        _show(cluster)


@app.command("promote")
def promote(
    name: Name,
    bundle: Annotated[
        str | None, typer.Argument(help="Folder or models:/NAME/VERSION; without it, the registry's present champion.")
    ] = None,
    address: Address = None,
) -> None:
    """Put another bundle in a served model's place, without failing a request.

    It is checked here first, and again by every replica before it answers with it; one that fails stays out. Replicas
    that refused it try it again where it is named again.
    """
    from retina_ray.model_versions import registered_name

    cluster = _cluster(address)
    serving = cluster.serving()
    settings = serving.model(name)
    present = settings.bundle
    if bundle is None:
        registered = registered_name(present or "")
        if registered is None:
            raise ConfigError("no bundle to promote", name, "name one: the present one is not from the registry")
        bundle = f"models:/{registered}@champion"
    wanted = serving.pin(bundle)
    _check(serving, name, wanted)
    if wanted == present:
        attempt = settings.attempt + 1
        cluster.apply(serving.with_model(name, wanted, previous=settings.previous, attempt=attempt))
        cluster.wait(serving.app)
        said = f"{name}: {wanted} was declared already; replicas that refused it try it again (attempt {attempt})"
        console().print(said, markup=False, soft_wrap=True)
        return
    _replace(cluster, serving, name, wanted, previous=present)


@app.command("rollback")
def rollback(name: Name, address: Address = None) -> None:
    """Return a served model to the bundle that it answered with before."""
    cluster = _cluster(address)
    serving = cluster.serving()
    settings = serving.model(name)
    if settings.previous is None:
        raise ConfigError("there is nothing to return to", name, "promote the bundle that you want")
    _replace(cluster, serving, name, settings.previous, previous=settings.bundle)


@app.command("try")
def try_candidate(
    name: Name,
    bundle: Annotated[
        str | None,
        typer.Argument(help="The candidate: a folder or models:/NAME@candidate. Without one the trial ends."),
    ] = None,
    canary: Annotated[
        float, typer.Option("--canary", min=0, max=100, help="Per cent of the photographs that it answers.")
    ] = 0.0,
    shadow: Annotated[
        bool, typer.Option("--shadow", help="It sees a copy of the others, off the way of their answers.")
    ] = False,
    address: Address = None,
) -> None:
    """Try a candidate on live photographs: let it answer a share of them, or see copies."""
    from serve_apps.arguments import TrialSettings

    if bundle is not None and not canary and not shadow:
        raise ConfigError("the candidate would see nothing", name, "add --canary PERCENT or --shadow")
    cluster = _cluster(address)
    serving = cluster.serving()
    if shadow and serving.arguments.shadow is None:
        fix = "set args.shadow to a folder in the configuration, and deploy it"
        raise ConfigError("what a shadowing candidate answers would be recorded nowhere", name, fix)
    if bundle is not None:
        bundle = serving.pin(bundle)
        _check(serving, name, bundle)
    cluster.apply(serving.with_trial(name, bundle, TrialSettings(canary_percent=canary, shadow=shadow)))
    cluster.wait(serving.app)
    _show(cluster)


@app.command("down")
def down(address: Address = None) -> None:
    """End what is served."""
    from retina_ray.orchestration.dashboard import given_address
    from serve_apps.local import announced_process

    own = announced_process() if given_address(address) is None else None
    if own is not None:
        os.kill(own, signal.SIGTERM)
        console().print(f"told process {own} of `retina-ray serve up` to end", markup=False)
        return
    others = _cluster(address).remove()
    stay = f"; what else runs there stays: {', '.join(others)}" if others else ""
    console().print(f"nothing of retina_ray is served there any more{stay}", markup=False, soft_wrap=True)


def _cluster(address: str | None) -> "Cluster":
    from serve_apps.local import find

    dashboard = find(address)
    from serve_apps.control import Cluster

    return Cluster(dashboard)


def _check(serving: "Serving", name: str, bundle: str) -> None:
    """Check a bundle in this process before any replica is bothered with it, in the precision that it is served in."""
    from retina_ray.bundle import Bundle
    from retina_ray.model_versions import registry_of, resolve_model
    from retina_ray.serving.model_host import HostSettings, LoadedModel

    serving.model(name)
    settings = HostSettings("check", device="cpu", precision=serving.arguments.models[name].precision)
    registry = registry_of(serving.arguments.storage)
    LoadedModel(Bundle.load(resolve_model(bundle, config=registry)), settings)


def _replace(cluster: "Cluster", serving: "Serving", name: str, bundle: str, *, previous: str | None) -> None:
    cluster.apply(serving.with_model(name, bundle, previous=previous))
    cluster.wait(serving.app)
    console().print(f"{name}: {previous} -> {bundle}", markup=False, soft_wrap=True)
    error_console().print("replicas load it beside the present one; GET /v1/models shows when all answer with it")


def with_model(serving: "Serving", given: str) -> "Serving":
    """Return the configuration with a bundle that was given as ``--model``."""
    name, equals, bundle = given.partition("=")
    if not equals:
        names = list(serving.arguments.models)
        if len(names) > 1:
            raise ConfigError("which model?", given, f"write NAME=ADDRESS; names are {', '.join(names)}")
        name, bundle = names[0], given
    if not bundle.startswith(("models:", "s3://")):
        bundle = str(Path(bundle).absolute())
    return serving.with_model(name, bundle, previous=None)


def until_told() -> threading.Event:
    """Return what Ctrl-C and SIGTERM set from now on."""
    told = threading.Event()
    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, lambda *_: told.set())
    return told


def _summary(cluster: "Cluster") -> dict[str, Any]:
    serving = cluster.serving()
    details = cluster.details()["applications"][serving.app]
    deployments = {
        name: {
            "status": each["status"],
            "replicas": sum(replica["state"] == "RUNNING" for replica in each.get("replicas", [])),
            "message": each.get("message", ""),
        }
        for name, each in details.get("deployments", {}).items()
    }
    return {
        "status": details["status"],
        "message": details.get("message", ""),
        "models": {name: settings.model_dump() for name, settings in serving.models.items()},
        "trials": {name: trial.model_dump() for name, trial in serving.http.trials.items()},
        "deployments": deployments,
    }


def _show(cluster: "Cluster") -> None:
    found = _summary(cluster)
    out = console()
    out.print(f"{found['status']} {found['message']}".strip(), markup=False, soft_wrap=True)
    for name, settings in found["models"].items():
        trial = found["trials"].get(name)
        tried = f"; a candidate answers {trial['canary_percent']:g} %" if trial else ""
        shadowed = ", sees copies of the rest" if trial and trial["shadow"] else ""
        out.print(f"{name}: {settings['bundle']}{tried}{shadowed}", markup=False, soft_wrap=True)
    table = Table()
    for heading in ("deployment", "status", "replicas", "message"):
        table.add_column(heading, justify="right" if heading == "replicas" else "left", overflow="fold")
    for name, each in found["deployments"].items():
        table.add_row(name, each["status"], str(each["replicas"]), each["message"])
    out.print(table)


def default_file() -> Path:
    """Return the configuration that is served where none is given."""
    import serve_apps

    return Path(str(serve_apps.__file__)).with_name("local.yaml")


def _absolute(path: Path | None) -> str | None:
    return None if path is None else str(path.absolute())


def _absolute_storage(storage: str) -> str:
    return storage if "://" in storage else str(Path(storage).absolute())
