"""Which wheels the benchmarks need that a machine with a GPU lacks, so that they can be carried to it.

Run with ``python -m benchmarks.gpu.carry THERE [ROOT ...]`` where the product is installed. THERE holds what the other
machine has, as ``python -m pip list --format=freeze`` prints it there. What comes out are pins for ``pip download``;
docs/gpu.md has the commands around it. What a package needs that is there already is taken to be there as well, so
nothing of PyTorch is named where PyTorch is.
"""

import argparse
import importlib.metadata
from collections.abc import Collection, Iterable
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

PRODUCT = "retina-ray"
PYTHON = "3.12"
OTHER_MACHINE = {
    "python_version": PYTHON,
    "python_full_version": f"{PYTHON}.0",
    "implementation_name": "cpython",
    "platform_python_implementation": "CPython",
    "os_name": "posix",
    "sys_platform": "linux",
    "platform_system": "Linux",
    "platform_machine": "x86_64",
}
"""By which conditions of requirements are decided."""


def names_in(freeze: str) -> set[str]:
    """Return the names in lines such as ``numpy==2.5.2`` or ``name @ file:///somewhere``."""
    lines = (line.split("#")[0].strip() for line in freeze.splitlines())
    return {canonicalize_name(line.split("==")[0].split("@")[0].strip()) for line in lines if line}


def missing(roots: Iterable[str], there: Collection[str]) -> dict[str, str]:
    """Return the versions, as installed here, of what packages need and another machine lacks.

    Args:
        roots: requirements, such as ``ray[train]``; they count themselves, unless it is the product.
        there: names of what the other machine has, canonical.
    """
    found: dict[str, str] = {}
    seen: set[tuple[str, str]] = set()
    waiting = [Requirement(root) for root in roots]
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if name in there:
            continue
        distribution = importlib.metadata.distribution(name)
        if name != PRODUCT:
            found[name] = distribution.version
        for extra in {"", *requirement.extras} - {extra for known, extra in seen if known == name}:
            seen.add((name, extra))
            waiting += [need for text in distribution.requires or [] if _holds(need := Requirement(text), extra)]
    return dict(sorted(found.items()))


def _holds(requirement: Requirement, extra: str) -> bool:
    return requirement.marker is None or requirement.marker.evaluate({**OTHER_MACHINE, "extra": extra})


def main() -> None:
    """Print the pins."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("there", type=Path, help="what the other machine has")
    parser.add_argument("roots", nargs="*", default=[PRODUCT], help="packages that are needed; by default all")
    arguments = parser.parse_args()
    there = names_in(arguments.there.read_text(encoding="utf-8"))
    for name, version in missing(arguments.roots, there).items():
        print(f"{name}=={version}")


if __name__ == "__main__":
    main()
