"""Command lines as their own programs parse them, without running them."""

import re
import shlex
from typing import Any

import typer
from ray.scripts.scripts import cli as ray_cli

from retina_ray.cli.main import app

JOBS = ("train", "tune", "evaluate", "data")
"""What `retina-ray jobs submit` takes after ``--``."""


def parse(line: str) -> tuple[list[str], dict[str, Any]]:
    """Return the verbs and the parameters of a command line of ``retina-ray`` or ``ray``.

    Raises:
        Exception: as the parser raises it, where it does not take the line.
    """
    words = [word for word in shlex.split(line) if not re.fullmatch(r"[A-Za-z_]+=\S*", word)]
    commands: dict[str, Any] = {"retina-ray": typer.main.get_command(app), "ray": ray_cli}
    program, *words = words
    command, verbs = commands[program], [program]
    while hasattr(command, "commands"):
        verb, *words = words
        verbs.append(verb)
        command = command.commands[verb]
    if verbs[-2:] == ["jobs", "submit"]:
        words, sent = words[: words.index("--")], words[words.index("--") + 1 :]
        assert sent[0] in JOBS, sent
        parse(shlex.join(["retina-ray", *sent]))
        words += ["--", *sent]
    return verbs, dict(command.make_context(verbs[-1], words).params)
