"""Which environment variables anybody reads: Ray's Python and C++ parts, this product, and its libraries."""

import mmap
import re
from functools import cache
from pathlib import Path

import mlflow.environment_variables
import ray
from botocore.credentials import EnvProvider

from tests.manifests.documents import ROOT

OTHERS = {
    "HOME": "the shell, and `ray up`, which looks for it in the image",
    "NVIDIA_DRIVER_CAPABILITIES": "the NVIDIA container toolkit",
    "REDISCLI_AUTH": "redis-cli",
}
"""Variables of programs whose source is not here, and whose they are."""

_RAY = Path(ray.__file__).parent
_NAMED = re.compile(r"\bRAY_\w+")


def is_read(name: str) -> bool:
    """Tell whether anybody reads a variable."""
    if name in OTHERS or name in (EnvProvider.ACCESS_KEY, EnvProvider.SECRET_KEY):
        return True
    if name.startswith("RAY_"):
        return name in _rays() or _is_setting_of_ray(name.removeprefix("RAY_"))
    if name.startswith("MLFLOW_"):
        return hasattr(mlflow.environment_variables, name)
    return name in _ours()


@cache
def _rays() -> frozenset[str]:
    """Return the names in Ray's Python source."""
    places = ("_common", "_private", "autoscaler", "core", "dashboard", "serve", "train", "scripts")
    files = (file for place in places for file in (_RAY / place).rglob("*.py"))
    return frozenset(name for file in files for name in _NAMED.findall(file.read_text(encoding="utf-8")))


def _is_setting_of_ray(name: str) -> bool:
    """Tell whether a setting is one of Ray's C++ part, which reads each from a variable ``RAY_`` and its name."""
    binary = _RAY / "core/src/ray/gcs/gcs_server"
    with binary.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as content:
        return re.search(rb"(?<![\w])(?:RAY_)?" + re.escape(name.encode()) + rb"\0", content) is not None


@cache
def _ours() -> frozenset[str]:
    """Return the upper-case words between quotes in this product's source."""
    files = (file for place in ("retina_ray", "serve_apps") for file in (ROOT / place).rglob("*.py"))
    return frozenset(
        name for file in files for name in re.findall(r'"([A-Z][A-Z0-9_]+)"', file.read_text(encoding="utf-8"))
    )
