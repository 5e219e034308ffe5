"""What a result may depend on beyond its configuration: versions, commit, machine."""

import importlib.metadata
import os
import platform
import subprocess
from pathlib import Path
from typing import Any

COMMIT_VARIABLE = "RETINA_RAY_COMMIT"
"""Names the commit where the code was sent without its repository."""

PACKAGES = ("retina-ray", "ray", "torch", "torchvision", "numpy", "optuna", "nvidia-dali-cuda130")


def environment() -> dict[str, Any]:
    """Return versions, commit and machine, to be stored next to a result."""
    return {
        "versions": {name: package_version(name) for name in PACKAGES},
        "commit": commit(),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpus": len(os.sched_getaffinity(0)),
    }


def package_version(name: str) -> str:
    """Return the version of an installed package, or ``not installed``."""
    try:
        return importlib.metadata.version(name)
    except importlib.metadata.PackageNotFoundError:
        return "not installed"


def commit() -> str | None:
    """Return the git commit of the code, marked if it was changed, or None where nobody knows it."""
    root = Path(__file__).resolve().parents[1]
    if not (root / ".git").exists():  # installed: a repository above it would be somebody else's
        return os.environ.get(COMMIT_VARIABLE)
    command = ["git", "-C", str(root), "describe", "--always", "--dirty", "--exclude=*", "--abbrev=40"]
    try:
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
