"""From figures and context to one HTML page that needs nothing else: no network, no script, no second file.

What is not here: what stands on the page (``build``, ``template.html.j2``).
"""

import base64
import io
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from matplotlib.figure import Figure

PIXELS_PER_INCH = 160
"""Of the inlined images; the page shows 100 CSS pixels an inch, so text stays sharp when enlarged."""


@dataclass(frozen=True)
class InlineImage:
    """One image of the page.

    Attributes:
        title: what it shows, empty where the figure's heading says it.
        uri: the image itself, as a ``data:`` address.
    """

    title: str
    uri: str


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
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png", dpi=PIXELS_PER_INCH, metadata={"Software": None})
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def render(context: Mapping[str, Any]) -> str:
    """Return the page for a context; everything in it is escaped unless it is `markupsafe.Markup`.

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
    return environment.get_template("template.html.j2").render(context)
