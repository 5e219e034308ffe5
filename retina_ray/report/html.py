"""From figures and context to one HTML page that needs nothing else: no network, no script, no second file.

What is not here: what stands on the pages (``build`` and ``run.html.j2``, ``search_page`` and ``search.html.j2``).
"""

import base64
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

from retina_ray.report.figure_files import figure_bytes


@dataclass(frozen=True)
class InlineImage:
    """One image of the page.

    Attributes:
        title: what it shows, empty where the figure's heading says it.
        uri: the image itself, as a ``data:`` address.
        shows: its gist, for who cannot see it.
    """

    title: str
    uri: str
    shows: str = ""


@dataclass(frozen=True)
class InlineFigure:
    """Images that are read in the same way.

    Attributes:
        title: heading.
        caption: how to read them.
        images: at least one.
    """

    title: str
    caption: str
    images: list[InlineImage]


def figure_uri(figure: Figure) -> str:
    """Return a figure as a PNG in a ``data:`` address; the same figure gives the same text."""
    return "data:image/png;base64," + base64.b64encode(figure_bytes(figure, "png")).decode("ascii")


def flatten(values: Mapping[str, Any], prefix: str = "") -> Iterator[tuple[str, str]]:
    """Yield nested values as name and text, the names joined by dots."""
    for key, value in values.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping):
            yield from flatten(value, f"{name}.")
        else:
            yield name, str(value)


def write_page(template: str, context: Mapping[str, Any], path: Path) -> Path:
    """Write a page as one file; an older one is replaced whole.

    Args:
        template: name of its file.
        context: what the template shows; everything in it is escaped unless it is `markupsafe.Markup`.
        path: where; its folder is made.

    Returns:
        The path.

    Raises:
        jinja2.UndefinedError: the context lacks something that the template shows.
    """
    environment = Environment(
        loader=PackageLoader("retina_ray.report", ""),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )
    page = environment.get_template(template).render(context)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.part")
    partial.write_text(page, encoding="utf-8")
    return partial.replace(path)
