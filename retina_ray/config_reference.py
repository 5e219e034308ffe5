"""Every configuration key with its default and meaning, as Markdown; ``docs/configuration.md`` is its output."""

import json
from typing import Any

from pydantic_core import PydanticUndefined

from retina_ray.config import RunConfig, Section

HEADER = """# Configuration

A run is a recipe, then `--config FILE`, then `--set key=value`; each later one replaces values of the earlier. The
sections `data`, `augment`, `method`, `optim`, `train` and the seed decide what is learnt, and artifacts are addressed
by them. This page is the output of `retina-ray recipes keys`.
"""


def reference() -> str:
    """Return the page."""
    return HEADER + "".join(_section(name, field) for name, field in _sections(RunConfig))


def _sections(model: type[Section], prefix: str = "") -> list[tuple[str, type[Section]]]:
    """Return the sections below a model with their dotted prefixes, itself first."""
    found = [(prefix, model)]
    for name, field in model.model_fields.items():
        if isinstance(field.annotation, type) and issubclass(field.annotation, Section):
            found += _sections(field.annotation, f"{prefix}{name}.")
    return found


def _section(prefix: str, model: type[Section]) -> str:
    title = f"`{prefix.rstrip('.')}`" if prefix else "The run"
    rows = []
    for name, field in model.model_fields.items():
        if not (isinstance(field.annotation, type) and issubclass(field.annotation, Section)):
            default = _default(field.get_default(call_default_factory=True))
            rows.append(f"| `{prefix}{name}` | {default} | {_meaning(field.description)} |")
    summary = _meaning(model.__doc__)
    return f"\n## {title}\n\n{summary}\n\n| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows) + "\n"


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value in ("", {}):
        return "none given"
    return f"`{json.dumps(value)}`"


def _meaning(description: str | None) -> str:
    return " ".join((description or "").replace("``", "`").replace("|", "\\|").split())
