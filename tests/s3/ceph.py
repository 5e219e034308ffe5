"""A real S3 server for the tests: one node of Ceph (monitor, storage in memory, RADOS gateway) on loopback.

Needs Debian's packages radosgw, ceph-mon, ceph-osd and ceph-common.
"""

import os
import shutil
import socket
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

PROGRAMS = ("ceph-mon", "ceph-osd", "radosgw", "radosgw-admin", "monmaptool", "ceph")
ACCESS_KEY, SECRET_KEY = "key-of-tests", "secret-of-tests"

_STARTS = 3

_CONFIGURATION = """
[global]
fsid = {fsid}
mon host = v1:127.0.0.1:{mon_port}
mon initial members = a
public addr = 127.0.0.1
cluster addr = 127.0.0.1
ms bind msgr2 = false
ms bind ipv6 = false
auth cluster required = none
auth service required = none
auth client required = none
osd pool default size = 1
osd pool default min size = 1
mon allow pool size one = true
osd pool default pg num = 4
osd pool default pgp num = 4
osd pool default pg autoscale mode = off
osd crush chooseleaf type = 0
mon max pg per osd = 1000
run dir = {folder}
admin socket = {folder}/$name.asok
log file = {folder}/$name.log
log to stderr = false
pid file =
crash dir = {folder}
keyring = /dev/null
mon data avail crit = 1
mon data avail warn = 1
[mon.a]
mon data = {folder}/mon
[osd.0]
osd data = {folder}/osd
osd objectstore = memstore
memstore device bytes = 2147483648
osd class load list = *
[client.rgw.a]
rgw frontends = beast endpoint=127.0.0.1:{port}
rgw data = {folder}
rgw enable usage log = false
rgw num rados handles = 1
rgw thread pool size = 32
"""


def missing_programs() -> list[str]:
    """Return the programs that are not installed."""
    return [program for program in PROGRAMS if shutil.which(program) is None]


@contextmanager
def ceph(folder: Path) -> Iterator[str]:
    """Run the server for the length of a block; yields its endpoint.

    Starts anew, on other ports, if it does not come up: a free port may be taken before it is bound.

    Args:
        folder: for its files; short, since unix sockets lie in it.
    """
    for attempt in range(_STARTS):
        server = _Server(folder / str(attempt))
        try:
            endpoint = server.start()
            break
        except (TimeoutError, subprocess.SubprocessError):
            server.stop()
            if attempt == _STARTS - 1:
                raise
    try:
        yield endpoint
    finally:
        server.stop()


class _Server:
    """The daemons of one node, and where they keep their files."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._conf = str(folder / "ceph.conf")
        self._daemons: list[subprocess.Popen[bytes]] = []

    def start(self) -> str:
        """Start everything and return the endpoint."""
        folder, conf, fsid = self._folder, self._conf, str(uuid.uuid4())
        port, mon_port = _free_port(), _free_port()
        for name in ("mon", "osd"):
            (folder / name).mkdir(parents=True)
        Path(conf).write_text(_CONFIGURATION.format(fsid=fsid, folder=folder, port=port, mon_port=mon_port))
        monmap, address = str(folder / "monmap"), f"[v1:127.0.0.1:{mon_port}]"
        _run("monmaptool", "--create", "--clobber", "--fsid", fsid, "--addv", "a", address, monmap)
        _run("ceph-mon", "-c", conf, "-i", "a", "--mkfs", "--monmap", monmap)
        self._daemon("ceph-mon", "-i", "a")
        _wait(lambda: _succeeds("ceph", "-c", conf, "mon", "stat"))
        osd = str(uuid.uuid4())
        _run("ceph", "-c", conf, "osd", "new", osd)
        _run("ceph-osd", "-c", conf, "-i", "0", "--mkfs", "--osd-uuid", osd, "--no-mon-config")
        self._daemon("ceph-osd", "-i", "0")
        _wait(lambda: "1 up" in _run("ceph", "-c", conf, "osd", "stat"))
        self._daemon("radosgw", "-n", "client.rgw.a")
        endpoint = f"http://127.0.0.1:{port}"
        _wait(lambda: _answers(endpoint))
        keys = [f"--access-key={ACCESS_KEY}", f"--secret-key={SECRET_KEY}"]
        _run("radosgw-admin", "-c", conf, "user", "create", "--uid=tests", "--display-name=tests", *keys)
        return endpoint

    def stop(self) -> None:
        """End all daemons at once; there is nothing to keep."""
        for daemon in reversed(self._daemons):
            daemon.kill()
            daemon.wait()

    def _daemon(self, program: str, *arguments: str) -> None:
        with (self._folder / f"{program}.out").open("wb") as output:
            command = [program, *arguments, "-f", "-c", self._conf]
            self._daemons.append(subprocess.Popen(command, stdout=output, stderr=output))


def _run(*command: str) -> str:
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=True).stdout


def _free_port() -> int:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return int(free.getsockname()[1])


def _succeeds(*command: str) -> bool:
    try:
        return subprocess.run(command, capture_output=True, timeout=5, env=os.environ, check=False).returncode == 0
    except subprocess.TimeoutExpired:
        return False


def _answers(endpoint: str) -> bool:
    try:
        urllib.request.urlopen(endpoint, timeout=2).close()
    except urllib.error.HTTPError as error:
        error.close()
    except OSError:
        return False
    return True


def _wait(reached: Callable[[], bool], seconds: float = 40) -> None:
    deadline = time.monotonic() + seconds
    while not reached():
        if time.monotonic() > deadline:
            raise TimeoutError("the S3 server does not start")
        time.sleep(0.1)
