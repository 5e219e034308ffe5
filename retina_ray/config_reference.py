"""Every configuration key with its default and meaning, as Markdown; ``docs/configuration.md`` is its output."""

import json
from typing import Any, get_args

from pydantic_core import PydanticUndefined

from retina_ray.config import RunConfig
from retina_ray.config_section import Section

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
        for kind in _kinds(field.annotation):
            found += _sections(kind, f"{prefix}{name}.")
    return found


def _kinds(annotation: Any) -> list[type[Section]]:
    """Return the section that a field holds, or each of those it may hold; nothing if it holds a value."""
    alternatives = get_args(annotation) or (annotation,)
    return [kind for kind in alternatives if isinstance(kind, type) and issubclass(kind, Section)]


def _section(prefix: str, model: type[Section]) -> str:
    title = f"`{prefix.rstrip('.')}`" if prefix else "The run"
    if prefix == "method.":
        title += f" with `name: {model.model_fields['name'].default}`"
    rows = []
    for name, field in model.model_fields.items():
        if not _kinds(field.annotation):
            default = _default(field.get_default(call_default_factory=True))
            rows.append(f"| `{prefix}{name}` | {default} | {_meaning(field.description)} |")
    summary = _meaning(model.__doc__)
    keys = "\n\n| key | default | meaning |\n|---|---|---|\n" + "\n".join(rows) if rows else ""
    return f"\n## {title}\n\n{summary}{keys}\n"


def _default(value: Any) -> str:
    if value is PydanticUndefined:
        return "required"
    if value in ("", {}, ()):
        return "none given"
    return f"`{json.dumps(value)}`"


def _meaning(description: str | None) -> str:
    return " ".join((description or "").replace("``", "`").replace("|", "\\|").split())
