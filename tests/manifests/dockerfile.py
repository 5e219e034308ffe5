"""A Dockerfile as a list of instructions, as far as ours uses the language."""

import json
import re
import shlex
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from tests.manifests.documents import CLUSTER

PATH = CLUSTER / "Dockerfile"


@dataclass(frozen=True)
class Instruction:
    """One of them.

    Attributes:
        name: in capitals.
        text: what follows it, continued lines joined.
    """

    name: str
    text: str

    @property
    def words(self) -> list[str]:
        """What follows it, split as a shell does or as JSON says."""
        return list(json.loads(self.text)) if self.text.startswith("[") else shlex.split(self.text)


@cache
def instructions(path: Path = PATH) -> tuple[Instruction, ...]:
    """Return the instructions of a Dockerfile."""
    lines = [line for line in path.read_text().splitlines() if line.strip() and not line.lstrip().startswith("#")]
    joined = re.sub(r"\\\n\s*", "", "\n".join(lines))
    return tuple(Instruction(*line.split(maxsplit=1)) for line in joined.splitlines())


def those(name: str) -> list[Instruction]:
    """Return the instructions of a name."""
    return [each for each in instructions() if each.name == name]


def environment() -> dict[str, str]:
    """Return the variables that every process in the image has."""
    return dict(word.split("=", 1) for each in those("ENV") for word in each.words)
