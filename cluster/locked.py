"""Prints the part of requirements.lock that the product needs, for the image: the lock has development tools too.

pyproject.toml says what the product asks for, and the lock, below each package, who asked for that one.
"""

import re
import tomllib
from pathlib import Path


def needed(project: str, lock: str) -> str:
    """Return those entries of a lock, with their hashes, that the dependencies of a project lead to.

    Args:
        project: text of pyproject.toml.
        lock: text of requirements.lock, as uv writes it.
    """
    wanted = {_name(each) for each in tomllib.loads(project)["project"]["dependencies"]}
    entries = [each for each in re.split(r"^(?=\w)", lock, flags=re.MULTILINE) if "==" in each]
    askers = {}
    for entry in entries:
        by = re.findall(r"^ +#(?: +via)? +([\w.-]+)$", entry, re.MULTILINE)
        askers.setdefault(_name(entry), set()).update(map(_name, by))
    if missing := wanted - askers.keys():
        raise SystemExit(f"not in the lock, make it anew with `make lock`: {sorted(missing)}")
    while more := {name for name, by in askers.items() if by & wanted} - wanted:
        wanted |= more
    return "".join(entry for entry in entries if _name(entry) in wanted)


def _name(requirement: str) -> str:
    return re.sub(r"[-_.]+", "-", re.match(r"[\w.-]+", requirement)[0]).lower()


if __name__ == "__main__":
    print(needed(Path("pyproject.toml").read_text(), Path("requirements.lock").read_text()), end="")
